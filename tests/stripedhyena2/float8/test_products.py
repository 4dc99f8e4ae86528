"""All products in FP8: those of rounded operands, in every way of reading a sequence, at a byte.

They run on the GPU where there is one.
"""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from stripedhyena2 import CheckpointError, InputError, ModelConfig, StripedHyena2, load, save
from stripedhyena2.adapters import LoRA, adapter_tensors, add_adapters
from stripedhyena2.adapters.lora import put_on
from stripedhyena2.checkpoint import loading, precision
from stripedhyena2.checkpoint.layouts import native
from stripedhyena2.checkpoint.published import published_config
from stripedhyena2.costs import weight_bytes
from stripedhyena2.decoding import Decoder
from stripedhyena2.device_map import WEIGHT_FRACTION
from stripedhyena2.float8 import inference
from stripedhyena2.float8.frozen import FrozenLinear, RoundedLinear, freeze_float8
from stripedhyena2.float8.inference import (
    PRODUCTS,
    PROJECTIONS,
    WEIGHTS,
    ScaledLinear,
    float8_parts,
    require_float8,
)
from stripedhyena2.layers import projection_names
from stripedhyena2.streaming import Streaming, stream
from tests.hyenakernels.test_float8 import nearest, rounded_rows
from tests.stripedhyena2.float8.test_inference import HYENA, SHAPE, record

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
IDS = torch.randint(65, 85, (2, 50), generator=torch.Generator().manual_seed(0)).to(DEVICE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("products") / "model"
    save(StripedHyena2.from_seed(SHAPE, seed=0), path, {})
    return path


@pytest.fixture(scope="module")
def narrow(folder: Path) -> StripedHyena2:
    return load(folder, float8=True, device=DEVICE).requires_grad_(False)


@pytest.fixture(scope="module")
def wide(folder: Path) -> StripedHyena2:
    return load(folder, dtype=torch.float64, device=DEVICE).requires_grad_(False)


@pytest.fixture(scope="module")
def effect(narrow: StripedHyena2, wide: StripedHyena2) -> float:
    """How far rounding moves the logits."""
    return float((narrow(IDS) - wide(IDS)).norm())


def rounded(linear: nn.Module, inputs: tuple[Tensor], _: Tensor) -> Tensor:
    """The product in fp64, its operands rounded row by row."""
    values, scale = rounded_rows(inputs[0].flatten(0, -2))
    weight = linear.weight.detach().cpu()
    power = torch.exp2(torch.ceil(torch.log2(weight.abs().amax(dim=1, keepdim=True) / 448)))
    y = values @ (nearest(weight / power) * power).T * scale
    y = y.to(inputs[0].device).view(*inputs[0].shape[:-1], -1)
    return y if linear.bias is None else y + linear.bias


def test_a_model_is_the_wide_one_with_rounded_products(
    folder: Path, narrow: StripedHyena2, effect: float
) -> None:
    names = projection_names(SHAPE)
    assert len(names) == 5 * SHAPE.depth
    assert all(type(narrow.get_submodule(name)) is RoundedLinear for name in names)
    expected = load(folder, dtype=torch.float64, device=DEVICE).requires_grad_(False)
    for name in names:
        expected.get_submodule(name).register_forward_hook(rounded)
    # An input in the middle between two numbers of e4m3 may fall to either side.
    assert float((narrow(IDS) - expected(IDS)).norm()) < 0.1 * effect


def test_rounding_once_is_rounding_each_time(narrow: StripedHyena2) -> None:
    """Without gradients the layers of an MLP share rounded inputs; the numbers are the same."""
    block = narrow.blocks[0]
    x = torch.randn(2, 7, 64, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    separate = block.mlp(x)
    with torch.no_grad():
        torch.testing.assert_close(block.mlp(x), separate)
        outputs = narrow.read_layers(IDS, ["blocks.0.mlp.gate", "blocks.0.mlp.down"])
    assert [y.shape[-1] for y in outputs] == [SHAPE.mlp_width, SHAPE.width]


def test_a_sequence_may_be_read_in_any_way(narrow: StripedHyena2, effect: float) -> None:
    logits = narrow(IDS)
    cache = narrow.new_cache(2)
    pieces = torch.cat([narrow(IDS[:, :20], cache=cache), narrow(IDS[:, 20:], cache=cache)], dim=1)
    assert float((pieces - logits).norm()) < 0.1 * effect
    streamed = [each for _, each in stream(narrow, IDS, Streaming(chunk=20)) if each is not None]
    assert float((torch.cat(streamed, dim=1) - logits).norm()) < 0.1 * effect
    for batch in (1, 2):
        assert float((decoded(narrow, batch) - logits[:batch, 20:]).norm()) < 0.1 * effect


def decoded(model: StripedHyena2, batch: int) -> Tensor:
    """Logits of the last 30 tokens of some sequences, read token by token, side by side."""
    decoder = Decoder(model, batch, 50)
    for row in range(batch):
        cache = model.new_cache(1)
        model(IDS[row : row + 1, :20], cache=cache)
        decoder.place(row, cache)
    return torch.stack([decoder.step(IDS[:batch, t]) for t in range(20, 50)], dim=1)


def test_bf16_activations_are_near(folder: Path, wide: StripedHyena2, effect: float) -> None:
    """As a GPU computes: its tensor cores, and its kernel for a single row.

    Rounding to bf16 moves some numbers across the middle between two of e4m3.
    """
    model = load(folder, float8=True, device=DEVICE, dtype=torch.bfloat16).requires_grad_(False)
    with torch.no_grad():
        logits = model(IDS)
    assert float((logits - wide(IDS)).norm()) < 1.3 * effect
    for batch in (1, 2):
        assert float((decoded(model, batch) - logits[:batch, 20:]).norm()) < 0.4 * effect


def test_a_score_does_not_depend_on_others(narrow: StripedHyena2) -> None:
    letters = [bytes(ids).decode() for ids in IDS.tolist()]
    together = narrow.score([*letters, letters[0][:30]], strand="both")
    assert [narrow.score([each], strand="both")[0] for each in letters] == together[:2]


def test_weights_take_a_byte(narrow: StripedHyena2) -> None:
    names = {f"{name}.weight" for name in projection_names(SHAPE)}
    found = {name for name, tensor in narrow.named_parameters() if tensor.element_size() == 1}
    assert found == names
    scales = [tensor for name, tensor in narrow.named_buffers() if name.endswith("scale_O1")]
    stored = sum(tensor.nbytes for tensor in (*narrow.parameters(), *scales))
    assert stored == weight_bytes(SHAPE, 4, float8=True)
    assert weight_bytes(published_config("evo2_7b"), float8=True) < 0.52 * weight_bytes(
        published_config("evo2_7b")
    )
    assert narrow.embedding.weight.dtype == torch.float32
    assert narrow.blocks[0].mixer.project_out.bias.dtype == torch.float32
    assert not any(parameter.requires_grad for parameter in narrow.parameters())


def test_devices_need_room_for_bytes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needed = weight_bytes(SHAPE, 4, float8=True) / WEIGHT_FRACTION
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (int(needed), 0))
    monkeypatch.setattr(loading, "runs_float8", lambda _: True)
    place = [torch.device("cpu")]
    assert float8_parts(load(folder, float8=True, device=place)) == PRODUCTS
    with pytest.raises(CheckpointError, match="need more than is free: 1 x "):
        load(folder, device=place)


@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16], ids=str)
def test_a_change_of_dtype_leaves_the_weights(folder: Path, kind: torch.dtype) -> None:
    model = load(folder, float8=True)
    layer = model.blocks[0].mlp.up
    before = layer.dense(torch.float32)
    cast = model.to(kind).blocks[0].mlp.up
    for dtype in (kind, torch.float32):  # the first must not change what the second reads
        torch.testing.assert_close(cast.dense(dtype), before.to(dtype), rtol=0, atol=0)
    assert torch.isfinite(model(IDS.cpu())).all()


