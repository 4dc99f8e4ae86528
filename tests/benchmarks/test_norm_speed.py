"""How far the norm kernels are from a copy that moves as many bytes.

Run: pytest -m benchmark -s tests/benchmarks/test_norm_speed.py; results/norms.md keeps what it
writes into the folder EVO2_BENCHMARK_RESULTS.

N rows, D channels.
"""

from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evo2cli import console
from hyenakernels import add_rms_norm
from hyenakernels.norm import reference
from tests.benchmarks.gpu import DEVICE, Report, cell, draw_bf16, measure, measure_passes, needs_gpu

ABOUT = """\
# Speed of the norms

x + y and its RMS norm, 16,384 rows, all in bf16: what a block needs between its branches. "eager"
is the reference as PyTorch runs it, "compiled" the same by torch.compile; "F.rms_norm" is PyTorch's
own norm (eps under the root: another function) after the sum.

Times are medians of device time. The floor is a device-to-device copy that moves what has to move,
reads and writes together: 4 N D numbers forward, 4 more backward. In parentheses: over the floor.

Command: `pytest -m benchmark -s tests/benchmarks/test_norm_speed.py`"""

ROWS, EPS = 16_384, 1e-6
WIDTHS = [1920, 4096, 8192]


def builtin(x: Tensor, y: Tensor, scale: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """PyTorch's own norm of the sum."""
    total = x + y
    return F.rms_norm(total, total.shape[-1:], scale, eps), total


def compiled(x: Tensor, y: Tensor, scale: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The reference by torch.compile."""
    return torch.compile(reference.add_rms_norm, dynamic=False)(x, y, scale, eps)


CONTENDERS: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {
    "fused": add_rms_norm,
    "compiled": compiled,
    "F.rms_norm": builtin,
    "eager": reference.add_rms_norm,
}


@pytest.fixture(scope="module")
def report(request: pytest.FixtureRequest) -> Iterator[Report]:
    report = Report("norms.md", ABOUT, request.path.parent / "results")
    yield report
    console.say(f"{report.path}\n{report}")


@pytest.mark.benchmark
@needs_gpu
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")
@pytest.mark.parametrize("width", WIDTHS)
def test_norm(width: int, report: Report) -> None:
    scale = nn.Parameter(torch.randn(width, device=DEVICE, dtype=torch.bfloat16))
    floors = [
        measure(torch.clone, lambda times=times: (draw_bf16(times * ROWS, width),))  # type: ignore[misc]
        for times in (2, 4)
    ]
    shape = (1, ROWS, width)
    row = [f"{width:,}"]
    for name, run in CONTENDERS.items():
        readings = measure_passes(
            lambda x, y, run=run: run(x, y, scale, EPS),  # type: ignore[misc]
            [scale],
            [shape, shape],
            [shape, shape],
        )
        assert name != "fused" or not any(reading.failure for reading in readings)
        for reading, floor in zip(readings, floors, strict=True):
            row.append(f"{reading} ({reading.over(floor)})")
    columns = ["D", *(f"{n}, {p}" for n in CONTENDERS for p in ("forward", "both"))]
    columns += ["floor, forward", "floor, both"]
    report.add("Milliseconds", columns, [*row, *(cell(f.milliseconds, 3) for f in floors)])
