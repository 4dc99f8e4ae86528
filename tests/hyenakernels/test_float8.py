"""FP8 represents a tensor up to rounding, and the kernel equals the reference.

On a machine without a GPU the kernel runs in Triton's interpreter.
"""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from hyenakernels.float8 import op, reference

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
NARROW = [torch.float8_e4m3fn, torch.float8_e5m2]


@pytest.fixture(autouse=True)
def poison() -> Iterator[None]:
    """Fill memory that a kernel does not write with NaN."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def draw(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).to(DEVICE, dtype)


def same_bits(mine: Tensor, exact: Tensor) -> bool:
    assert mine.shape == exact.shape
    return torch.equal(mine.reshape(-1).view(torch.uint8), exact.reshape(-1).view(torch.uint8))


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
    monkeypatch.setattr(op, "kernels_take", lambda _: takes)
    x, turned = (draw(*shape, dtype=torch.bfloat16) for shape in ((21, 32), (32, 48)))
    for matrix in (x, turned.T):
        for rows, columns in ((True, True), (True, False), (False, True)):
            torch.library.opcheck(
                op.traced,
                (matrix, NARROW[0], rows, columns),
                test_utils=("test_schema", "test_faketensor"),
            )