def test_what_a_model_computes_in_fp8_has_a_name(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "needed_precision", lambda _: precision.Precision.FP8)
    records = {f"blocks.{index}.projections._extra_state": record(40.5, 1000.0) for index in HYENA}
    checkpoint = replace(
        native.read(folder), extra_state=records, provenance={"layout": "released"}
    )
    native.write(checkpoint, tmp_path / "trained")
    trained = load(tmp_path / "trained", float8=True)
    assert float8_parts(trained) == PRODUCTS
    kinds = [type(trained.get_submodule(name)) for name in projection_names(SHAPE)]
    # The scales that it was trained with stay.
    assert kinds[::5] == [ScaledLinear, ScaledLinear, ScaledLinear, RoundedLinear]
    assert kinds.count(RoundedLinear) == 5 * SHAPE.depth - len(HYENA)
    assert float8_parts(load(tmp_path / "trained")) == PROJECTIONS
    assert float8_parts(load(tmp_path / "trained", float8=False)) is None
    plain = load(folder)
    assert float8_parts(plain) is None
    freeze_float8(plain, projection_names(SHAPE))
    assert float8_parts(plain) == WEIGHTS


@pytest.mark.parametrize("lora", [LoRA(rank=3), LoRA(rank=3, dora=True)], ids=["lora", "dora"])
def test_an_adapter_on_rounded_products(folder: Path, lora: LoRA, effect: float) -> None:
    """It adds what it adds to the wide model, also while decoding."""
    names = projection_names(SHAPE)
    source = load(folder)
    add_adapters(source, lora, names, seed=1)
    generator = torch.Generator().manual_seed(2)
    tensors = {
        name: tensor + 0.05 * torch.randn(tensor.shape, generator=generator)
        for name, tensor in adapter_tensors(source).items()
    }
    models = [load(folder, float8=float8, device=DEVICE) for float8 in (True, False)]
    before = [model.requires_grad_(False)(IDS) for model in models]
    for model in models:
        put_on(model, lora, tensors)
    after = [model(IDS) for model in models]
    change = [float((x - y).norm()) for x, y in zip(after, before, strict=True)]
    assert min(change) > 3 * effect
    assert float((after[0] - after[1]).norm()) < 3 * effect
    assert float((decoded(models[0], 1) - after[0][:1, 20:]).norm()) < 0.1 * effect


