"""Launch shapes of the kernels: a small measured table for each GPU architecture, and a fallback.

Nothing is tuned at run time; Triton keeps compiled kernels in its cache on disk.
"""

from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch


@dataclass(frozen=True)
class FirLaunch:
    """Sizes of the block convolution.

    Attributes:
        parts: Parts of at most 16 channels of a filter group that a program processes.
        tiles: Tiles of 16 rows of a block, 1 or 2.
        rows: Consecutive rows per thread, a divisor of the block.
        num_warps: Warps per program; on tensor cores each has a part to itself.
        resident: Programs that a multiprocessor of an H200 holds at the same time.
    """

    parts: int
    tiles: int
    rows: int
    num_warps: int
    resident: int


@dataclass(frozen=True)
class RowLaunch:
    """Sizes of the kernels that scan the rows in order.

    Attributes:
        block_d: Channels per program.
        rows: Rows per thread with up to 16 modes, a divisor of the segment.
        num_warps: Warps per program.
    """

    block_d: int
    rows: int
    num_warps: int


@dataclass(frozen=True)
class NormLaunch:
    """Sizes of the kernels that process whole rows.

    Attributes:
        channels: Channels per thread.
        warps: Warps of all programs on a multiprocessor, as many as its registers allow.
    """

    channels: int
    warps: int


@dataclass(frozen=True)
class LinearLaunch:
    """Sizes of the linear layers of one row.

    Attributes:
        block_o: Output channels per program.
        block_i: Input channels per iteration.
        num_warps: Warps per program.
    """

    block_o: int
    block_i: int
    num_warps: int


@dataclass(frozen=True)
class PooledLaunch:
    """Sizes of the attention to a pool.

    Attributes:
        block_l: Queries per program.
        block_t: Keys per iteration.
        num_warps: Warps per program.
        num_stages: Iterations whose loads are under way.
    """

    block_l: int
    block_t: int
    num_warps: int
    num_stages: int


@dataclass(frozen=True)
class Float8LinearLaunch:
    """Sizes of the linear layers of one row with weights in FP8.

    Attributes:
        block_o: Output channels per iteration.
        block_w: Words of a row, of four weights each, that the threads read together.
        num_warps: Warps per program.
        programs: Programs at most.
    """

    block_o: int
    block_w: int
    num_warps: int
    programs: int


FirPass = Literal["forward", "input gradient", "filter gradient"]
ModalPass = Literal["forward", "adjoint", "parameters", "input gradient"]
NormPass = Literal["forward", "backward"]

MAX_SHORT_TAPS = 16  # up to here sums and tiles fill few registers
LONGEST_SEGMENT = 2560  # rows; short enough that the last programs leave few multiprocessors idle

# Measured on an H200: tests/benchmarks/results/kernels_log.md. They fit every GPU.
_SHORT_FIR: dict[FirPass, FirLaunch] = {
    "forward": FirLaunch(parts=8, tiles=2, rows=8, num_warps=8, resident=2),
    "input gradient": FirLaunch(parts=4, tiles=2, rows=8, num_warps=4, resident=2),
}
_LONG_FIR: dict[FirPass, FirLaunch] = {
    "forward": FirLaunch(parts=4, tiles=2, rows=8, num_warps=4, resident=2),
    "input gradient": FirLaunch(parts=4, tiles=1, rows=4, num_warps=4, resident=2),
    "filter gradient": FirLaunch(parts=4, tiles=2, rows=8, num_warps=4, resident=2),
}
# fp32, without tensor cores.
_FULL_FIR: dict[FirPass, FirLaunch] = {
    "forward": FirLaunch(parts=4, tiles=1, rows=4, num_warps=4, resident=2),
    "input gradient": FirLaunch(parts=4, tiles=1, rows=4, num_warps=8, resident=1),
    "filter gradient": FirLaunch(parts=4, tiles=1, rows=4, num_warps=8, resident=1),
}
# Measured on an H200 and an H100 (compute capability 9.0): tests/benchmarks/results/kernels.md.
_MODAL: dict[tuple[int, int], dict[ModalPass, RowLaunch]] = {
    (9, 0): {
        "forward": RowLaunch(block_d=128, rows=8, num_warps=2),
        "adjoint": RowLaunch(block_d=64, rows=8, num_warps=1),
        "parameters": RowLaunch(block_d=64, rows=8, num_warps=2),
        "input gradient": RowLaunch(block_d=128, rows=4, num_warps=2),
    }
}
# Measured on an H100 at D = 1,920, 4,096 and 8,192: within 3 % of the best of twelve choices.
_NORM: dict[NormPass, NormLaunch] = {
    "forward": NormLaunch(channels=32, warps=24),
    "backward": NormLaunch(channels=16, warps=16),
}

