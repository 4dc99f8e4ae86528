"""The adjoint of the fused two-stage block convolution: from the last row to the first, to dz.

With g = dy * x2 and transposed tiles this is the pass of forward in reverse order,

    du_n = T_0' g_n + T_1' g_(n+1) + ... + skip g_n.

The gates and the transposed featurizer follow at once: du is never written to memory. A row of dz
needs the F - 1 rows after it, which the thread with the next run of rows holds; `rows_after` hands
them over once a block. Each segment starts one block later than its products need, to have the rows
after its last one.

B batch, L length, D channels, z [B, L, 3D] = [x2 | x1 | v], F featurizer taps, K taps, G groups.
"""

import torch
import triton
import triton.language as tl

from hyenakernels.dispatch import batch_stride
from hyenakernels.fir.tiles import (
    channels_of,
    from_operand,
    grid,
    part_zeros,
    push,
    rotation_of,
    rows_after,
    stack,
    tiling,
    to_operand,
    toeplitz_tiles,
    unstack,
)
from hyenakernels.gate.gradient import add_taps, store_sums, store_transposed, zero_sums
from hyenakernels.gate.rows import featurized, load_featurizer, load_rows


@triton.jit
def _load_gates(
    z,
    z_past,
    dx2,
    first,
    channel,
    inside,
    length,
    row_stride: tl.constexpr,
    D: tl.constexpr,
    N: tl.constexpr,
    P: tl.constexpr,
    Q: tl.constexpr,
):
    """Rows of x1 and v, and those of dx2 in fp32."""
    C: tl.constexpr = 3 * D
    z += D
    z_past += D
    x1 = load_rows(z, z_past, first, channel, inside, length, row_stride, C, N, P, Q, N)
    z += D
    z_past += D
    v = load_rows(z, z_past, first, channel, inside, length, row_stride, C, N, P, Q, N)
    rows = load_rows(dx2, dx2, first, channel, inside, length, D, D, N, 0, 0, 0)
    d_x2 = ()
    for i in tl.static_range(N):
        d_x2 = d_x2 + (rows[i].to(tl.float32),)
    return x1, v, d_x2


@triton.jit
def _gated_rows(x2, rows_dy, taps, F: tl.constexpr):
    """Rows of g = dy * x2."""
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
    """Add the gradient of the returned past to the last rows; store that of the given past."""
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
            # Only the first segment owns the rows before 0.
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