def test_gradients_pass_to_what_comes_before(folder: Path) -> None:
    layer = load(folder, float8=True).blocks[0].mixer.project_out
    assert isinstance(layer, FrozenLinear)
    x = torch.randn(2, 3, 64, requires_grad=True)
    dy = torch.randn(2, 3, 64)
    layer(x).backward(dy)
    torch.testing.assert_close(x.grad, dy @ layer.dense(torch.float32))


def test_a_gpu_that_cannot_is_named(
    monkeypatch: pytest.MonkeyPatch, tiny_config: ModelConfig
) -> None:
    with torch.device("meta"):
        model, tiny = StripedHyena2(SHAPE), StripedHyena2(tiny_config)
    gpu = torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA A100")
    monkeypatch.setattr(inference, "runs_float8", lambda _: False)
    with pytest.raises(InputError, match=r"^fp8: NVIDIA A100 does not multiply FP8.*; use bf16$"):
        require_float8(model, projection_names(SHAPE), gpu)
    monkeypatch.setattr(inference, "runs_float8", lambda _: True)
    require_float8(model, projection_names(SHAPE), gpu)
    with pytest.raises(InputError, match=r"of 16, but blocks\.0\.mixer\.project_in has 24 and 72"):
        require_float8(tiny, projection_names(tiny_config), gpu)
    require_float8(tiny, projection_names(tiny_config), torch.device("cpu"))
