"""The modal convolution in products on tensor cores: one pass over the sequence, for bf16.

With chunks of N = 16 rows, S the state before a chunk and t, j = 0 .. N - 1,

    y[t] = sum_{j <= t} h[t - j] u[j] + sum_s R_s exp(p_s (t + 1)) S_s
    S_s  <- exp(p_s N) S_s + sum_j exp(p_s (N - 1 - j)) u[j]

are three products of [N, N] matrices for each channel. A program keeps the states of its channels
and processes all rows in order, a block of N chunks at a time: the products of a channel take all
chunks of a block at once, and between them the states pass from chunk to chunk in registers.

States, and the matrices into and out of them, are sums of two bf16 numbers, a value and the
remainder of rounding it: modes of one filter may cancel each other, and then the rounding of each
would not be small beside their sum. The filter of a chunk itself is rounded once, after its sum.

B batch, L length, D channels, z [B, L, 3D] = [x2 | x1 | v], F featurizer taps, S modes, N segments.
"""

import torch
import triton
import triton.language as tl

from hyenakernels.dispatch import batch_stride
from hyenakernels.fir.tiles import TILE, stack
from hyenakernels.gate.rows import featurized, load_featurizer, load_signals
from hyenakernels.launch import modal_segment, parts_of

BLOCK = tl.constexpr(256)  # rows: 16 chunks


@triton.jit
def _halves(tensors):
    halves = ()
    for i in tl.static_range(len(tensors)):
        first, second = tl.split(tensors[i])
        halves = halves + (first, second)
    return halves


@triton.jit
def _chunks_of(x, CHANNELS: tl.constexpr):
    """[CHANNELS, chunks, modes] as a tuple of chunks [CHANNELS, modes], first chunk first."""
    x = tl.reshape(tl.permute(x, (0, 2, 1)), (CHANNELS, TILE, 2, 2, 2, 2))
    x = tl.permute(x, (0, 1, 5, 4, 3, 2))  # split takes the last axis, here the highest bit
    return _halves(_halves(_halves(_halves((x,)))))


