"""Rows in registers: how the fused kernels load their input, and the featurizer as their prologue.

A thread holds a few neighbouring channels and a run of consecutive rows, so the featurizer's shifts
along time are registers of the same thread: each row is loaded once, and the rows of the next block
are loaded while the current block is computed.

D channels, z [B, L, 3D] = [x2 | x1 | v].
"""

import triton
import triton.language as tl


@triton.jit
def load_taps(taps, channel, inside, NUM_TAPS: tl.constexpr):
    """The taps of each channel as a tuple, tap 0 (of the newest sample) first, in fp32."""
    loaded = ()
    for j in tl.static_range(NUM_TAPS):
        tap = tl.load(taps + channel * NUM_TAPS + j, mask=inside, other=0.0)
        loaded = loaded + (tap.to(tl.float32),)
    return loaded


@triton.jit
def load_featurizer(taps, channel, inside, D: tl.constexpr, NUM_TAPS: tl.constexpr):
    """The featurizer's taps for x2, x1 and v."""
    x2 = load_taps(taps, channel, inside, NUM_TAPS)
    x1 = load_taps(taps + D * NUM_TAPS, channel, inside, NUM_TAPS)
    v = load_taps(taps + 2 * D * NUM_TAPS, channel, inside, NUM_TAPS)
    return x2, x1, v


@triton.jit
def load_rows(
    x,
    past,
    first,
    channel,
    inside,
    length,
    stride: tl.constexpr,
    past_stride: tl.constexpr,
    NUM_ROWS: tl.constexpr,
    BEFORE: tl.constexpr,
    PAST_ROWS: tl.constexpr,
    EARLY: tl.constexpr,
):
    """Rows first - BEFORE .. first - BEFORE + NUM_ROWS - 1 as a tuple, in their stored dtype.

    Rows at or after `length` are zero. Rows before 0 come from the PAST_ROWS rows of `past`, or are
    zero without a past. Only the first EARLY rows of the tuple may lie before 0.
    """
    start = x + first.to(tl.int64) * stride + channel
    rows = ()
    for i in tl.static_range(NUM_ROWS):
        row = first + (i - BEFORE) + tl.zeros_like(channel)
        # One unsigned comparison tests both 0 <= row and row < length.
        present = (row.to(tl.uint32) < length) & inside
        values = tl.load(start + (i - BEFORE) * stride, mask=present, other=0.0)
        if PAST_ROWS > 0 and i < EARLY:
            in_past = (row < 0) & (row >= -PAST_ROWS)
            earlier = tl.load(
                past + (row + PAST_ROWS) * past_stride + channel,
                mask=in_past & inside,
                other=0.0,
            )
            values = tl.where(in_past, earlier, values)
        rows = rows + (values,)
    return rows


@triton.jit
def load_gates(
    z,
    past,
    first,
    channel,
    inside,
    length,
    stride: tl.constexpr,
    D: tl.constexpr,
    NUM_ROWS: tl.constexpr,
    BEFORE: tl.constexpr,
    PAST_ROWS: tl.constexpr,
    EARLY: tl.constexpr,
):
    """Load the same rows of x1 and v, see `load_rows`."""
    C: tl.constexpr = 3 * D
    z += D
    past += D
    x1 = load_rows(
        z, past, first, channel, inside, length, stride, C, NUM_ROWS, BEFORE, PAST_ROWS, EARLY
    )
    z += D
    past += D
    v = load_rows(
        z, past, first, channel, inside, length, stride, C, NUM_ROWS, BEFORE, PAST_ROWS, EARLY
    )
    return x1, v


@triton.jit
def load_signals(
    z,
    past,
    first,
    channel,
    inside,
    length,
    stride: tl.constexpr,
    D: tl.constexpr,
    NUM_ROWS: tl.constexpr,
    BEFORE: tl.constexpr,
    PAST_ROWS: tl.constexpr,
    EARLY: tl.constexpr,
):
    """Load the same rows of x2, x1 and v, see `load_rows`."""
    C: tl.constexpr = 3 * D
    x2 = load_rows(
        z, past, first, channel, inside, length, stride, C, NUM_ROWS, BEFORE, PAST_ROWS, EARLY
    )
    x1, v = load_gates(
        z, past, first, channel, inside, length, stride, D, NUM_ROWS, BEFORE, PAST_ROWS, EARLY
    )
    return x2, x1, v


@triton.jit
def featurized(rows, taps, i: tl.constexpr, NUM_TAPS: tl.constexpr):
    """Row NUM_TAPS - 1 + `i` of `rows` after the featurizer, in fp32.

    Sums are explicit fma wherever the compiler could fuse either of two products: a row must have
    the same bits in every block and loop that computes it.
    """
    y = taps[0] * rows[i + NUM_TAPS - 1].to(tl.float32)
    for j in tl.static_range(1, NUM_TAPS):
        y = tl.fma(taps[j], rows[i + NUM_TAPS - 1 - j].to(tl.float32), y)
    return y


@triton.jit
def zero_rows(COUNT: tl.constexpr, BLOCK_D: tl.constexpr):
    """COUNT zero accumulators for each channel."""
    zeros = ()
    for _ in tl.static_range(COUNT):
        zeros = zeros + (tl.zeros((BLOCK_D,), tl.float32),)
    return zeros
