"""Backward pass of the block convolution, from the last row to the first: all gradients.

With g = dy * x2 and transposed tiles this is the forward pass in reverse order,

    du_n = T_0' g_n + T_1' g_(n+1) + ... + skip g_n.

The gates and the transposed featurizer are its epilogue: du is never written to memory. A row of dz
needs the F - 1 rows after it, which the thread with the next run of rows holds; `rows_after`
exchanges them once per block. A segment begins with blocks after its end, which hold the rows that
its last ones need.

The same pass, or for long filters a separate one, accumulates Gram tiles G_m = sum_n g_(n+m) u_n',
whose diagonals are the gradients of the taps. Each program writes partial sums, which are reduced
in a fixed order. Frozen filters skip this.

B batch, L length, D channels, z [B, L, 3D] = [x2 | x1 | v], F featurizer taps, K taps, G groups.
"""

import torch
import triton
import triton.language as tl

from hyenakernels.dispatch import batch_stride
from hyenakernels.fir.tiles import (
    TILE,
    channels_of,
    from_operands,
    gate_input,
    grid,
    identity,
    load_skips,
    multiply,
    push,
    rotation_of,
    rows_after,
    stack,
    tiling,
    to_operands,
    toeplitz_tiles,
    unstack,
    zero_tiles,
)
from hyenakernels.gate.gradient import add_taps, store_sums, store_transposed, zero_sums
from hyenakernels.gate.rows import featurized, load_featurizer, load_gates, load_rows
from hyenakernels.launch import MAX_SHORT_TAPS, cdiv


@triton.jit
def _load_gradient(dx2, first, channel, inside, length, D: tl.constexpr, N: tl.constexpr):
    """Load rows of dx2, in fp32."""
    rows = load_rows(dx2, dx2, first, channel, inside, length, D, D, N, 0, 0, 0)
    d_x2 = ()
    for i in tl.static_range(N):
        d_x2 = d_x2 + (rows[i].to(tl.float32),)
    return d_x2


@triton.jit
def _gated_rows(x2, rows_dy, taps, F: tl.constexpr):
    """Rows of g = dy * x2, with x2 featurized."""
    rows_g = ()
    for i in tl.static_range(len(rows_dy)):
        rows_g = rows_g + (featurized(x2, taps[0], i, F) * rows_dy[i].to(tl.float32),)
    return rows_g


@triton.jit
def _with_pasts(
    rows_du,
    dtail,
    dpast,
    first,
    start,
    length,
    channel,
    inside,
    D: tl.constexpr,
    K: tl.constexpr,
    HAS_PAST: tl.constexpr,
    HAS_TAIL: tl.constexpr,
):
    """Add the gradient of the returned past to the last rows; store that of the input past."""
    rows = ()
    for i in tl.static_range(len(rows_du)):
        row = first + i
        du = rows_du[i]
        if HAS_TAIL:
            index = row - (length - K + 1)
            present = (index >= 0) & (row < length) & inside
            added = tl.load(dtail + index * D + channel, mask=present, other=0.0)
            du += added.to(tl.float32)
        if HAS_PAST:
            # Rows before 0 belong to the first segment alone.
            present = (start == 0) & (row < 0) & (row > -K) & inside
            at = dpast + (row + K - 1) * D + channel
            tl.store(at, du.to(dpast.dtype.element_ty), mask=present)
            du = tl.where(row >= 0, du, 0.0)
        rows = rows + (du,)
    return rows


@triton.jit
def _gate_rows(rows_du, x1, v, taps, F: tl.constexpr):
    """Gradients of the featurized x1 and v: du * v and du * x1."""
    _, taps_x1, taps_v = taps
    d_x1 = ()
    d_v = ()
    for i in tl.static_range(len(rows_du)):
        d_x1 = d_x1 + (rows_du[i] * featurized(v, taps_v, i, F),)
        d_v = d_v + (rows_du[i] * featurized(x1, taps_x1, i, F),)
    return d_x1, d_v


