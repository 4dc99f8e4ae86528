"""The linear layers of a decoding step: one launch equals norm, products and sum in float64."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

pytest.importorskip("triton")

from hyenakernels import added_linear, gated_linear, normed_linear
from hyenakernels.float8.reference import E4M3, Float8Weight
from hyenakernels.linear import op, reference

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
EPS = 0.1  # large enough to tell whether it is outside the root
# The interpreter truncates to bf16 where a GPU rounds to the nearest.
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 4e-3 if DEVICE == "cuda" else 1e-2}

Layer = Callable[..., Tensor]


@pytest.fixture(autouse=True)
def kernels_and_poison(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The kernels run, interpreted where there is no GPU; memory they do not write is NaN."""
    monkeypatch.setattr(op, "kernels_support", lambda *_, **__: True)
    torch.use_deterministic_algorithms(True, warn_only=True)
    with torch.no_grad():
        yield
    torch.use_deterministic_algorithms(False)


def arguments(layer: Layer, sizes: tuple[int, int], dtype: torch.dtype) -> list[Tensor]:
    """A row of x and the layer's other tensors, in the order of its arguments."""
    inputs, outputs = sizes
    generator = torch.Generator().manual_seed(inputs)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(DEVICE, dtype)

    x, weight = 3 * draw(1, 1, inputs), draw(outputs, inputs)
    if layer is added_linear:
        return [x, weight, draw(outputs), draw(1, 1, outputs)]
    scale = draw(inputs).float()
    return [x, scale, weight] if layer is normed_linear else [x, scale, weight, draw(*weight.shape)]


def called(layer: Layer, given: list[Any], *, gelu: bool, eps: float = EPS) -> Tensor:
    if layer.__name__ == "added_linear":
        return layer(*given)
    if layer.__name__ == "normed_linear":
        return layer(*given[:2], eps, given[2])
    return layer(*given[:2], eps, *given[2:], gelu=gelu)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize("sizes", [(1, 1), (48, 7), (1024, 6), (1500, 9)], ids=str)
@pytest.mark.parametrize(
    ("layer", "gelu"),
    [(normed_linear, False), (gated_linear, False), (gated_linear, True), (added_linear, False)],
    ids=["normed", "bilinear", "gelu", "added"],
)
def test_one_launch_is_its_parts(
    layer: Layer, gelu: bool, sizes: tuple[int, int], dtype: torch.dtype
) -> None:
    given = arguments(layer, sizes, dtype)
    plain = getattr(reference, layer.__name__)
    right = called(plain, [x.double() for x in given], gelu=gelu)
    found = called(layer, given, gelu=gelu)
    assert found.dtype == dtype
    assert found.shape == (1, 1, sizes[1])
    error = float((found.double() - right).norm() / right.norm())
    assert error < TOLERANCE[dtype]


def test_its_parts_are_those_of_a_block() -> None:
    x, scale, gate, up = (x.double() for x in arguments(gated_linear, (48, 7), torch.float32))
    normed = scale * x / (x.square().mean().sqrt() + EPS)
    right = F.gelu(normed @ gate.T) * (normed @ up.T)
    torch.testing.assert_close(
        reference.gated_linear(x, scale, EPS, gate, up, gelu=True), right, rtol=1e-12, atol=1e-12
    )
    torch.testing.assert_close(reference.normed_linear(x, scale, EPS, gate), normed @ gate.T)
    added = reference.added_linear(x, gate, up[:, 0], right)
    torch.testing.assert_close(added, right + x @ gate.T + up[:, 0])


def test_several_rows_are_left_to_pytorch() -> None:
    x, scale, weight = arguments(normed_linear, (48, 7), torch.float32)
    rows = x.expand(2, 3, 48)
    found = normed_linear(rows, scale, EPS, weight)
    assert torch.equal(found, reference.normed_linear(rows, scale, EPS, weight))


def test_shapes_that_do_not_fit_are_named() -> None:
    x, scale, weight = arguments(normed_linear, (48, 7), torch.float32)
    with pytest.raises(ValueError, match=r"x is \(1, 1, 48\), but the weight is \(48, 7\)"):
        normed_linear(x, scale, EPS, weight.T)
    with pytest.raises(ValueError, match=r"x is \(1, 1, 48\), but the scale is \(7,\)"):
        gated_linear(x, scale[:7], EPS, weight, weight, gelu=False)
    with pytest.raises(ValueError, match=r"product is \(1, 1, 7\), but added is \(1, 1, 48\)"):
        added_linear(x, weight, None, x)


