"""FP8 represents a tensor up to rounding, and the kernel equals the reference.

On a machine without a GPU the kernel runs in Triton's interpreter.
"""

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from hyenakernels.float8 import op, reference

pytestmark = pytest.mark.usefixtures("poison")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
NARROW = [torch.float8_e4m3fn, torch.float8_e5m2]


def draw(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).to(DEVICE, dtype)


def same_bits(mine: Tensor, exact: Tensor) -> bool:
    assert mine.shape == exact.shape
    return torch.equal(mine.reshape(-1).view(torch.uint8), exact.reshape(-1).view(torch.uint8))


def nearest(x: Tensor) -> Tensor:
    """The numbers of e4m3 next to float64 ones up to 448, as the format says."""
    # 3 bits of mantissa above 2^-6, multiples of 2^-9 below.
    exponent = torch.floor(torch.log2(x.abs().clamp_min(2.0**-6)))
    unit = torch.exp2(exponent - 3)
    return torch.round(x / unit) * unit  # torch rounds halves to even


def rounded_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Each row by itself in float64 on the CPU, rounded to e4m3, and its scale."""
    wide = x.detach().double().cpu()
    scale = wide.abs().amax(dim=1, keepdim=True) / 448
    return nearest(wide / scale), scale


def representable(*shape: int, dtype: torch.dtype) -> Tensor:
    """Numbers that FP8 represents exactly with the scale 1 / 8."""
    values = draw(*shape).clamp(-4, 4).to(dtype).float()
    values[0, 0] = torch.finfo(dtype).max
    return values / 8


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_quantization_is_close_at_any_scale(dtype: torch.dtype, scale: float) -> None:
    x = scale * draw(40, 48)
    values, turned, factor = reference.quantize(x, dtype)
    held = values[:40].float() * factor
    bound = 0.04 if dtype == torch.float8_e4m3fn else 0.08
    assert (held - x).norm() < bound * x.norm()
    assert values.float().abs().max() == torch.finfo(dtype).max
    assert same_bits(turned, values.T.contiguous())
    assert values.shape == (48, 48)
    assert not values[40:].float().any()


@pytest.mark.parametrize("dtype", NARROW)
def test_zeros_stay_and_nan_is_not_hidden(dtype: torch.dtype) -> None:
    for quantize in (reference.quantize, lambda x, dtype: op.by_kernel(x, dtype, True, True)):
        values, _, factor = quantize(
            torch.zeros(16, 16, device=DEVICE, dtype=torch.bfloat16), dtype
        )
        assert (values.float() * factor == 0).all()
        x = draw(16, 16, dtype=torch.bfloat16)
        x[3, 5] = float("nan")
        values, turned, factor = quantize(x, dtype)
        for held in (values, turned):
            assert (held.float() * factor).isnan().all()


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("shape", [(1, 16), (16, 80), (70, 64), (300, 144)], ids=str)
@pytest.mark.parametrize("rounded", [False, True], ids=["exact", "rounded"])
def test_the_kernel_is_the_reference(
    shape: tuple[int, int], dtype: torch.dtype, *, rounded: bool
) -> None:
    if rounded and DEVICE == "cpu":
        pytest.skip("the interpreter does not round to FP8 as a GPU does")
    x = (draw(*shape) if rounded else representable(*shape, dtype=dtype)).bfloat16()
    for mine, exact in zip(
        op.by_kernel(x, dtype, True, True), reference.quantize(x, dtype), strict=True
    ):
        assert same_bits(mine, exact)
    rows, columns, _ = reference.quantize(x, dtype)
    assert same_bits(op.by_kernel(x, dtype, True, False)[0], rows)
    assert same_bits(op.by_kernel(x, dtype, False, True)[1], columns)
    assert same_bits(op.by_kernel(x.T.contiguous().T, dtype, True, False)[0], rows)


@pytest.mark.parametrize("takes", [True, False], ids=["kernel", "reference"])
def test_the_fake_has_the_shapes(takes: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(op, "kernels_support", lambda _: takes)
    x, turned = (draw(*shape, dtype=torch.bfloat16) for shape in ((21, 32), (32, 48)))
    for matrix in (x, turned.T):
        for rows, columns in ((True, True), (True, False), (False, True)):
            torch.library.opcheck(
                op.traced,
                (matrix, NARROW[0], rows, columns),
                test_utils=("test_schema", "test_faketensor"),
            )


@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
def test_a_row_is_rounded_with_a_scale_of_its_own(size: float) -> None:
    x = size * draw(37, 48) * torch.logspace(-3, 3, 37, device=DEVICE)[:, None]
    rows = reference.round_rows(x)
    assert (rows.values_PN.shape, rows.scale_P1.shape) == ((48, 48), (48, 1))
    right, right_scale = rounded_rows(x)
    torch.testing.assert_close(rows.scale_P1[:37].cpu().double(), right_scale, rtol=1e-6, atol=0)
    held = rows.values_PN[:37].cpu().double()
    # A number within 1e-6 of the middle between two of e4m3 may fall to either side.
    assert (held != right).float().mean() < 0.001
    assert torch.equal(held.abs().amax(dim=1), torch.full((37,), 448.0, dtype=torch.float64))
    assert not rows.values_PN[37:].float().any()


def test_a_row_does_not_see_its_neighbours() -> None:
    x = draw(20, 64)
    x[3, 5], x[7] = float("nan"), 0
    rows = reference.round_rows(x)
    held = rows.values_PN.float() * rows.scale_P1
    assert held.isnan().any(dim=1).nonzero().flatten().tolist() == [3]
    assert held[3].isnan().all()
    assert not held[7].any()
    for row in (0, 7, 19):
        alone = reference.round_rows(x[row : row + 1])
        assert same_bits(alone.values_PN[:1], rows.values_PN[row : row + 1])
        assert torch.equal(alone.scale_P1[0], rows.scale_P1[row])


def numbers(*shape: int) -> Tensor:
    """Numbers of e4m3 in rows of any scale: the interpreter does not round to FP8 as a GPU does."""
    x = representable(*shape, dtype=torch.float8_e4m3fn) * 8
    x[:, -1] = 448
    return x * torch.exp2(torch.arange(shape[0], device=DEVICE) % 9 - 4)[:, None]


def assert_same_rows(found: reference.RoundedRows, right: reference.RoundedRows) -> None:
    assert (found.sizes, found.dtype) == (right.sizes, right.dtype)
    count = right.sizes.numel()
    mine, exact = ((rows.values_PN.float() * rows.scale_P1)[:count] for rows in (found, right))
    torch.testing.assert_close(mine, exact, rtol=0, atol=0, equal_nan=True)
    assert not found.values_PN[count:].float().any()
    scales = (found.scale_P1[:count], right.scale_P1[:count])
    torch.testing.assert_close(*scales, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("shape", [(1, 16), (16, 80), (37, 512), (5, 1500)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_kernel_rounds_rows_as_the_reference(
    shape: tuple[int, int], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = numbers(*shape).to(dtype)
    x[-1, 2] = float("nan")
    monkeypatch.setattr(op, "kernels_support", lambda _: True)
    found = op.round_rows(x[:, None])
    assert found.scale_P1[shape[0] - 1].isnan()
    assert_same_rows(found, reference.round_rows(x[:, None]))


@pytest.mark.parametrize("takes", [True, False], ids=["kernel", "reference"])
def test_normed_rows_are_rounded(monkeypatch: pytest.MonkeyPatch, *, takes: bool) -> None:
    # Rows of 1 and -1, halved by the norm if eps is outside the root; numbers of e4m3 as its scale.
    x, scale_D = draw(5, 2, 48).sign(), numbers(1, 48)[0]
    monkeypatch.setattr(op, "kernels_support", lambda _: takes)
    assert_same_rows(op.round_rows(x, (scale_D, 1.0)), reference.round_rows(x / 2 * scale_D))


@pytest.mark.parametrize("gelu", [False, True], ids=["bilinear", "gelu"])
@pytest.mark.parametrize("takes", [True, False], ids=["kernel", "reference"])
def test_gated_rows_are_rounded(
    monkeypatch: pytest.MonkeyPatch, *, takes: bool, gelu: bool
) -> None:
    # GELU leaves 16 as it is, to the last digit of fp32.
    gate, up = torch.full((5, 2, 48), 16.0, device=DEVICE), numbers(10, 48).view(5, 2, 48)
    gate[1, 1] = 0
    monkeypatch.setattr(op, "kernels_support", lambda _: takes)
    assert_same_rows(op.round_gated(gate, up, gelu=gelu), reference.round_rows(gate * up))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rows", [1, 37])
@pytest.mark.parametrize("has_bias", [False, True], ids=["plain", "bias"])
def test_a_product_is_that_of_rounded_operands(
    rows: int, dtype: torch.dtype, *, has_bias: bool
) -> None:
    x, dense = draw(rows, 64, dtype=dtype), (0.05 * draw(96, 64)).to(dtype)
    bias = draw(96, dtype=dtype) if has_bias else None
    weight = reference.Float8Weight.rounded(dense)
    assert (weight.values_OI.dtype, weight.shape) == (torch.float8_e4m3fn, (96, 64))
    assert torch.equal(torch.log2(weight.scale_O1) % 1, torch.zeros_like(weight.scale_O1))
    held = weight.values_OI.double().abs().amax(dim=1)
    assert held.min() >= 224  # just above may be rounded to it
    assert held.max() <= 448
    assert (weight.dense(torch.float64) - dense).norm() < 0.04 * dense.double().norm()

    values, scale = rounded_rows(x)
    right = values @ weight.dense(torch.float64).cpu().T * scale
    if bias is not None:
        right += bias.double().cpu()
    found = op.rows_product(op.round_rows(x), weight, bias)
    assert found.dtype == dtype
    error = float((found.double().cpu() - right).norm() / right.norm())
    # The ratio of two bf16 numbers is often the middle between two of e4m3, to within fp32.
    assert error < (8e-3 if dtype == torch.bfloat16 else 1e-3 if DEVICE == "cuda" else 1e-6)
    exact = x.double() @ dense.double().T + (0 if bias is None else bias.double())
    assert (found.double() - exact).norm() > 0.01 * exact.norm()  # operands are rounded


@pytest.mark.skipif(torch.__version__ < "2.13", reason="its CPU product has one scale a matrix")
def test_the_product_of_tensor_cores_is_the_reference() -> None:
    """What a GPU computes, by PyTorch's product for CPUs, with a scale for each row and channel."""
    rows = reference.round_rows(draw(37, 64))
    weight, bias = reference.Float8Weight.rounded(0.05 * draw(96, 64)), draw(96)
    # The public F.scaled_mm has no implementation for CPUs.
    units = torch._scaled_mm(
        rows.values_PN.cpu(),
        weight.values_OI.cpu().T,
        scale_a=rows.scale_P1.cpu(),
        scale_b=weight.scale_O1.cpu().T,
        out_dtype=torch.float32,
        use_fast_accum=True,
    )
    right = reference.rows_product(rows, weight, bias)
    torch.testing.assert_close(units[:37] + bias.cpu(), right.cpu(), rtol=1e-5, atol=1e-5)


def test_no_rows_have_no_products() -> None:
    weight = reference.Float8Weight.rounded(draw(96, 64))
    assert op.rows_product(op.round_rows(draw(2, 0, 64)), weight).shape == (2, 0, 96)
