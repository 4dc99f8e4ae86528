"""Launch shapes of the kernels: a small measured table per GPU architecture, and a fallback.

Nothing is searched at run time; what Triton compiles, it keeps in its cache on disk.
"""

from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch


@dataclass(frozen=True)
class FirLaunch:
    """How the two-stage block convolution is cut.

    Attributes:
        block: Rows of a Toeplitz tile.
        rows: Rows a thread holds; they divide `block`.
        parts: Groups of channels a program takes, cut to 16 channels at most.
        num_warps: Warps a program.
    """

    block: int
    rows: int
    parts: int
    num_warps: int


@dataclass(frozen=True)
class RowLaunch:
    """How the kernels that walk down the rows are cut.

    Attributes:
        block_d: Channels a program.
        rows: Rows a thread holds, for up to 16 modes; they divide the segment.
        num_warps: Warps a program.
    """

    block_d: int
    rows: int
    num_warps: int


@dataclass(frozen=True)
class NormLaunch:
    """How the kernels that walk over whole rows are cut.

    Attributes:
        channels: A thread.
        warps: A multiprocessor, in all its programs: as many as registers allow.
    """

    channels: int
    warps: int


@dataclass(frozen=True)
class LinearLaunch:
    """How linear layers of one row are cut.

    Attributes:
        block_o: Output channels a program.
        block_i: Input channels at a time.
        num_warps: Warps a program.
    """

    block_o: int
    block_i: int
    num_warps: int


FirPass = Literal["forward", "input gradient", "filter gradient"]
ModalPass = Literal["forward", "adjoint", "parameters", "input gradient"]
NormPass = Literal["forward", "backward"]

SHORT = 16  # taps up to which small blocks, which many groups share, are the fastest
NARROWEST = 8  # channels of a group that the tiles for longer filters take

# Measured on an H200 and an H100 (compute capability 9.0): tests/benchmarks/results/kernels.md.
_SHORT_FIR: dict[tuple[int, int], dict[FirPass, FirLaunch]] = {
    (9, 0): {
        "forward": FirLaunch(block=16, rows=8, parts=8, num_warps=4),
        "input gradient": FirLaunch(block=16, rows=8, parts=8, num_warps=4),
        "filter gradient": FirLaunch(block=32, rows=8, parts=4, num_warps=4),
    }
}
_LONG_FIR: dict[tuple[int, int], dict[FirPass, FirLaunch]] = {
    (9, 0): {
        "forward": FirLaunch(block=64, rows=4, parts=1, num_warps=4),
        "input gradient": FirLaunch(block=64, rows=4, parts=1, num_warps=4),
        "filter gradient": FirLaunch(block=64, rows=4, parts=1, num_warps=4),
    }
}
_MODAL: dict[tuple[int, int], dict[ModalPass, RowLaunch]] = {
    (9, 0): {
        "forward": RowLaunch(block_d=128, rows=8, num_warps=2),
        "adjoint": RowLaunch(block_d=64, rows=8, num_warps=1),
        "parameters": RowLaunch(block_d=64, rows=8, num_warps=2),
        "input gradient": RowLaunch(block_d=128, rows=4, num_warps=2),
    }
}
# Measured on an H100 at D = 1,920, 4,096 and 8,192: within 3 % of the best of twelve everywhere.
_NORM: dict[NormPass, NormLaunch] = {
    "forward": NormLaunch(channels=32, warps=24),
    "backward": NormLaunch(channels=16, warps=16),
}

# Small tiles that fit every GPU Triton knows, fp32, and the interpreter.
_ANY_SHORT_FIR = FirLaunch(block=16, rows=4, parts=4, num_warps=4)
_ANY_LONG_FIR = FirLaunch(block=32, rows=4, parts=1, num_warps=4)
_ANY_ROWS = RowLaunch(block_d=64, rows=4, num_warps=2)


@cache
def architecture() -> tuple[int, int]:
    """Compute capability of the GPU, (0, 0) without one."""
    return torch.cuda.get_device_capability() if torch.cuda.is_available() else (0, 0)


@cache
def _multiprocessors() -> int:
    if not torch.cuda.is_available():
        return 1
    return torch.cuda.get_device_properties().multi_processor_count


def fir_launch(which: FirPass, num_taps: int, dtype: torch.dtype, part: int) -> FirLaunch:
    """For a pass of the FIR over groups cut to `part` channels.

    Products of fp32 run without tensor cores, on the small tiles. So do long filters of very narrow
    groups, whose products Triton 3.6 cannot lay out on the large ones.
    """
    is_short = num_taps <= SHORT
    table, small = (_SHORT_FIR, _ANY_SHORT_FIR) if is_short else (_LONG_FIR, _ANY_LONG_FIR)
    measured = table.get(architecture())
    if measured is None or dtype == torch.float32 or (part < NARROWEST and not is_short):
        return small
    return measured[which]


def fir_segment(programs: int, length: int) -> int:
    """Rows that a program of the FIR walks through, of which `programs` run for each.

    As long as the GPU stays full: a segment first reads the rows its first block needs, again. The
    sums of outputs and input gradients are the same bits however the sequence is cut.
    """
    segment = 2048
    while segment > 256 and programs * -(-length // segment) < 4 * _multiprocessors():
        segment //= 2
    return segment


def modal_segment(width: int) -> int:
    """Rows that a program of the modal scan walks through: fewer where few channels fill a GPU.

    The scan rounds at its segments, so they are the same for every length and batch: a result never
    depends on what stands beside it.
    """
    if width >= 4096:
        return 512
    return 256 if width >= 2048 else 128


def modal_launch(which: ModalPass, dtype: torch.dtype) -> RowLaunch:
    """For a pass of the modal scan. In fp32, where poles have rests, on the small tiles."""
    measured = _MODAL.get(architecture())
    return _ANY_ROWS if measured is None or dtype == torch.float32 else measured[which]


def norm_launch(which: NormPass, width: int) -> tuple[int, int]:
    """Warps a program, and programs; for every GPU and dtype.

    Programs are as many as run together, so that none waits for another to end.
    """
    launch = _NORM[which]
    num_warps = 1
    while num_warps * 32 * launch.channels < width:
        num_warps *= 2
    return num_warps, max(launch.warps // num_warps, 1) * _multiprocessors()


def linear_launch(inputs: int, *, gated: bool) -> LinearLaunch:
    """For a layer of so many input channels, with two weights where it is gated.

    Measured on an H100 for 1B and 7B, among thirteen cuts.
    """
    if gated and inputs <= 2048:
        return LinearLaunch(block_o=2, block_i=2048, num_warps=8)
    return LinearLaunch(block_o=2, block_i=1024, num_warps=4)
