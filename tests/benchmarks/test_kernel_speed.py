"""How far the fused Hyena operators are from a copy that moves as many bytes.

Run: pytest -m benchmark -s tests/benchmarks/test_kernel_speed.py; results/kernels.md keeps what it
writes into the folder EVO2_BENCHMARK_RESULTS.

B batch, L length, D channels, C = 3D channels [x2 | x1 | v], G filter groups, K taps, S modes,
F frequencies.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evo2cli import console
from hyenakernels.precision import accumulation_dtype
from tests.benchmarks.gpu import (
    PASSES,
    Reading,
    Report,
    cell,
    draw_bf16,
    measure,
    measure_passes,
    needs_gpu,
)
from tests.benchmarks.hyena import KINDS, Mixer, draw_parameters, operator, projections

ABOUT = """\
# Speed of the fused Hyena operators

What stands between a mixer's projections: batch 1, bf16, parameters in fp32; 7 taps (SE), 128 taps
and a skip (MR), 16 modes and a skip (LI); 16 channels share a filter of SE or MR. "fused core" is
gate, convolution, gate; "fused" has the featurizer of 3 taps too. The PyTorch rows are the core:
depthwise `conv1d` and gates, or an FFT with a filter that is already laid out in fp32.

Times are medians of device time; calls are queued ahead, so that launching them costs nothing. The
floor is a device-to-device copy that moves what has to move: 4 L D bf16 numbers forward, 11 L D
forward and backward, reads and writes together. MiB is what a call needs beside its inputs and
parameters, outputs and gradients included.

