"""Filter gradients of the fused two-stage block convolution: from the first row to the last.

The pass is that of forward. It also sums Gram tiles G_m = sum_n g_n u_(n-m)^T, g = dy * x2, whose
diagonals are the gradients of the taps. Each program writes its share, and the shares are added in
a fixed order. Filters that are frozen cost none of this.

B batch, L length, D channels, z [B, L, 3D] = [x2 | x1 | v], F featurizer taps, K taps, G groups.
"""

import torch
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
from hyenakernels.gate.rows import featurized, load_featurizer, load_rows, load_signals
from hyenakernels.launch import parts_of


@triton.jit(do_not_specialize=["length", "segment"])
def _filter_gradient_kernel(
    z,
    z_past,
    featurizer_taps,
    taps,
    skip,
    past,
    dy,
    dx2,
    partial_taps,
    partial_skip,
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
    FROZEN: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Compute dx2 = dy * (conv(u) + skip * u), and this segment's share of the taps' gradients.

    FROZEN filters get no gradients.
    """
    T: tl.constexpr = PARTS * PART
    C: tl.constexpr = 3 * D
    HALO: tl.constexpr = F - 1
    COUNT: tl.constexpr = ROWS + HALO
    Z_PAST: tl.constexpr = HALO if HAS_PAST else 0
    PAST_ROWS: tl.constexpr = K - 1 if HAS_PAST else 0
    RUNS: tl.constexpr = BLOCK // ROWS
    dtype: tl.constexpr = z.dtype.element_ty
    program, piece, batch = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    z += batch.to(tl.int64) * batch_stride
    dy += batch.to(tl.int64) * length * D
    dx2 += batch.to(tl.int64) * length * D
    z_past += batch * HALO * C
    past += batch.to(tl.int64) * (K - 1) * D

    channel, inside = channels_of(program, D, W, PART, PARTS)
    tiles = toeplitz_tiles(taps, program, D // W, K, W, PART, PARTS, BLOCK, TILES, False, OPERAND)
    waiting = part_zeros(TILES - 1, PARTS, BLOCK, SEGMENTS * PART, tl.float32)
    earlier = part_zeros(TILES - 1, PARTS, SEGMENTS * PART, BLOCK, OPERAND)
    grams = part_zeros(TILES, PARTS, BLOCK, BLOCK, tl.float32)
    taps_x2, taps_x1, taps_v = load_featurizer(featurizer_taps, channel, inside, D, F)
    run = tl.arange(0, SEGMENTS * RUNS)[:, None]
    if HAS_SKIP:
        skips = tl.load(skip + channel, mask=inside, other=0.0).to(tl.float32)
        sum_skip = tl.zeros((SEGMENTS * RUNS, T), tl.float32)

    line = tl.arange(0, SEGMENTS * BLOCK)[:, None]
    first = (piece * SEGMENTS + run // RUNS) * segment + (run % RUNS) * ROWS + (1 - TILES) * BLOCK
    start = (piece * SEGMENTS + line // BLOCK) * segment
    stop = tl.minimum(start + segment, length)
    x2, x1, v = load_signals(
        z, z_past, first, channel, inside, length, row_stride, D, COUNT, HALO, Z_PAST, COUNT
    )
    rows_dy = load_rows(dy, dy, first, channel, inside, length, D, D, ROWS, 0, 0, 0)
    blocks = tl.cdiv(tl.minimum(segment, length - piece * SEGMENTS * segment), BLOCK)
    for block in range(1 - TILES, blocks):
        after = first + BLOCK
        next_x2, next_x1, next_v = load_signals(
            z, z_past, after, channel, inside, length, row_stride, D, COUNT, HALO, Z_PAST, COUNT
        )
        next_dy = load_rows(dy, dy, after, channel, inside, length, D, D, ROWS, 0, 0, 0)
        rows_u = ()
        rows_g = ()
        rows_gate = ()
        for i in tl.static_range(ROWS):
            u = gate_input(x1, v, taps_x1, taps_v, past, first, channel, inside, i, D, F, PAST_ROWS)
            gate = rows_dy[i].to(tl.float32)
            rows_u = rows_u + (u,)
            if not FROZEN:
                # Rows before the segment belong to another program.
                g = tl.where(block >= 0, featurized(x2, taps_x2, i, F) * gate, 0.0)
                if HAS_SKIP:
                    sum_skip += g * u
                rows_g = rows_g + (g,)
            rows_gate = rows_gate + (gate,)
        u = stack(rows_u, ROWS)
        operand = to_operand(u.to(OPERAND), SEGMENTS, BLOCK, PARTS, PART)
        complete, waiting = push(tiles, operand, waiting, TILES, PRECISION)
        if not FROZEN:
            operand_g = to_operand(stack(rows_g, ROWS).to(OPERAND), SEGMENTS, BLOCK, PARTS, PART)
            turned = tl.trans(operand) if PARTS == 1 else tl.permute(operand, (0, 2, 1))
            summed = (tl.dot(operand_g, turned, grams[0], input_precision=PRECISION),)
            for m in tl.static_range(1, TILES):
                gram = tl.dot(operand_g, earlier[m - 1], grams[m], input_precision=PRECISION)
                summed = summed + (gram,)
            grams = summed
            if TILES > 1:
                shifted = (turned,)
                for m in tl.static_range(TILES - 2):
                    shifted = shifted + (earlier[m],)
                earlier = shifted
        convolved = from_operand(complete, SEGMENTS, BLOCK, PARTS, PART)
        if HAS_SKIP:
            convolved += skips * u
        row = start + block * BLOCK + line % BLOCK
        present = (block >= 0) & (row < stop) & inside
        gradient = (stack(rows_gate, ROWS) * convolved).to(dtype)
        tl.store(dx2 + row.to(tl.int64) * D + channel, gradient, mask=present)
        first = after
        x2, x1, v = next_x2, next_x1, next_v
        rows_dy = next_dy

    if FROZEN:
        return
    index = (batch * tl.num_programs(1) + piece).to(tl.int64)
    if HAS_SKIP:
        sums = tl.sum(sum_skip, axis=0)[None, :]
        tl.store(partial_skip + index * D + channel, sums, mask=inside)
    part = tl.arange(0, PARTS)[:, None]
    parts = index * tl.num_programs(0) * PARTS + program * PARTS + part
    lag = tl.arange(0, BLOCK)[None, :]
    at = partial_taps + parts * TILES * BLOCK + lag
    for m in tl.static_range(TILES):
        # Lag m N + l lies below the diagonal of Gram tile m and above that of tile m + 1.
        sums = _diagonals(grams[m], PARTS, BLOCK, True)
        if m + 1 < TILES:
            sums += _diagonals(grams[m + 1], PARTS, BLOCK, False)
        tl.store(at + m * BLOCK, sums)


@triton.jit
def _diagonals(gram, PARTS: tl.constexpr, BLOCK: tl.constexpr, BELOW: tl.constexpr):
    """sum_i gram[:, i, i - l] for l = 0 .. BLOCK - 1, or of gram[:, i, i - l + BLOCK] above."""
    i = tl.arange(0, PARTS * BLOCK)[:, None] % BLOCK
    lag = tl.arange(0, BLOCK)[None, :]
    skewed = tl.gather(tl.reshape(gram, (PARTS * BLOCK, BLOCK)), (i - lag + BLOCK) % BLOCK, axis=1)
    wanted = (i >= lag) if BELOW else (i < lag)
    skewed = tl.where(wanted, skewed, 0.0)
    return tl.sum(tl.reshape(skewed, (PARTS, BLOCK, BLOCK)), axis=1)


def filter_gradient(z_BLC, filters, past, dy, frozen):
    """Gradients of the featurized x2, of the taps, and of the skip (empty without a skip).

    Those of taps and skip are empty if the filters are frozen.
    """
    taps_GK, skip_D = filters.taps_GK, filters.skip_D
    batch, length, _ = z_BLC.shape
    sizes = tiling("filter gradient", z_BLC, filters)
    programs, segment = grid(z_BLC, sizes)
    along_channels, pieces, _ = programs
    lags = sizes["TILES"] * sizes["BLOCK"]
    dx2_BLD = z_BLC.new_empty(batch, length, sizes["D"])
    shares = taps_GK.new_empty(
        0 if frozen else batch * pieces, along_channels * sizes["PARTS"], lags, dtype=torch.float32
    )
    skips = taps_GK.new_empty(len(shares), sizes["D"], dtype=torch.float32)
    _filter_gradient_kernel[programs](
        z_BLC,
        z_BLC if past is None else past.featurizer_BPC,
        *filters.launch_arguments(),
        z_BLC if past is None else past.inner,
        dy,
        dx2_BLD,
        shares,
        skips,
        length,
        segment,
        batch_stride(z_BLC),
        HAS_PAST=past is not None,
        HAS_SKIP=skip_D is not None,
        FROZEN=frozen,
        **sizes,
    )
    if frozen:
        return dx2_BLD, taps_GK.new_empty(0), skips.new_empty(0)
    groups, num_taps = taps_GK.shape
    parts = parts_of(sizes["W"], sizes["PART"])
    summed = shares.sum(dim=0)[: groups * parts].view(groups, parts, lags)
    summed = summed[:, 0] if parts == 1 else summed.sum(dim=1)
    dskip = skips.sum(dim=0) if skip_D is not None else skips.new_empty(0)
    return dx2_BLD, summed[:, :num_taps], dskip
