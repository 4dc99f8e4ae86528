"""Adapters: nothing at the start, all of them learn, and merged they compute the same."""

from typing import Any

import pytest
import torch
from torch import nn

from hyenakernels.float8.reference import Float8Weight
from stripedhyena2 import InputError, ModelConfig, StripedHyena2
from stripedhyena2.adapters import LoRA, adapter_tensors, add_adapters, merged_weights
from stripedhyena2.adapters.lora import dense_weight, put_on, target_names
from stripedhyena2.float8.frozen import FrozenLinear, RoundedLinear, freeze_float8
from stripedhyena2.float8.inference import ScaledLinear, Scales, scaled_weight

KINDS = [LoRA(rank=3), LoRA(rank=3, alpha=5, rslora=True), LoRA(rank=3, dora=True)]
IDS = torch.tensor([list(b"ACGTTGCAACGGT"), list(b"TTGACCAGTACCA")])


@pytest.fixture
def base(tiny_config: ModelConfig, tiny_model: StripedHyena2) -> StripedHyena2:
    twin = StripedHyena2(tiny_config).eval()
    twin.load_state_dict(tiny_model.state_dict())
    return twin.requires_grad_(False)


def randomize(model: nn.Module) -> None:
    """Let every adapter change the outputs."""
    generator = torch.Generator().manual_seed(5)
    for tensor in adapter_tensors(model).values():
        tensor.add_(0.2 * torch.randn(tensor.shape, generator=generator))


def adapted(base: StripedHyena2, lora: LoRA) -> StripedHyena2:
    add_adapters(base, lora, target_names(base.config, lora.targets))
    return base


@pytest.mark.parametrize("lora", KINDS, ids=["lora", "rslora", "dora"])
def test_a_new_adapter_changes_nothing(base: StripedHyena2, lora: LoRA) -> None:
    before = base(IDS)
    torch.testing.assert_close(adapted(base, lora)(IDS), before, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("lora", KINDS, ids=["lora", "rslora", "dora"])
def test_merged_is_unmerged(base: StripedHyena2, tiny_config: ModelConfig, lora: LoRA) -> None:
    weights = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    before = base(IDS)
    randomize(adapted(base, lora))
    unmerged = base(IDS)
    assert (unmerged - before).abs().max() > 0.1
    merged = StripedHyena2(tiny_config).eval()
    tensors = adapter_tensors(base)
    merged.load_state_dict(merged_weights(weights, lora, tensors))
    scale = unmerged.abs().max()
    torch.testing.assert_close(merged(IDS) / scale, unmerged / scale, rtol=0, atol=1e-5)
    loaded = StripedHyena2(tiny_config).eval()
    loaded.load_state_dict(weights)
    put_on(loaded, lora, tensors)
    torch.testing.assert_close(loaded(IDS), merged(IDS), rtol=0, atol=0)


@pytest.mark.parametrize("recomputed", [0, 1, 3])
@pytest.mark.parametrize("lora", [KINDS[0], KINDS[2]], ids=["lora", "dora"])
def test_every_adapter_gets_a_gradient(base: StripedHyena2, lora: LoRA, recomputed: int) -> None:
    """Also with recomputation, where no input of a block needs a gradient."""
    randomize(adapted(base, lora))
    base.train().activation_checkpointing = recomputed
    base(IDS).square().mean().backward()
    gradients = {name: p.grad for name, p in base.named_parameters() if p.requires_grad}
    assert len(gradients) == (3 if lora.dora else 2) * 5 * len(base.blocks)
    for name, gradient in gradients.items():
        assert gradient is not None, name
        assert gradient.abs().max() > 0, name


def test_recomputed_gradients_are_the_same(base: StripedHyena2) -> None:
    randomize(adapted(base, LoRA(rank=2)))
    found = []
    for group in (0, 2):
        base.zero_grad()
        base.activation_checkpointing = group
        base(IDS).square().mean().backward()
        found.append([p.grad.clone() for p in base.parameters() if p.grad is not None])
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("targets", "count"),
    [("all", 35), ("mixer", 14), ("attention", 2), ("mlp", 21), (r".*\.(up|down)", 14)],
)
def test_targets_are_sets_or_a_pattern(tiny_config: ModelConfig, targets: str, count: int) -> None:
    assert len(target_names(tiny_config, targets)) == count


