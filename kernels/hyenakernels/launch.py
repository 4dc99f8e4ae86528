"""Launch parameters of the kernels: a small table of measured values, and fallbacks.

There is no autotuning at run time; Triton keeps compiled kernels in its cache on disk.
"""

from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch


@dataclass(frozen=True)
class FirLaunch:
    """Launch parameters of the block convolution.

    Attributes:
        parts: Parts per program; a part is at most 16 channels of one filter group.
        tiles: Tiles of 16 rows per block, 1 or 2.
        rows: Consecutive rows per thread, a divisor of the rows of a block.
        num_warps: Warps per program; with tensor cores, each works on a part of its own.
        resident: Programs resident on an SM at the same time, on an H200.
    """

    parts: int
    tiles: int
    rows: int
    num_warps: int
    resident: int


@dataclass(frozen=True)
class RowLaunch:
    """Launch parameters of the modal scan, whose threads process rows in order.

    Attributes:
        block_d: Channels per program.
        rows: Rows per thread and iteration with up to 16 modes, a divisor of the segment.
        num_warps: Warps per program.
    """

    block_d: int
    rows: int
    num_warps: int


@dataclass(frozen=True)
class NormLaunch:
    """Launch parameters of the norms, whose programs process whole rows.

    Attributes:
        channels: Channels per thread.
        warps: Warps per SM over all resident programs, as many as the registers allow.
    """

    channels: int
    warps: int


@dataclass(frozen=True)
class LinearLaunch:
    """Launch parameters of the linear layers of a single row.

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
    """Launch parameters of the attention to a pool of keys and values.

    Attributes:
        block_l: Queries per program.
        block_t: Keys per iteration.
        num_warps: Warps per program.
        num_stages: Stages of software pipelining: iterations whose loads are in flight.
    """

    block_l: int
    block_t: int
    num_warps: int
    num_stages: int


@dataclass(frozen=True)
class Float8LinearLaunch:
    """Launch parameters of the linear layers of a single row with weights in FP8.

    Attributes:
        block_o: Output channels per iteration.
        block_w: 32-bit words, of four weights each, that a program loads of a row at once.
        num_warps: Warps per program.
        programs: The maximum number of programs.
    """

    block_o: int
    block_w: int
    num_warps: int
    programs: int


FirPass = Literal["forward", "input gradient", "filter gradient"]
ModalPass = Literal["forward", "adjoint", "parameters", "input gradient"]
NormPass = Literal["forward", "backward"]

MAX_SHORT_TAPS = 16  # up to here, accumulators and tiles take few registers
LONGEST_SEGMENT = 2560  # rows; short enough that the last wave leaves few SMs idle

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

# Small tiles, for fp32, the interpreter and every GPU that Triton supports.
_ANY_ROWS = RowLaunch(block_d=64, rows=4, num_warps=2)


def cdiv(a: int, b: int) -> int:
    """Ceiling division; `triton.cdiv` takes twenty times as long when called from Python."""
    return -(-a // b)


def next_power_of_two(least: int) -> int:
    """The smallest power of two >= `least`; 1 for 0."""
    return 1 << max(least - 1, 0).bit_length()


@cache
def architecture() -> tuple[int, int]:
    """The compute capability of the GPU, (0, 0) without one."""
    return torch.cuda.get_device_capability() if torch.cuda.is_available() else (0, 0)


@cache
def _num_sms() -> int:
    if not torch.cuda.is_available():
        return 1
    return torch.cuda.get_device_properties().multi_processor_count


def fir_launch(which: FirPass, num_taps: int, dtype: torch.dtype) -> FirLaunch:
    """Parameters of one pass of the FIR; short filters have no separate "filter gradient" pass."""
    if dtype == torch.float32:
        return _FULL_FIR[which]
    return (_SHORT_FIR if num_taps <= MAX_SHORT_TAPS else _LONG_FIR)[which]


def fir_segment(programs: int, length: int, resident: int) -> int:
    """The number of rows of a segment, which one program of the FIR processes in order.

    Each segment takes `programs` programs, for all channels and sequences. The number of segments
    is such that all programs together are a whole number of full waves, with `resident` programs
    per SM. Segments are not short, because each reads the rows before its first block again.
    Outputs and input gradients have the same bits however the sequence is cut.
    """
    wave = resident * _num_sms()
    num_waves = cdiv(cdiv(length, LONGEST_SEGMENT) * programs, wave)
    rows = cdiv(length, max(num_waves * wave // programs, 1))
    return max(cdiv(rows, 32) * 32, 256)


def modal_segment(width: int) -> int:
    """The number of rows of a segment of the modal scan: fewer rows for fewer channels.

    The scan rounds at the ends of segments, so their length must not depend on that of the sequence
    or on the batch: a result never depends on the other sequences in the batch.
    """
    if width >= 4096:
        return 512
    return 256 if width >= 2048 else 128


def modal_launch(which: ModalPass, dtype: torch.dtype) -> RowLaunch:
    """Parameters of one pass of the modal scan; fp32, with two-part poles, takes small tiles."""
    measured = _MODAL.get(architecture())
    return _ANY_ROWS if measured is None or dtype == torch.float32 else measured[which]


@cache
def norm_launch(which: NormPass, width: int) -> tuple[int, int]:
    """The warps per program and the number of programs, for every GPU and dtype.

    The grid is persistent: as many programs as are resident at the same time.
    """
    launch = _NORM[which]
    num_warps = 1
    while num_warps * 32 * launch.channels < width:
        num_warps *= 2
    return num_warps, max(launch.warps // num_warps, 1) * _num_sms()


def linear_launch(inputs: int, *, gated: bool) -> LinearLaunch:
    """Parameters for a layer with `inputs` input channels, and with two weights if it is gated.

    The fastest of thirteen choices measured on an H100 for 1B and 7B.
    """
    if gated and inputs <= 2048:
        return LinearLaunch(block_o=2, block_i=2048, num_warps=8)
    return LinearLaunch(block_o=2, block_i=1024, num_warps=4)


def pooled_launch(dtype: torch.dtype, width: int) -> PooledLaunch:
    """Parameters of the attention to a pool, for heads of `width` channels.

    fp32, which runs without tensor cores, takes small tiles, and so do wide heads, which need more
    registers. Tile sizes decide the order of summation, so they depend on nothing else but the GPU:
    not on the batch or on lengths. `block_l` is a multiple of `block_t`.
    """
    if dtype == torch.float32 or width > 128:
        return PooledLaunch(block_l=32, block_t=32, num_warps=4, num_stages=1)
    stages = 3 if architecture() >= (9, 0) else 2  # as many as fit the shared memory
    return PooledLaunch(block_l=128, block_t=64, num_warps=8, num_stages=stages)


@cache
def float8_linear_launch(inputs: int, *, gated: bool) -> Float8LinearLaunch:
    """Parameters for a layer with `inputs` input channels, for every GPU.

    There are 16 warps per SM; the longer the rows, the more warps a program has, because the row of
    x is held in their registers. Measured on an H200 for 7B.
    """
    num_warps = 4 if inputs <= 4096 else 8 if inputs <= 16_384 else 16
    programs = 16 // num_warps * _num_sms()
    block_o = 4 if num_warps == 4 else 2
    return Float8LinearLaunch(
        block_o // 2 if gated else block_o, 128 * num_warps, num_warps, programs
    )