@triton.jit
def _pairs(tensors):
    pairs = ()
    for i in tl.static_range(len(tensors) // 2):
        pairs = pairs + (tl.join(tensors[2 * i], tensors[2 * i + 1]),)
    return pairs


@triton.jit
def _of_chunks(chunks, CHANNELS: tl.constexpr):
    """The inverse of `_chunks_of`."""
    x = _pairs(_pairs(_pairs(_pairs(chunks))))[0]
    x = tl.reshape(tl.permute(x, (0, 1, 5, 4, 3, 2)), (1, CHANNELS, TILE, TILE))
    # The sum of one term hides the joins, as in `fir.tiles.to_operands`.
    return tl.permute(tl.sum(x, axis=0), (0, 2, 1))


@triton.jit
def _two_parts(x, OPERAND: tl.constexpr):
    """`x` as a number in OPERAND and the remainder of rounding it."""
    rounded = x.to(OPERAND)
    return rounded, (x - rounded.to(tl.float32)).to(OPERAND)


@triton.jit
def _multiply(x, y, start=None):
    return tl.dot(x, y, start, input_precision="ieee")


@triton.jit
def _matrices(
    log_poles,
    residues,
    skip,
    channel,
    D: tl.constexpr,
    S: tl.constexpr,
    CHANNELS: tl.constexpr,
    HAS_SKIP: tl.constexpr,
    OPERAND: tl.constexpr,
):
    """Into states [row, mode], out of states [mode, row], Toeplitz [row, row], and exp(16 p).

    They are made with two axes, so that Triton keeps the rows of a channel together in shared
    memory.
    """
    T: tl.constexpr = CHANNELS * TILE
    i = tl.arange(0, TILE)
    at = channel[:, None] * S + i[None, :]
    there = (channel[:, None] < D) & (i[None, :] < S)
    poles = tl.load(log_poles + at, mask=there, other=0.0).to(tl.float32)
    weights = tl.load(residues + at, mask=there, other=0.0).to(tl.float32)
    into = tl.exp(poles[:, None, :] * (tl.arange(0, TILE) * -1 + (TILE - 1))[None, :, None])
    decays = weights[:, :, None] * tl.exp(poles[:, :, None] * i[None, None, :])
    out_of = weights[:, :, None] * tl.exp(poles[:, :, None] * (i + 1)[None, None, :])
    taps = tl.sum(decays, axis=1)
    if HAS_SKIP:
        skips = tl.load(skip + channel, mask=channel < D, other=0.0).to(tl.float32)
        taps += tl.where(i == 0, 1.0, 0.0)[None, :] * skips[:, None]
    lag = tl.broadcast_to(i[None, :] - tl.arange(0, T)[:, None] % TILE, (T, TILE))
    taps = tl.reshape(tl.broadcast_to(taps[:, None, :], (CHANNELS, TILE, TILE)), (T, TILE))
    toeplitz = tl.gather(taps, tl.maximum(lag, 0), axis=1)
    toeplitz = tl.where(lag >= 0, toeplitz, 0.0).to(OPERAND)
    toeplitz = tl.reshape(toeplitz, (CHANNELS, TILE, TILE))
    return _two_parts(into, OPERAND), _two_parts(out_of, OPERAND), toeplitz, tl.exp(poles * TILE)


@triton.jit(do_not_specialize=["length", "num_segments"])
def _product_kernel(
    z,
    z_past,
    featurizer_taps,
    log_poles,
    residues,
    skip,
    initial,
    y,
    final,
    starts,
    length,
    num_segments,
    batch_stride,
    row_stride: tl.constexpr,
    D: tl.constexpr,
    F: tl.constexpr,
    S: tl.constexpr,
    SEGMENT: tl.constexpr,
    CHANNELS: tl.constexpr,
    ROWS: tl.constexpr,
    HAS_SKIP: tl.constexpr,
    LOW: tl.constexpr,
    OPERAND: tl.constexpr,
):
    """All rows of y, the states before each segment, and the state after the last whole block."""
    HALO: tl.constexpr = F - 1
    program, batch = tl.program_id(0), tl.program_id(1)
    z += batch.to(tl.int64) * batch_stride
    y += batch.to(tl.int64) * length * D
    z_past += batch * HALO * 3 * D
    starts += batch.to(tl.int64) * num_segments * S * D
    lane = program * CHANNELS + tl.arange(0, CHANNELS)
    channel = lane[None, :]
    inside = channel < D
    mode = tl.arange(0, TILE)[None, :]
    of_state = mode * D + lane[:, None]
    known = (mode < S) & (lane[:, None] < D)

    taps_x2, taps_x1, taps_v = load_featurizer(featurizer_taps, channel, inside, D, F)
    into, out_of, toeplitz, decay = _matrices(
        log_poles, residues, skip, lane, D, S, CHANNELS, HAS_SKIP, OPERAND
    )
    by_channel = (batch * D + lane[:, None]) * S + mode
    state = tl.load(initial + by_channel, mask=known, other=0.0)

    first = tl.arange(0, BLOCK // ROWS)[:, None] * ROWS
    line = tl.arange(0, BLOCK)[:, None]
    signals = load_signals(
        z, z_past, first, channel, inside, length, row_stride, D, ROWS + HALO, HALO, HALO, HALO
    )
    for begin in range(0, length, BLOCK):
        following = load_signals(
            z, z_past, first + BLOCK, channel, inside, length, row_stride, D, ROWS + HALO, HALO, 0, 0
        )
        if begin % SEGMENT == 0:
            tl.store(starts + of_state, state, mask=known)
            starts += S * D
        if begin + BLOCK > length:
            tl.store(final + batch * S * D + of_state, state, mask=known)
        x2, x1, v = signals
        rows_u = ()
        rows_x2 = ()
        for i in tl.static_range(ROWS):
            u = featurized(x1, taps_x1, i, F) * featurized(v, taps_v, i, F)
            rows_u = rows_u + (u,)
            rows_x2 = rows_x2 + (featurized(x2, taps_x2, i, F),)
        u = tl.reshape(stack(rows_u, ROWS).to(OPERAND), (1, TILE, TILE, CHANNELS))
        u = tl.permute(tl.sum(u, axis=0), (2, 0, 1))
        added = _multiply(u, into[0])
        if LOW:
            added = _multiply(u, into[1], added)
        added = _chunks_of(added, CHANNELS)
        states = ()
        for c in tl.static_range(TILE):
            states = states + (state,)
            state = tl.fma(decay, state, added[c])
        high, low = _two_parts(_of_chunks(states, CHANNELS), OPERAND)
        out = _multiply(u, toeplitz)
        if LOW:
            out = _multiply(high, out_of[1], _multiply(low, out_of[0], out))
        out = tl.permute(_multiply(high, out_of[0], out), (1, 2, 0))
        out = tl.reshape(out, (BLOCK, CHANNELS))
        gated = stack(rows_x2, ROWS) * out
        row = begin + line
        at = y + row.to(tl.int64) * D + channel
        tl.store(at, gated.to(y.dtype.element_ty), mask=(row < length) & inside)
        first += BLOCK
        signals = following
    if length % BLOCK == 0:
        tl.store(final + batch * S * D + of_state, state, mask=known)


def forward(z_BLC, filters, z_past_BPC, state_BSD):
    """`kernel.forward`, but for the second result: the state after the last whole block of rows."""
    batch, length, _ = z_BLC.shape
    width, num_modes = filters.log_poles_DS.shape
    segment, channels = modal_segment(width), 32
    num_segments = parts_of(length, segment)
    y_BLD = z_BLC.new_empty(batch, length, width)
    whole_BSD = torch.empty_like(state_BSD)
    starts_BNSD = state_BSD.new_empty(batch, num_segments, num_modes, width)
    _product_kernel[(parts_of(width, channels), batch)](
        z_BLC,
        z_past_BPC,
        *filters.launch_arguments(),
        state_BSD,
        y_BLD,
        whole_BSD,
        starts_BNSD,
        length,
        num_segments,
        batch_stride(z_BLC),
        row_stride=z_BLC.stride(1),
        D=width,
        F=filters.featurizer_taps_CF.shape[1],
        S=num_modes,
        SEGMENT=segment,
        CHANNELS=channels,
        ROWS=8,
        HAS_SKIP=filters.skip_D is not None,
        OPERAND=tl.float32 if triton.knobs.runtime.interpret else tl.bfloat16,
        num_warps=8,
        num_stages=1,
    )
    return y_BLD, whole_BSD, starts_BNSD