def test_only_computed_blocks_get_adapters(tiny_config: ModelConfig) -> None:
    assert {name.split(".")[1] for name in target_names(tiny_config, "mlp", 3)} == {"0", "1", "2"}


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ("dense", "no module matches; choose all, mixer, attention, mlp, or .* blocks.N.mlp.up"),
        ("(", "not a regular expression"),
    ],
)
def test_targets_without_a_match_name_the_modules(
    tiny_config: ModelConfig, targets: str, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        target_names(tiny_config, targets)


def test_seeds_decide_the_start(tiny_config: ModelConfig) -> None:
    found = []
    for seed in (1, 1, 2):
        model = StripedHyena2.from_seed(tiny_config, 0)
        add_adapters(model, LoRA(), target_names(tiny_config, "mlp"), seed=seed)
        found.append(adapter_tensors(model)["blocks.0.mlp.up.lora_A.weight"])
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_dropout_is_for_training_only(base: StripedHyena2) -> None:
    randomize(adapted(base, LoRA(rank=2, dropout=0.5)))
    assert torch.equal(base(IDS), base(IDS))
    base.train()
    assert not torch.equal(base(IDS), base(IDS))


@pytest.mark.parametrize("lora", [KINDS[0], KINDS[2]], ids=["lora", "dora"])
def test_a_frozen_base_in_float8_is_close_and_passes_gradients(
    base: StripedHyena2, lora: LoRA
) -> None:
    before = base(IDS)
    names = target_names(base.config, "all")
    freeze_float8(base, names)
    assert all(base.get_submodule(name).weight.dtype == torch.float8_e4m3fn for name in names)
    rounded = base(IDS)
    assert 0 < (rounded - before).abs().mean() < 0.3 * before.abs().mean()
    add_adapters(base, lora, names)
    torch.testing.assert_close(base(IDS), rounded, rtol=1e-4, atol=1e-4)
    randomize(base)
    base(IDS).square().mean().backward()
    for name, parameter in base.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.abs().max() > 0, name


class Holder(nn.Module):
    """Stands for a model, around one projection."""

    def __init__(self, projection: nn.Module) -> None:
        super().__init__()
        self.projection = projection


@pytest.mark.filterwarnings("ignore:.*autograd.function.Function:DeprecationWarning")
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("rounded", [False, True])
def test_product_and_gradients_are_those_of_the_sum_of_both_weights(
    rounded: bool, has_bias: bool, compiled: bool
) -> None:
    linear = nn.Linear(16, 32, bias=has_bias).requires_grad_(False)
    dense = linear.weight.clone()
    holder: Any = Holder(linear)
    if rounded:
        freeze_float8(holder, ["projection"])
    lora = LoRA(rank=3, alpha=5)
    add_adapters(holder, lora, ["projection"])
    randomize(holder)
    layer = holder.projection
    a, b = (layer.get_parameter(f"lora_{part}.weight") for part in "AB")
    x, dy = torch.randn(2, 5, 16, requires_grad=True), torch.randn(2, 5, 32)
    wide = dense_weight(layer).double()
    assert torch.equal(wide.float(), dense) is not rounded
    wanted = [tensor.detach().double().requires_grad_() for tensor in (x, a, b)]
    y = wanted[0] @ (wide + lora.scale * (wanted[2] @ wanted[1])).T
    y = y if linear.bias is None else y + linear.bias.double()
    y.backward(dy.double())
    found = torch.compile(layer, backend="eager")(x) if compiled else layer(x)
    found.backward(dy)
    torch.testing.assert_close(found.double(), y, rtol=1e-5, atol=1e-5)
    for own, tensor in zip((x, a, b), wanted, strict=True):
        torch.testing.assert_close(own.grad.double(), tensor.grad, rtol=1e-5, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        narrow = layer(x)
    assert narrow.dtype == torch.bfloat16
    torch.testing.assert_close(narrow.double(), y, rtol=0.03, atol=0.1)


def test_the_wide_copy_of_a_rounded_weight_is_not_kept() -> None:
    holder: Any = Holder(nn.Linear(64, 64, bias=False))
    freeze_float8(holder, ["projection"])
    add_adapters(holder, LoRA(rank=2), ["projection"])
    kept: list[torch.Size] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.shape)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        holder.projection(torch.randn(3, 64, requires_grad=True))
    assert kept
    assert torch.Size([64, 64]) not in kept


@pytest.mark.parametrize("kind", [FrozenLinear, RoundedLinear, ScaledLinear])
def test_the_gradient_of_a_rounded_product_is_that_of_its_weight(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(16, 32, bias=False)
    layer: nn.Module
    if issubclass(kind, FrozenLinear):
        layer = kind(Float8Weight.rounded(linear.weight.detach()), None)
        weight = layer.dense(torch.float32)
    else:
        scales = Scales(input=8.0, weight=300.0)
        rounded = scaled_weight(linear.weight.detach(), scales, torch.device("cpu"))
        layer = ScaledLinear(rounded, scales)
        weight = rounded.float() / scales.weight
    assert (weight - linear.weight).abs().max() < 0.07 * linear.weight.abs().max()
    x = torch.randn(5, 16, requires_grad=True)
    dy = torch.randn(5, 32)
    layer(x).backward(dy)
    torch.testing.assert_close(x.grad, dy @ weight)