Command: `pytest -m benchmark -s tests/benchmarks/test_kernel_speed.py`"""

WIDTHS = [4096, 1024]
LENGTHS = [8192, 32768, 131072]
LONGEST_PYTORCH_BACKWARD = 32768
TOLERANCE = 4e-3  # relative norm error in bf16, gradients included


@dataclass(frozen=True)
class Contender:
    """One implementation of one operator."""

    kind: str
    name: str
    run: Callable[..., Tensor]  # takes z [B, L, 3D] and the parameters
    draw: Callable[[int, int], list[nn.Parameter]]  # the parameters for D and L

    @property
    def is_ours(self) -> bool:
        """Whether a failure of it fails the benchmark."""
        return self.name.startswith("fused")


def run_conv1d(z_BLC: Tensor, taps_GK: Tensor, skip_D: Tensor | None = None) -> Tensor:
    """The core of SE and MR in plain PyTorch."""
    x2_BLD, x1_BLD, v_BLD = z_BLC.chunk(3, dim=2)
    u_BDL = (x1_BLD * v_BLD).transpose(1, 2)
    width, (groups, num_taps) = u_BDL.shape[1], taps_GK.shape
    taps_DK = taps_GK.to(u_BDL.dtype).flip(1).repeat_interleave(width // groups, dim=0)
    y_BDL = F.conv1d(F.pad(u_BDL, (num_taps - 1, 0)), taps_DK[:, None], groups=width)
    if skip_D is not None:
        y_BDL = y_BDL + skip_D.to(u_BDL.dtype)[:, None] * u_BDL
    return x2_BLD * y_BDL.transpose(1, 2)


def run_fft(z_BLC: Tensor, filter_DL: Tensor, skip_D: Tensor) -> Tensor:
    """The core of LI in plain PyTorch."""
    x2_BLD, x1_BLD, v_BLD = z_BLC.chunk(3, dim=2)
    u_BDL = (x1_BLD * v_BLD).transpose(1, 2).to(accumulation_dtype(z_BLC))
    length = u_BDL.shape[2]
    spectrum_BDF = torch.fft.rfft(u_BDL, 2 * length) * torch.fft.rfft(filter_DL, 2 * length)
    y_BDL = torch.fft.irfft(spectrum_BDF, 2 * length)[:, :, :length] + skip_D[:, None] * u_BDL
    return x2_BLD * y_BDL.transpose(1, 2).to(z_BLC.dtype)


@torch.no_grad()
def lay_out(log_poles_DS: Tensor, residues_DS: Tensor, length: int) -> Tensor:
    """The filter of each channel, [D, L]; a mode at a time, because [D, S, L] is too large."""
    time_L = torch.arange(length, device=log_poles_DS.device, dtype=log_poles_DS.dtype)
    filter_DL = log_poles_DS.new_zeros(log_poles_DS.shape[0], length)
    for log_pole_D, residue_D in zip(log_poles_DS.T, residues_DS.T, strict=True):
        filter_DL += residue_D[:, None] * torch.exp(log_pole_D[:, None] * time_L)
    return filter_DL


def draw_for_operator(
    kind: str, num_featurizer_taps: int, width: int, _: int
) -> list[nn.Parameter]:
    return draw_parameters(kind, width, num_featurizer_taps)


def draw_for_conv1d(kind: str, width: int, _: int) -> list[nn.Parameter]:
    return draw_parameters(kind, width, 1)[1:]


def draw_for_fft(width: int, length: int) -> list[nn.Parameter]:
    _, log_poles_DS, residues_DS, skip_D = draw_parameters("LI", width, 1)
    return [nn.Parameter(lay_out(log_poles_DS, residues_DS, length)), skip_D]


def contenders(kind: str) -> list[Contender]:
    run = operator(kind)
    plain = (
        Contender(kind, "PyTorch FFT", run_fft, draw_for_fft)
        if kind == "LI"
        else Contender(kind, "PyTorch conv1d", run_conv1d, partial(draw_for_conv1d, kind))
    )
    return [
        Contender(kind, "fused core", run, partial(draw_for_operator, kind, 1)),
        Contender(kind, "fused", run, partial(draw_for_operator, kind, 3)),
        plain,
    ]


CONTENDERS = [contender for kind in KINDS for contender in contenders(kind)]


@pytest.mark.parametrize("kind", KINDS)
def test_the_plain_rows_compute_the_operator(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.benchmarks.hyena.DEVICE", "cpu")
    z_BLC = torch.randn(2, 40, 96, dtype=torch.float64)
    featurizer, *parameters = (p.detach().double() for p in draw_parameters(kind, 32, 1))
    if kind == "LI":
        log_poles_DS, residues_DS, skip_D = parameters
        plain = run_fft(z_BLC, lay_out(log_poles_DS, residues_DS, 40), skip_D)
    else:
        plain = run_conv1d(z_BLC, *parameters)
    torch.testing.assert_close(plain, operator(kind)(z_BLC, featurizer, *parameters))


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Report]:
    report = Report("kernels.md", ABOUT, otherwise=tmp_path_factory.mktemp("results"))
    yield report
    console.write(str(report))


def measure_copy(num_bytes: int) -> Reading:
    """A device-to-device copy that moves so many bytes, half of them reads."""

    def draw() -> tuple[Tensor, Tensor]:
        source = draw_bf16(num_bytes // 4)
        return source, torch.empty_like(source)

    return measure(lambda source, target: target.copy_(source), draw)


@needs_gpu
@pytest.mark.benchmark
def test_ceilings(report: Report) -> None:
    num_bytes, side = 2**33, 8192
    copied = measure_copy(num_bytes)
    multiplied = measure(torch.matmul, lambda: (draw_bf16(side, side), draw_bf16(side, side)))
    columns = ("copy of 4 GiB, reads and writes together", f"bf16 product of {side:,} x {side:,}")
    terabytes = num_bytes / copied.milliseconds / 1e9
    teraflops = 2 * side**3 / multiplied.milliseconds / 1e9
    report.add("Ceilings", columns, (f"{terabytes:.2f} TB/s", f"{teraflops:.0f} TFLOP/s"))


@needs_gpu
@pytest.mark.benchmark
@pytest.mark.parametrize("contender", CONTENDERS, ids=lambda c: f"{c.kind}-{c.name}")
def test_precision(report: Report, contender: Contender) -> None:
    length, width = 2048, 256
    dy_BLD = draw_bf16(1, length, width)
    inputs = [draw_bf16(1, length, 3 * width).requires_grad_(), *contender.draw(width, length)]
    in_float64 = [x.detach().cpu().double().requires_grad_(x.requires_grad) for x in inputs]
    found = output_and_gradients(contender.run, inputs, dy_BLD)
    true = output_and_gradients(contender.run, in_float64, dy_BLD.cpu().double())
    errors = [
        ((value.cpu() - truth).norm() / truth.norm()).item()
        for value, truth in zip(found, true, strict=True)
    ]
    report.add(
        f"Relative norm error against float64 at D = {width}, L = {length:,}",
        ("operator", "implementation", "output", "worst gradient"),
        (contender.kind, contender.name, f"{errors[0]:.1e}", f"{max(errors[1:]):.1e}"),
    )
    assert not contender.is_ours or max(errors) <= TOLERANCE


def output_and_gradients(
    run: Callable[..., Tensor], inputs: list[Tensor], dy_BLD: Tensor
) -> list[Tensor]:
    y_BLD = run(*inputs)
    leaves = [tensor for tensor in inputs if tensor.requires_grad]
    return [y_BLD.detach(), *torch.autograd.grad(y_BLD, leaves, dy_BLD)]


@needs_gpu
@pytest.mark.benchmark
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("width", WIDTHS)
def test_operators(report: Report, width: int, length: int) -> None:
    table = f"D = {width}, L = {length:,}"
    numbers = 2 * length * width  # bytes of L D bf16 numbers
    floors = measure_copy(4 * numbers), measure_copy(11 * numbers)
    add_row(report, table, ("floor", "copy"), floors, floors)
    failures = []
    for contender in CONTENDERS:
        readings = measure_contender(contender, width, length)
        add_row(report, table, (contender.kind, contender.name), readings, floors)
        failures += [reading.failure for reading in readings if contender.is_ours]
    assert not any(failures)


def measure_contender(contender: Contender, width: int, length: int) -> tuple[Reading, Reading]:
    parameters = contender.draw(width, length)
    return measure_passes(
        lambda z_BLC: contender.run(z_BLC, *parameters),
        parameters,
        inputs=[(1, length, 3 * width)],
        outputs=[(1, length, width)],
        backward=contender.is_ours or length <= LONGEST_PYTORCH_BACKWARD,
    )


@needs_gpu
@pytest.mark.benchmark
@pytest.mark.parametrize("length", LENGTHS[:2])
@pytest.mark.parametrize("width", WIDTHS)
def test_mixers(report: Report, width: int, length: int) -> None:
    table = f"With projections, D = {width}, L = {length:,}"
    narrow, wide = (1, length, width), (1, length, 3 * width)
    project_in, project_out = projections(width)
    floors = measure_passes(
        lambda x_BLD, y_BLD: (project_in(x_BLD), project_out(y_BLD)),
        [*project_in.parameters(), *project_out.parameters()],
        inputs=[narrow, narrow],
        outputs=[wide, narrow],
    )
    add_row(report, table, ("floor", "the projections alone"), floors, floors)
    failures = []
    for kind in KINDS:
        mixer = Mixer(width, kind)
        readings = measure_passes(mixer, mixer.parameters(), inputs=[narrow], outputs=[narrow])
        add_row(report, table, (kind, "fused"), readings, floors)
        failures += [reading.failure for reading in readings]
    assert not any(failures)


def add_row(
    report: Report,
    table: str,
    names: tuple[str, str],
    readings: tuple[Reading, Reading],
    floors: tuple[Reading, Reading],
) -> None:
    columns, row = ["operator", "implementation"], [*names]
    for label, reading, floor in zip(PASSES, readings, floors, strict=True):
        columns += [f"{label} ms", "/ floor", "MiB"]
        row += [str(reading), reading.over(floor), cell(reading.mebibytes, digits=0)]
    report.add(table, columns, row)