def in_float8(given: list[Tensor]) -> list[Any]:
    """Weights in FP8, and numbers of e4m3 in the row that a product rounds.

    The interpreter does not round to FP8 as a GPU does. So the row, or the scale of its norm, holds
    numbers of e4m3 with the largest magnitude 448, times a power of two; and a row before its norm
    is 1 or -1 everywhere, which the norm halves if its eps is 1 and outside the root.
    """
    x = given[0]
    signs = torch.where(x < 0, -1.0, 1.0)
    numbers = (50 * x).clamp(-448, 448).to(E4M3).float()
    numbers[..., 0] = 448
    found: list[Any] = [
        Float8Weight.rounded(value) if value.dim() == 2 else value for value in given
    ]
    if len(given) == 4 and given[2].dim() == 1:  # added_linear has no norm
        found[0] = (numbers / 64).to(x.dtype)
    else:
        found[0] = signs.to(x.dtype)
        found[1] = (numbers[0, 0] / 16).to(given[1].dtype)
    return found


@pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize(
    "sizes", [(16, 1), (48, 7), (1024, 40), (1500, 70), (2100, 5), (4300, 5), (16_900, 9)], ids=str
)
@pytest.mark.parametrize(
    ("layer", "gelu"),
    [(normed_linear, False), (gated_linear, False), (gated_linear, True), (added_linear, False)],
    ids=["normed", "bilinear", "gelu", "added"],
)
def test_one_launch_in_float8_is_its_parts(
    layer: Layer, gelu: bool, sizes: tuple[int, int], dtype: torch.dtype
) -> None:
    given = in_float8(arguments(layer, sizes, dtype))
    wide = [x.dense(torch.float64) if isinstance(x, Float8Weight) else x.double() for x in given]
    right = called(getattr(reference, layer.__name__), wide, gelu=gelu, eps=1.0)
    found = called(layer, given, gelu=gelu, eps=1.0)
    assert found.dtype == dtype
    assert found.shape == (1, 1, sizes[1])
    # Of a row of numbers of e4m3 the rounded product is the exact one.
    error = float((found.double() - right).norm() / right.norm())
    assert error < TOLERANCE[dtype]


def test_a_row_in_float8_is_rounded_alone_and_beside_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A sequence has the same numbers however many are decoded."""
    given = in_float8(arguments(added_linear, (48, 7), torch.float32))
    x, weight, bias, added = given
    alone = added_linear(x, weight, bias, added)
    monkeypatch.setattr(op, "kernels_support", lambda *_: False)
    beside = added_linear(x.expand(3, 2, 48), weight, bias, added.expand(3, 2, 7))
    torch.testing.assert_close(beside, alone.expand(3, 2, 7))
    drawn = arguments(added_linear, (48, 7), torch.float32)[0]
    rounded, wide = (
        added_linear(drawn, each, bias, added) for each in (weight, weight.dense(torch.float32))
    )
    assert 0.01 < (rounded - wide).norm() / (wide - added).norm() < 0.1


def test_every_number_of_e4m3_is_read_as_it_is() -> None:
    numbers = torch.arange(256, dtype=torch.uint8, device=DEVICE).view(E4M3).float()
    numbers = numbers[numbers.isfinite()]
    rows = torch.arange(len(numbers), device=DEVICE)
    dense = torch.zeros(len(numbers), 16, device=DEVICE)
    dense[rows, rows % 16] = numbers  # in every byte of a word
    weight = Float8Weight(dense.to(E4M3), torch.full((len(numbers), 1), 0.5, device=DEVICE))
    x, nothing = torch.full((1, 1, 16), 448.0, device=DEVICE), torch.zeros(1, 1, len(numbers))
    found = added_linear(x, weight, None, nothing.to(DEVICE))
    assert torch.equal(found[0, 0], numbers * 224)
    x[0, 0, 3] = float("nan")
    assert added_linear(x, weight, None, nothing.to(DEVICE)).isnan().all()