# Small tiles that fit every GPU Triton supports, fp32, and the interpreter.
_ANY_ROWS = RowLaunch(block_d=64, rows=4, num_warps=2)


def parts_of(total: int, size: int) -> int:
    """How many parts of a size cover a total; `triton.cdiv` costs Python twenty times as much."""
    return -(-total // size)


def power_of_two(least: int) -> int:
    """The smallest power of two that is not below `least`, 1 for 0."""
    return 1 << max(least - 1, 0).bit_length()


@cache
def architecture() -> tuple[int, int]:
    """The compute capability of the GPU, (0, 0) without one."""
    return torch.cuda.get_device_capability() if torch.cuda.is_available() else (0, 0)


@cache
def _multiprocessors() -> int:
    if not torch.cuda.is_available():
        return 1
    return torch.cuda.get_device_properties().multi_processor_count


def fir_launch(which: FirPass, num_taps: int, dtype: torch.dtype) -> FirLaunch:
    """The sizes of one pass of the FIR; short filters have no filter gradient of its own."""
    if dtype == torch.float32:
        return _FULL_FIR[which]
    return (_SHORT_FIR if num_taps <= MAX_SHORT_TAPS else _LONG_FIR)[which]


def fir_segment(programs: int, length: int, resident: int) -> int:
    """The number of rows of a segment, which one program of the FIR processes in order.

    Each segment takes `programs` programs, for all channels and sequences. As many segments as fill
    the GPU, with `resident` programs on a multiprocessor, a whole number of times. Each of them
    reads the rows before its first block again, so they are not short. Outputs and input gradients
    have the same bits however the sequence is cut.
    """
    places = resident * _multiprocessors()
    waves = parts_of(parts_of(length, LONGEST_SEGMENT) * programs, places)
    rows = parts_of(length, max(waves * places // programs, 1))
    return max(parts_of(rows, 32) * 32, 256)


def modal_segment(width: int) -> int:
    """The number of rows of a segment of the modal scan: fewer rows for fewer channels.

    The scan rounds at the ends of segments, so their length must not depend on that of the sequence
    or on the batch: a result never depends on the other sequences in the batch.
    """
    if width >= 4096:
        return 512
    return 256 if width >= 2048 else 128


def modal_launch(which: ModalPass, dtype: torch.dtype) -> RowLaunch:
    """The sizes of one pass of the modal scan; fp32, whose poles carry a remainder, is small."""
    measured = _MODAL.get(architecture())
    return _ANY_ROWS if measured is None or dtype == torch.float32 else measured[which]


@cache
def norm_launch(which: NormPass, width: int) -> tuple[int, int]:
    """The warps per program and the number of programs, for every GPU and dtype.

    There are as many programs as can run at the same time, so that none waits for another.
    """
    launch = _NORM[which]
    num_warps = 1
    while num_warps * 32 * launch.channels < width:
        num_warps *= 2
    return num_warps, max(launch.warps // num_warps, 1) * _multiprocessors()


def linear_launch(inputs: int, *, gated: bool) -> LinearLaunch:
    """The sizes of a layer with `inputs` input channels, and with two weights where it is gated.

    The fastest of thirteen choices measured on an H100 for 1B and 7B.
    """
    if gated and inputs <= 2048:
        return LinearLaunch(block_o=2, block_i=2048, num_warps=8)
    return LinearLaunch(block_o=2, block_i=1024, num_warps=4)


def pooled_launch(dtype: torch.dtype, width: int) -> PooledLaunch:
    """The sizes of the attention to a pool, for heads of `width` channels.

    fp32 runs without tensor cores and takes small tiles, and so do heads that fill more registers.
    They decide the order of the sums, so nothing else but the GPU may decide them. `block_l` is a
    multiple of `block_t`.
    """
    if dtype == torch.float32 or width > 128:
        return PooledLaunch(block_l=32, block_t=32, num_warps=4, num_stages=1)
    stages = 3 if architecture() >= (9, 0) else 2  # as many as the shared memory holds
    return PooledLaunch(block_l=128, block_t=64, num_warps=8, num_stages=stages)


@cache
def float8_linear_launch(inputs: int, *, gated: bool) -> Float8LinearLaunch:
    """The sizes of a layer with `inputs` input channels, for every GPU.

    A multiprocessor runs 16 warps; the longer the rows, the more of them share one, because their
    registers hold it. Measured on an H200 for 7B.
    """
    num_warps = 4 if inputs <= 4096 else 8 if inputs <= 16_384 else 16
    programs = 16 // num_warps * _multiprocessors()
    block_o = 4 if num_warps == 4 else 2
    return Float8LinearLaunch(
        block_o // 2 if gated else block_o, 128 * num_warps, num_warps, programs
    )
