"""FP8 products are the wide ones up to the rounding of FP8, gradients too; parameters stay."""

import pytest
import torch
from torch import Tensor, nn

from stripedhyena2 import ModelConfig, StripedHyena2
from stripedhyena2.float8.training import Float8GatedMLP, Float8Linear, use_float8
from stripedhyena2.model import GatedMLP

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SHAPE = ModelConfig(
    stripes="SMLA",
    width=64,
    num_heads=2,
    mlp_width=96,
    num_short_filter_groups=4,
    num_medium_filter_groups=4,
    context=256,
)


def error(value: Tensor, exact: Tensor) -> float:
    return ((value.float() - exact.float()).norm() / exact.float().norm()).item()


@pytest.mark.filterwarnings("ignore:Attempting to run cuBLAS")  # in a thread that is new to it
@pytest.mark.parametrize("rows", [64, 37, 1], ids=lambda rows: f"rows{rows}")
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "nobias"])
def test_a_layer_and_its_gradients(rows: int, *, bias: bool) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(64, 96, bias=bias).to(DEVICE, torch.bfloat16)
    x = torch.randn(2, rows, 64, device=DEVICE, dtype=torch.bfloat16, requires_grad=True)
    dy = torch.randn(2, rows, 96, device=DEVICE, dtype=torch.bfloat16)
    results = []
    for kind in (nn.Linear, Float8Linear):
        linear.__class__ = kind
        y = linear(x)
        results.append([y, *torch.autograd.grad(y, [x, *linear.parameters()], dy)])
    wide, narrow = results
    assert error(narrow[0], wide[0]) < 0.05  # e4m3 rounds by 2^-4 at most
    for value, exact in zip(narrow[1:3], wide[1:3], strict=True):
        assert 0.01 < error(value, exact) < 0.09  # e5m2 by 2^-3
    if bias:
        torch.testing.assert_close(narrow[3], wide[3])


@pytest.mark.parametrize("gelu", [False, True], ids=["bilinear", "gelu"])
def test_an_mlp_that_rounds_its_input_once_has_the_same_bits(*, gelu: bool) -> None:
    torch.manual_seed(0)
    mlp = GatedMLP(SHAPE, gelu=gelu).to(DEVICE, torch.bfloat16)
    x = torch.randn(2, 37, 64, device=DEVICE, dtype=torch.bfloat16, requires_grad=True)
    dy = torch.randn_like(x)
    for linear in (mlp.gate, mlp.up, mlp.down):
        linear.__class__ = Float8Linear
    results = []
    for kind in (GatedMLP, Float8GatedMLP):
        mlp.__class__ = kind
        y = mlp(x)
        results.append([y, *torch.autograd.grad(y, [x, *mlp.parameters()], dy)])
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


def test_frozen_weights_and_inputs_get_no_gradients() -> None:
    torch.manual_seed(0)
    mlp = GatedMLP(SHAPE, gelu=False).to(DEVICE, torch.bfloat16)
    whole = torch.randn(2, 37, 64, device=DEVICE, dtype=torch.bfloat16)
    for linear in (mlp.gate, mlp.up, mlp.down):
        linear.__class__ = Float8Linear
    mlp.__class__ = Float8GatedMLP
    x = whole.clone().requires_grad_()
    exact = torch.autograd.grad(mlp(x).square().sum(), [x, *mlp.parameters()])
    mlp.gate.weight.requires_grad_(False)
    found = torch.autograd.grad(mlp(whole).square().sum(), [mlp.up.weight, mlp.down.weight])
    assert all(torch.equal(one, other) for one, other in zip(found, exact[2:], strict=True))
    mlp.requires_grad_(False)
    (dx,) = torch.autograd.grad(mlp(x).square().sum(), [x])
    assert torch.equal(dx, exact[0])


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # of the compiler itself
def test_a_compiled_layer_is_the_layer() -> None:
    """The compiler must hand FP8 products their operands in the layout that they take."""
    torch.manual_seed(0)
    linear = Float8Linear(64, 96).to(DEVICE, torch.bfloat16)
    x = torch.randn(64, 48, device=DEVICE, dtype=torch.bfloat16, requires_grad=True)

    def turned(x_IM: Tensor) -> Tensor:
        return linear(x_IM.T * 2)

    results = []
    for run in (turned, torch.compile(turned)):
        y = run(x)
        results.append([y, *torch.autograd.grad(y.square().sum(), [x, *linear.parameters()])])
    for found, exact in zip(*results, strict=True):
        assert error(found, exact) < 0.01


def test_a_model_trains_in_fp8_under_autocast() -> None:
    ids = torch.randint(65, 85, (2, 65), generator=torch.Generator().manual_seed(0)).to(DEVICE)
    curves = []
    for fp8 in (False, True):
        model = StripedHyena2.from_seed(SHAPE, seed=0).to(DEVICE)
        if fp8:
            use_float8(model)
            kinds = [type(module) for module in model.blocks.modules()]
            assert kinds.count(Float8Linear) == 5 * SHAPE.depth
            assert kinds.count(Float8GatedMLP) == SHAPE.depth
            assert nn.Linear not in kinds
            assert GatedMLP not in kinds
        assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        losses = []
        for _ in range(14):
            with torch.autocast(DEVICE, dtype=torch.bfloat16):
                logits = model(ids[:, :-1])
            loss = nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        curves.append(losses)
    wide, narrow = curves
    assert wide[-1] < wide[0] / 2
    assert narrow == pytest.approx(wide, rel=0.05)


def test_a_width_that_fp8_cannot_take_is_named(tiny_config: ModelConfig) -> None:
    with pytest.raises(
        ValueError, match=r"multiples of 16, but blocks\.0\.mixer\.project_in has 24"
    ):
        use_float8(StripedHyena2(tiny_config))
