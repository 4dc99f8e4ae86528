"""The state and the adjoint from zero by the kernels equal those of the reference."""

from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from hyenakernels import ModalFilters
from hyenakernels.modal import kernel, passing

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
WIDTH, MODES = 20, 2


@pytest.mark.parametrize(
    ("length", "num_taps"), [(1, 1), (2, 4), (16, 3), (17, 4), (33, 3)], ids=str
)
def test_kernels_equal_the_reference(
    length: int, num_taps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (kernel, passing):
        monkeypatch.setattr(module, "modal_segment", lambda width: 16)  # noqa: ARG005
    generator = torch.Generator().manual_seed(length)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(DEVICE)

    z, taps, past = draw(2, length, 3 * WIDTH), draw(3 * WIDTH, num_taps), draw(2, 3, 3 * WIDTH)
    past = past[:, : num_taps - 1]
    poles, residues = -0.01 - draw(WIDTH, MODES).abs(), draw(WIDTH, MODES)
    dy = draw(2, length, WIDTH)

    def found(*tensors: torch.Tensor) -> list[torch.Tensor]:
        z, taps, poles, residues, past, dy = tensors
        filters = ModalFilters(taps, poles, residues)
        return [
            passing.state_from_zero(z, filters, past),
            passing.adjoint_from_zero(z, filters, past, dy),
        ]

    inputs = (z, taps, poles, residues, past, dy)
    monkeypatch.setattr(passing, "kernels_support", refuse)
    exact = found(*(x.double() for x in inputs))
    monkeypatch.setattr(passing, "kernels_support", lambda *_, **__: True)
    for ours, right in zip(found(*inputs), exact, strict=True):
        assert (ours.double() - right).norm() <= 1e-6 * right.norm()


def refuse(*_: Any, **__: Any) -> bool:
    return False
