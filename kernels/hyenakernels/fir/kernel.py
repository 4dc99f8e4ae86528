"""Two-stage block convolution on tensor cores, fused with featurizer, gates and skip.

A filter of K taps over blocks of N rows is ceil((K - 1) / N) + 1 Toeplitz tiles,

    y_n = T_0 u_n + T_1 u_(n-1) + ...,    T_m[i, j] = taps[m N + i - j],

shared by the channels of a group. A program processes the blocks of a segment in order and adds
each block's products to the blocks that follow, so a block is read once and its operand is built
once.

B batch, L length, D channels, z [B, L, 3D] = [x2 | x1 | v], F featurizer taps, K taps, G groups.
Source: arXiv:2503.01868, section 3 and appendix A.1.
"""

import triton
import triton.language as tl

from hyenakernels.dispatch import batch_stride
from hyenakernels.fir.tiles import (
    channels_of,
    from_operand,
    gate_input,
    grid,
    part_zeros,
    push,
    stack,
    tiling,
    to_operand,
    toeplitz_tiles,
)
from hyenakernels.gate.rows import featurized, load_featurizer, load_signals


@triton.jit(do_not_specialize=["length", "segment"])
def _forward_kernel(
    z,
    z_past,
    featurizer_taps,
    taps,
    skip,
    past,
    y,
    tail,
    length,
    segment,
    batch_stride,
    row_stride: tl.constexpr,
    D: tl.constexpr,
    F: tl.constexpr,
    K: tl.constexpr,
    W: tl.constexpr,
    PART: tl.constexpr,
    PARTS: tl.constexpr,
    SEGMENTS: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    TILES: tl.constexpr,
    HAS_PAST: tl.constexpr,
    HAS_SKIP: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
):
    C: tl.constexpr = 3 * D
    HALO: tl.constexpr = F - 1
    COUNT: tl.constexpr = ROWS + HALO
    Z_PAST: tl.constexpr = HALO if HAS_PAST else 0
    PAST_ROWS: tl.constexpr = K - 1 if HAS_PAST else 0
    RUNS: tl.constexpr = BLOCK // ROWS
    dtype: tl.constexpr = z.dtype.element_ty
    program, piece, batch = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    z += batch.to(tl.int64) * batch_stride
    y += batch.to(tl.int64) * length * D
    z_past += batch * HALO * C
    past += batch.to(tl.int64) * (K - 1) * D
    tail += batch.to(tl.int64) * (K - 1) * D

    channel, inside = channels_of(program, D, W, PART, PARTS)
    tiles = toeplitz_tiles(taps, program, D // W, K, W, PART, PARTS, BLOCK, TILES, False, OPERAND)
    waiting = part_zeros(TILES - 1, PARTS, BLOCK, SEGMENTS * PART, tl.float32)
    taps_x2, taps_x1, taps_v = load_featurizer(featurizer_taps, channel, inside, D, F)
    if HAS_SKIP:
        skips = tl.load(skip + channel, mask=inside, other=0.0).to(tl.float32)

    run = tl.arange(0, SEGMENTS * RUNS)[:, None]
    line = tl.arange(0, SEGMENTS * BLOCK)[:, None]
    first = (piece * SEGMENTS + run // RUNS) * segment + (run % RUNS) * ROWS + (1 - TILES) * BLOCK
    start = (piece * SEGMENTS + line // BLOCK) * segment
    stop = tl.minimum(start + segment, length)
    x2, x1, v = load_signals(
        z, z_past, first, channel, inside, length, row_stride, D, COUNT, HALO, Z_PAST, COUNT
    )
    blocks = tl.cdiv(tl.minimum(segment, length - piece * SEGMENTS * segment), BLOCK)
    last_start = ((piece + 1) * SEGMENTS - 1) * segment
    for block in range(1 - TILES, blocks):
        after = first + BLOCK
        next_x2, next_x1, next_v = load_signals(
            z, z_past, after, channel, inside, length, row_stride, D, COUNT, HALO, Z_PAST, COUNT
        )
        rows_u = ()
        rows_x2 = ()
        for i in tl.static_range(ROWS):
            u = gate_input(x1, v, taps_x1, taps_v, past, first, channel, inside, i, D, F, PAST_ROWS)
            rows_u = rows_u + (u,)
            rows_x2 = rows_x2 + (featurized(x2, taps_x2, i, F),)
        u = stack(rows_u, ROWS)
        operand = to_operand(u.to(OPERAND), SEGMENTS, BLOCK, PARTS, PART)
        complete, waiting = push(tiles, operand, waiting, TILES, PRECISION)
        convolved = from_operand(complete, SEGMENTS, BLOCK, PARTS, PART)
        if HAS_SKIP:
            convolved += skips * u
        row = start + block * BLOCK + line % BLOCK
        present = (block >= 0) & (row < stop) & inside
        gated = stack(rows_x2, ROWS) * convolved
        tl.store(y + row.to(tl.int64) * D + channel, gated.to(dtype), mask=present)
        if last_start + (block + 1) * BLOCK > length - K + 1:
            # The last K - 1 rows of u are the next past; some may be rows of the given past.
            index = row - (length - K + 1)
            own = ((block >= 0) & (row < stop)) | (row < 0)
            tl.store(tail + index * D + channel, u.to(dtype), mask=own & (index >= 0) & inside)
        first = after
        x2, x1, v = next_x2, next_x1, next_v


def forward(z_BLC, filters, past):
    """Compute y = x2 * (conv(u) + skip * u) with u = x1 * v, all featurized.

    Args:
        z_BLC: The projections, contiguous along C.
        filters: Contiguous `FIRFilters`.
        past: A contiguous `HyenaPast`, or None for zeros.

    Returns:
        y [B, L, D], and the last K - 1 rows of u, both in the dtype of `z`.
    """
    batch, length, _ = z_BLC.shape
    sizes = tiling("forward", z_BLC, filters)
    programs, segment = grid(z_BLC, sizes)
    y_BLD = z_BLC.new_empty(batch, length, sizes["D"])
    tail_BPD = z_BLC.new_empty(batch, sizes["K"] - 1, sizes["D"])
    _forward_kernel[programs](
        z_BLC,
        z_BLC if past is None else past.featurizer_BPC,
        *filters.launch_arguments(),
        z_BLC if past is None else past.inner,
        y_BLD,
        tail_BPD,
        length,
        segment,
        batch_stride(z_BLC),
        HAS_PAST=past is not None,
        HAS_SKIP=filters.skip_D is not None,
        **sizes,
    )
    return y_BLD, tail_BPD