@triton.jit(do_not_specialize=["length", "segment"])
def _adjoint_kernel(
    z,
    z_past,
    featurizer_taps,
    taps,
    skip,
    dy,
    dtail,
    dx2,
    dz,
    dz_past,
    dpast,
    partial_taps,
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
    HAS_TAIL: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
):
    C: tl.constexpr = 3 * D
    P: tl.constexpr = F - 1
    Q: tl.constexpr = P if HAS_PAST else 0
    N: tl.constexpr = ROWS + P
    RUNS: tl.constexpr = BLOCK // ROWS
    R: tl.constexpr = SEGMENTS * RUNS
    program, piece, batch = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    z += batch.to(tl.int64) * batch_stride
    dy += batch.to(tl.int64) * length * D
    dx2 += batch.to(tl.int64) * length * D
    dz += batch.to(tl.int64) * length * C
    z_past += batch * P * C
    dz_past += (batch + 1) * P * C
    dpast += batch.to(tl.int64) * (K - 1) * D
    dtail += batch.to(tl.int64) * (K - 1) * D

    channel, inside = channels_of(program, D, W, PART, PARTS)
    tiles = toeplitz_tiles(taps, program, D // W, K, W, PART, PARTS, BLOCK, TILES, True, OPERAND)
    waiting = part_zeros(TILES - 1, PARTS, BLOCK, SEGMENTS * PART, tl.float32)
    taps_z = load_featurizer(featurizer_taps, channel, inside, D, F)
    sums = zero_sums(tl.zeros((R, PARTS * PART), tl.float32), F)
    kept, rotation = rotation_of(R, PARTS * PART, RUNS, P)
    if HAS_SKIP:
        skips = tl.load(skip + channel, mask=inside, other=0.0).to(tl.float32)

    run = tl.arange(0, R)[:, None]
    start = (piece * SEGMENTS + run // RUNS) * segment
    stop = tl.minimum(start + segment, length)
    blocks = tl.cdiv(tl.minimum(segment, length - piece * SEGMENTS * segment), BLOCK)
    last = blocks + TILES - (2 if P == 0 else 1)
    lowest = tl.where(piece == 0, tl.minimum(1 - TILES, -1), 0) if HAS_PAST else 0
    first = start + (run % RUNS) * ROWS + last * BLOCK
    x2 = load_rows(z, z_past, first, channel, inside, length, row_stride, C, N, P, Q, N)
    rows_dy = load_rows(dy, dy, first, channel, inside, length, D, D, ROWS, 0, 0, 0)
    for back in range(last - lowest + 1):
        block = last - back
        # The products' inputs were loaded a block earlier; the rest is loaded while they run.
        before = first - BLOCK
        next_x2 = load_rows(z, z_past, before, channel, inside, length, row_stride, C, N, P, Q, N)
        next_dy = load_rows(dy, dy, before, channel, inside, length, D, D, ROWS, 0, 0, 0)
        x1, v, d_x2 = _load_gates(
            z, z_past, dx2, first, channel, inside, length, row_stride, D, N, P, Q
        )
        rows_g = _gated_rows(x2, rows_dy, taps_z, F)
        operand = to_operand(stack(rows_g, ROWS).to(OPERAND), SEGMENTS, BLOCK, PARTS, PART)
        complete, waiting = push(tiles, operand, waiting, TILES, PRECISION)
        rows_du = unstack(from_operand(complete, SEGMENTS, BLOCK, PARTS, PART), ROWS)
        if HAS_SKIP:
            skipped = ()
            for i in tl.static_range(ROWS):
                skipped = skipped + (rows_du[i] + skips * rows_g[i],)
            rows_du = skipped
        rows_du = _with_pasts(
            rows_du, dtail, dpast, first, start, length, channel, inside, D, K, HAS_PAST, HAS_TAIL
        )
        d_x1, d_v = _gate_rows(rows_du, x1, v, taps_z, F)
        after_x1, after_v, kept = rows_after(d_x1, d_v, kept, rotation, P)
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

    index = (batch * tl.num_programs(1) + piece).to(tl.int64)
    store_sums(partial_taps + index * C * F, sums, channel, inside, D, F)


def input_gradient(z_BLC, filters, past, dy, dtail, dx2):
    """Gradients of z, of the featurizer's taps, and of both pasts (empty without a past).

    Args:
        z_BLC: The projections, contiguous along C.
        filters: Contiguous `FIRFilters`.
        past: A contiguous `HyenaPast`, or None for zeros.
        dy: The gradient of y.
        dtail: The gradient of the returned inner past, or None.
        dx2: The gradient of the featurized x2, from `gradient.filter_gradient`.
    """
    sizes = tiling("input gradient", z_BLC, filters)
    programs, segment = grid(z_BLC, sizes)
    _, pieces, batch = programs
    dz_BLC = torch.empty_like(z_BLC, memory_format=torch.contiguous_format)
    dz_past_BPC, dpast_BPD = (
        (z_BLC.new_empty(0), z_BLC.new_empty(0))
        if past is None
        else (torch.empty_like(past.featurizer_BPC), torch.empty_like(past.inner))
    )
    featurizer_taps_CF = filters.featurizer_taps_CF
    shares = z_BLC.new_empty(batch * pieces, *featurizer_taps_CF.shape, dtype=torch.float32)
    _adjoint_kernel[programs](
        z_BLC,
        z_BLC if past is None else past.featurizer_BPC,
        *filters.launch_arguments(),
        dy,
        dtail if dtail is not None else dy,
        dx2,
        dz_BLC,
        dz_past_BPC,
        dpast_BPD,
        shares,
        z_BLC.shape[1],
        segment,
        batch_stride(z_BLC),
        HAS_PAST=past is not None,
        HAS_SKIP=filters.skip_D is not None,
        HAS_TAIL=dtail is not None,
        **sizes,
    )
    return dz_BLC, shares.sum(dim=0), dz_past_BPC, dpast_BPD