@triton.jit
def _store_rows(
    dz,
    gradients,
    taps,
    first,
    low,
    high,
    channel,
    inside,
    D: tl.constexpr,
    F: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Store rows first .. first + ROWS - 1 of dz where low <= row < high."""
    at = dz + first.to(tl.int64) * 3 * D + channel
    for i in tl.static_range(ROWS):
        present = (first + i >= low) & (first + i < high) & inside
        store_transposed(at + i * 3 * D, gradients, taps, i, present, D, F)


@triton.jit
def _segment_inputs(
    x1,
    v,
    taps,
    past,
    first,
    start,
    stop,
    channel,
    inside,
    D: tl.constexpr,
    F: tl.constexpr,
    PAST_ROWS: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Rows of u, zero outside the segment; those of the past belong to the first segment."""
    _, taps_x1, taps_v = taps
    rows = ()
    for i in tl.static_range(ROWS):
        u = gate_input(x1, v, taps_x1, taps_v, past, first, channel, inside, i, D, F, PAST_ROWS)
        row = first + i
        in_segment = row < stop
        if PAST_ROWS > 0:
            in_segment = in_segment & ((row >= start) | (start == 0))
        rows = rows + (tl.where(in_segment, u, 0.0),)
    return rows


@triton.jit(do_not_specialize=["length", "segment"])
def _adjoint_kernel(
    z,
    z_past,
    featurizer_taps,
    taps,
    skip,
    past,
    dy,
    dtail,
    dx2,
    dz,
    dz_past,
    dpast,
    partial_featurizer,
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
    SUB: tl.constexpr,
    ROWS: tl.constexpr,
    TILES: tl.constexpr,
    HAS_PAST: tl.constexpr,
    HAS_SKIP: tl.constexpr,
    HAS_TAIL: tl.constexpr,
    DZ: tl.constexpr,
    GRAMS: tl.constexpr,
    OPERAND: tl.constexpr,
):
    """DZ: gradients of z, the featurizer's taps and the pasts. GRAMS: those of taps and skip."""
    C: tl.constexpr = 3 * D
    BLOCK: tl.constexpr = SUB * TILE
    P: tl.constexpr = F - 1
    # Blocks after the segment that are processed for the products and the transposed featurizer.
    LATE: tl.constexpr = (TILES + SUB - 2 + (1 if P > 0 else 0)) // SUB
    FURTHEST: tl.constexpr = K if K > F else F
    EARLY: tl.constexpr = (FURTHEST + BLOCK - 2) // BLOCK if HAS_PAST else 0
    SEGMENTS: tl.constexpr = TILE // PART
    Q: tl.constexpr = P if HAS_PAST else 0
    PAST_ROWS: tl.constexpr = K - 1 if HAS_PAST else 0
    N: tl.constexpr = ROWS + P
    RUNS: tl.constexpr = BLOCK // ROWS
    COUNT: tl.constexpr = TILES if GRAMS else 0
    program, chunk, batch = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    z += batch.to(tl.int64) * batch_stride
    dy += batch.to(tl.int64) * length * D
    dx2 += batch.to(tl.int64) * length * D
    dz += batch.to(tl.int64) * length * C
    z_past += batch * P * C
    dz_past += (batch + 1) * P * C
    past += batch.to(tl.int64) * (K - 1) * D
    dpast += batch.to(tl.int64) * (K - 1) * D
    dtail += batch.to(tl.int64) * (K - 1) * D

    channel, lane_segment, inside = channels_of(program, D, W, PART, PARTS)
    grams = zero_tiles(COUNT, PARTS, tl.float32)
    later = zero_tiles(COUNT - 1, PARTS, OPERAND)
    eye = identity(PARTS, OPERAND)
    taps_z = load_featurizer(featurizer_taps, channel, inside, D, F)
    if DZ:
        tiles = toeplitz_tiles(
            taps, program, D // W, K, W, PART, PARTS, TILES, True, False, OPERAND
        )
        pending = zero_tiles(TILES - 1, PARTS, tl.float32)
        sums = zero_sums(tl.zeros((RUNS, PARTS * TILE), tl.float32), F)
        carried, rotation = rotation_of(RUNS, PARTS * TILE, RUNS, P)
    if HAS_SKIP:
        skips = load_skips(skip, channel, inside, PARTS)
        sum_skip = tl.zeros((RUNS, PARTS * TILE), tl.float32)

    start = (chunk * SEGMENTS + lane_segment) * segment
    stop = tl.minimum(start + segment, length)
    blocks = tl.cdiv(tl.minimum(segment, length - chunk * SEGMENTS * segment), BLOCK)
    last = blocks + LATE - 1
    lowest = tl.where(chunk == 0, -EARLY, 0)
    first = start + tl.arange(0, RUNS)[:, None] * ROWS + last * BLOCK
    x2 = load_rows(z, z_past, first, channel, inside, length, row_stride, C, N, P, Q, N)
    rows_dy = load_rows(dy, dy, first, channel, inside, length, D, D, ROWS, 0, 0, 0)
    for back in range(last - lowest + 1):
        block = last - back
        # The operands were loaded one block ahead; the rest is loaded while the products run.
        before = first - BLOCK
        next_x2 = load_rows(z, z_past, before, channel, inside, length, row_stride, C, N, P, Q, N)
        next_dy = load_rows(dy, dy, before, channel, inside, length, D, D, ROWS, 0, 0, 0)
        x1, v = load_gates(z, z_past, first, channel, inside, length, row_stride, D, N, P, Q, N)
        rows_g = _gated_rows(x2, rows_dy, taps_z, F)
        operands = to_operands(stack(rows_g, ROWS).to(OPERAND), PARTS, SUB)
        if GRAMS:
            rows_u = _segment_inputs(
                x1, v, taps_z, past, first, start, stop, channel, inside, D, F, PAST_ROWS, ROWS
            )
            if HAS_SKIP:
                for i in tl.static_range(ROWS):
                    sum_skip = tl.fma(rows_g[i], rows_u[i], sum_skip)
            operands_u = to_operands(stack(rows_u, ROWS).to(OPERAND), PARTS, SUB)
        summed = ()
        for n in tl.static_range(SUB):
            operand = operands[SUB - 1 - n]
            # The product with the identity converts g to the layout of sums and left operands.
            converted = multiply(eye, operand)
            if DZ:
                complete, pending = push(tiles, operand, pending, TILES)
                if HAS_SKIP:
                    complete = tl.fma(skips, converted, complete)
                summed = (complete,) + summed
            if GRAMS:
                transposed_u = tl.permute(operands_u[SUB - 1 - n], (0, 2, 1))
                tiles_g = (converted.to(OPERAND),) + later
                updated = ()
                for m in tl.static_range(TILES):
                    updated = updated + (multiply(tiles_g[m], transposed_u, grams[m]),)
                grams = updated
                later = tiles_g[: TILES - 1]
        if DZ:
            d_x2 = _load_gradient(dx2, first, channel, inside, length, D, N)
            rows_du = unstack(from_operands(summed, PARTS, SUB), ROWS)
            rows_du = _with_pasts(
                rows_du,
                dtail,
                dpast,
                first,
                start,
                length,
                channel,
                inside,
                D,
                K,
                HAS_PAST,
                HAS_TAIL,
            )
            d_x1, d_v = _gate_rows(rows_du, x1, v, taps_z, F)
            after_x1, after_v, carried = rows_after(d_x1, d_v, carried, rotation, P)
            gradients = (d_x2, d_x1 + after_x1, d_v + after_v)
            _store_rows(dz, gradients, taps_z, first, start, stop, channel, inside, D, F, ROWS)
            if (block >= 0) & (block < blocks):
                for i in tl.static_range(ROWS):
                    sums = add_taps(sums, (d_x2[i], d_x1[i], d_v[i]), (x2, x1, v), i, F)
            if HAS_PAST and block == -1:
                low = tl.where(start == 0, -P, 0)
                _store_rows(dz_past, gradients, taps_z, first, low, 0, channel, inside, D, F, ROWS)
        first = before
        x2, rows_dy = next_x2, next_dy

    index = (batch * tl.num_programs(1) + chunk).to(tl.int64)
    segment_index = index * SEGMENTS + lane_segment
    if DZ:
        store_sums(partial_featurizer + segment_index * C * F, sums, channel, inside, D, F)
    if GRAMS:
        if HAS_SKIP:
            total_skip = tl.sum(sum_skip, axis=0)[None, :]
            tl.store(partial_skip + segment_index * D + channel, total_skip, mask=inside)
        part = tl.arange(0, PARTS)[:, None]
        parts = index * tl.num_programs(0) * PARTS + program * PARTS + part
        at = partial_taps + parts * TILES * TILE + tl.arange(0, TILE)[None, :]
        for m in tl.static_range(TILES):
            # Lag m N + l lies below the diagonal of Gram tile m and above that of tile m + 1.
            lags = _diagonals(grams[m], PARTS, True)
            if m + 1 < TILES:
                lags += _diagonals(grams[m + 1], PARTS, False)
            tl.store(at + m * TILE, lags)


@triton.jit
def _diagonals(gram, PARTS: tl.constexpr, BELOW: tl.constexpr):
    """sum_i gram[:, i, i - l], l = 0 .. TILE - 1, if BELOW, else sum_i gram[:, i, i - l + TILE]."""
    i = tl.arange(0, PARTS * TILE)[:, None] % TILE
    lag = tl.arange(0, TILE)[None, :]
    skewed = tl.gather(tl.reshape(gram, (PARTS * TILE, TILE)), (i - lag + TILE) % TILE, axis=1)
    valid = (i >= lag) if BELOW else (i < lag)
    skewed = tl.where(valid, skewed, 0.0)
    return tl.sum(tl.reshape(skewed, (PARTS, TILE, TILE)), axis=1)


def gradients(z_BLC, filters, past, dy_BLD, dtail_BPD, dx2_BLD, frozen):
    """Gradients of z, of featurizer taps, taps and skip (fp32), and of both pasts.

    Empty are those of the pasts if there are none, of the skip if there is none, and of taps and
    skip if the filters are frozen.

    Args:
        z_BLC: The projections, contiguous along C.
        filters: Contiguous `FIRFilters`.
        past: A contiguous `HyenaPast`, or None for zeros.
        dy_BLD: The gradient of y.
        dtail_BPD: The gradient of the returned inner past, or None.
        dx2_BLD: The gradient of the featurized x2, from `kernel.gate_gradient`.
        frozen: Whether taps and skip need no gradient.
    """
    taps_GK = filters.taps_GK
    groups, num_taps = taps_GK.shape
    dz_BLC = torch.empty_like(z_BLC, memory_format=torch.contiguous_format)
    dz_past_BPC, dpast_BPD = (
        (z_BLC.new_empty(0), z_BLC.new_empty(0))
        if past is None
        else (torch.empty_like(past.featurizer_BPC), torch.empty_like(past.inner))
    )
    arguments = (z_BLC, filters, past, dy_BLD, dtail_BPD, dx2_BLD, dz_BLC, dz_past_BPC, dpast_BPD)
    # For long filters, the accumulators of both passes would not fit in registers.
    together = num_taps <= MAX_SHORT_TAPS and not frozen
    dfeaturizer_CF, dtaps_GK, dskip_D = _launch("input gradient", *arguments, True, together)
    if not together and not frozen:
        _, dtaps_GK, dskip_D = _launch("filter gradient", *arguments, False, True)
    if not frozen:
        dtaps_GK = dtaps_GK.view(groups, -1, dtaps_GK.shape[1]).sum(dim=1)[:, :num_taps]
    return dz_BLC, dfeaturizer_CF, dtaps_GK, dskip_D, dz_past_BPC, dpast_BPD


def _launch(which, z_BLC, filters, past, dy_BLD, dtail_BPD, dx2_BLD, *outputs_and_flags):
    """Launch one pass: writes dz and the gradients of the pasts, and returns the other gradients.

    The two flags choose what is computed; gradients that are not are empty. Those of the taps are
    for every part of a group, with lags up to a multiple of TILE.
    """
    dz_BLC, dz_past_BPC, dpast_BPD, with_dz, with_grams = outputs_and_flags
    sizes = tiling(which, z_BLC, filters)
    programs, segment = grid(which, z_BLC, sizes)
    along_channels, chunks, batch = programs
    segments = batch * chunks * (TILE.value // sizes["PART"])
    lags = sizes["TILES"] * TILE.value
    has_skip = filters.skip_D is not None

    def new_partials(count, *shape):
        return z_BLC.new_empty(count, *shape, dtype=torch.float32)

    dfeaturizer_NCF = new_partials(segments if with_dz else 0, *filters.featurizer_taps_CF.shape)
    dtaps_NPK = new_partials(
        batch * chunks if with_grams else 0, along_channels * sizes["PARTS"], lags
    )
    dskip_ND = new_partials(segments if with_grams and has_skip else 0, sizes["D"])
    _adjoint_kernel[programs](
        z_BLC,
        z_BLC if past is None else past.featurizer_BPC,
        *filters.launch_arguments(),
        z_BLC if past is None else past.inner,
        dy_BLD,
        dtail_BPD if dtail_BPD is not None else dy_BLD,
        dx2_BLD,
        dz_BLC,
        dz_past_BPC,
        dpast_BPD,
        dfeaturizer_NCF,
        dtaps_NPK,
        dskip_ND,
        z_BLC.shape[1],
        segment,
        batch_stride(z_BLC),
        HAS_PAST=past is not None,
        HAS_SKIP=has_skip,
        HAS_TAIL=dtail_BPD is not None,
        DZ=with_dz,
        GRAMS=with_grams,
        **sizes,
    )
    parts = filters.taps_GK.shape[0] * cdiv(sizes["W"], sizes["PART"])

    def reduced(partials):
        return partials.sum(dim=0) if len(partials) else partials.new_empty(0)

    return reduced(dfeaturizer_NCF), reduced(dtaps_NPK)[:parts], reduced(dskip_ND)
