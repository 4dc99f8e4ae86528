"""The gradient of gates and featurizer, which every fused operator ends with.

B batch, L length, D channels, z [B, L, 3D] = [x2 | x1 | v], C = 3D, F featurizer taps.
"""

import torch
import triton
import triton.language as tl

from hyenakernels.gate.rows import featurized, load_featurizer, load_rows, load_signals, zero_rows
from hyenakernels.launch import GATE_SEGMENT, gate_launch


@triton.jit(do_not_specialize=["length", "segment"])
def _gradient_kernel(
    z,
    z_past,
    taps,
    dx2,
    du,
    dz,
    dz_past,
    partial_taps,
    length,
    segment,
    batch_stride,
    row_stride: tl.constexpr,
    D: tl.constexpr,
    NUM_TAPS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ROWS: tl.constexpr,
):
    C: tl.constexpr = 3 * D
    HALO: tl.constexpr = NUM_TAPS - 1
    batch, piece = tl.program_id(2), tl.program_id(1)
    channel = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = channel < D
    z += batch.to(tl.int64) * batch_stride
    dz += batch.to(tl.int64) * length * C
    dx2 += batch.to(tl.int64) * length * D
    du += batch.to(tl.int64) * length * D
    z_past += batch * HALO * C
    dz_past += batch * HALO * C

    taps_x2, taps_x1, taps_v = load_featurizer(taps, channel, inside, D, NUM_TAPS)
    sum_x2 = zero_rows(NUM_TAPS, BLOCK_D)
    sum_x1 = zero_rows(NUM_TAPS, BLOCK_D)
    sum_v = zero_rows(NUM_TAPS, BLOCK_D)

    start = piece * segment
    stop = tl.minimum(start + segment, length)
    # The first piece also finds the gradient of the rows before the sequence.
    start = tl.where(piece == 0, -ROWS, start)
    first = start
    z_x2, z_x1, z_v, rows_dx2, rows_du = _load_gradient_block(
        z,
        z_past,
        dx2,
        du,
        first,
        channel,
        inside,
        length,
        row_stride,
        D,
        ROWS,
        HALO,
        ROWS + 2 * HALO,
    )
    for _ in range(tl.cdiv(stop - start, ROWS)):
        after = first + ROWS
        next_x2, next_x1, next_v, next_dx2, next_du = _load_gradient_block(
            z,
            z_past,
            dx2,
            du,
            after,
            channel,
            inside,
            length,
            row_stride,
            D,
            ROWS,
            HALO,
            HALO,
        )
        # Gradients at the featurizer's outputs, for the block's rows and the HALO rows after it.
        d_x2 = ()
        d_x1 = ()
        d_v = ()
        for i in tl.static_range(ROWS + HALO):
            gradient = rows_du[i].to(tl.float32)
            d_x2 = d_x2 + (rows_dx2[i].to(tl.float32),)
            d_x1 = d_x1 + (gradient * featurized(z_v, taps_v, i, NUM_TAPS),)
            d_v = d_v + (gradient * featurized(z_x1, taps_x1, i, NUM_TAPS),)
        for i in tl.static_range(ROWS):
            row = first + i + tl.zeros_like(channel)
            at = dz + row.to(tl.int64) * C + channel
            at_past = dz_past + (row + HALO) * C + channel
            present = (row >= 0) & (row < length) & inside
            remembered = (row < 0) & (row >= -HALO) & inside
            _store_transposed(at, at_past, d_x2, taps_x2, i, present, remembered, NUM_TAPS)
            _store_transposed(at + D, at_past + D, d_x1, taps_x1, i, present, remembered, NUM_TAPS)
            _store_transposed(
                at + 2 * D, at_past + 2 * D, d_v, taps_v, i, present, remembered, NUM_TAPS
            )
            sum_x2 = _accumulate_taps(sum_x2, d_x2, z_x2, i, NUM_TAPS)
            sum_x1 = _accumulate_taps(sum_x1, d_x1, z_x1, i, NUM_TAPS)
            sum_v = _accumulate_taps(sum_v, d_v, z_v, i, NUM_TAPS)
        first = after
        z_x2, z_x1, z_v, rows_dx2, rows_du = next_x2, next_x1, next_v, next_dx2, next_du

    sums = partial_taps + (batch * tl.num_programs(1) + piece).to(tl.int64) * C * NUM_TAPS
    for j in tl.static_range(NUM_TAPS):
        at = sums + channel * NUM_TAPS + j
        tl.store(at, sum_x2[j], mask=inside)
        tl.store(at + D * NUM_TAPS, sum_x1[j], mask=inside)
        tl.store(at + 2 * D * NUM_TAPS, sum_v[j], mask=inside)


@triton.jit
def _load_gradient_block(
    z,
    z_past,
    dx2,
    du,
    first,
    channel,
    inside,
    length,
    row_stride: tl.constexpr,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    HALO: tl.constexpr,
    EARLY: tl.constexpr,
):
    BOTH: tl.constexpr = ROWS + 2 * HALO
    x2, x1, v = load_signals(
        z, z_past, first, channel, inside, length, row_stride, D, BOTH, HALO, HALO, EARLY
    )
    rows_dx2 = load_rows(dx2, dx2, first, channel, inside, length, D, D, ROWS + HALO, 0, 0, 0)
    rows_du = load_rows(du, du, first, channel, inside, length, D, D, ROWS + HALO, 0, 0, 0)
    return x2, x1, v, rows_dx2, rows_du


@triton.jit
def _store_transposed(
    at, at_past, gradients, taps, i: tl.constexpr, present, remembered, NUM_TAPS: tl.constexpr
):
    dz = taps[0] * gradients[i]
    for j in tl.static_range(1, NUM_TAPS):
        dz += taps[j] * gradients[i + j]
    dz = dz.to(at.dtype.element_ty)
    tl.store(at, dz, mask=present)
    tl.store(at_past, dz, mask=remembered)


@triton.jit
def _accumulate_taps(sums, gradients, rows, i: tl.constexpr, NUM_TAPS: tl.constexpr):
    following = ()
    for j in tl.static_range(NUM_TAPS):
        value = rows[i + NUM_TAPS - 1 - j].to(tl.float32)
        following = following + (sums[j] + gradients[i] * value,)
    return following


def gradient(z_BLC, taps_CF, past_BPC, dx2_BLD, du_BLD):
    """Carry gradients at x2 and at u = x1 * v back through gates and featurizer.

    Args:
        z_BLC: The projections.
        taps_CF: Featurizer taps, newest first.
        past_BPC: The F - 1 rows before `z`.
        dx2_BLD: Gradient of the featurized x2.
        du_BLD: Gradient of x1 * v, both featurized.

    Returns:
        Gradients of z, of the taps (fp32), and of the past.
    """
    batch, length, channels = z_BLC.shape
    launch = gate_launch()
    pieces = triton.cdiv(length, GATE_SEGMENT)
    dz_BLC = torch.empty_like(z_BLC, memory_format=torch.contiguous_format)
    dpast_BPC = torch.empty_like(past_BPC)
    partial = taps_CF.new_empty(batch * pieces, *taps_CF.shape, dtype=torch.float32)
    width = channels // 3
    grid = (triton.cdiv(width, launch.block_d), pieces, batch)
    _gradient_kernel[grid](
        z_BLC,
        past_BPC,
        taps_CF,
        dx2_BLD,
        du_BLD,
        dz_BLC,
        dpast_BPC,
        partial,
        length,
        GATE_SEGMENT,
        z_BLC.stride(0),
        row_stride=z_BLC.stride(1),
        D=width,
        NUM_TAPS=taps_CF.shape[1],
        BLOCK_D=launch.block_d,
        ROWS=launch.rows,
        num_warps=launch.num_warps,
        num_stages=1,
    )
    return dz_BLC, partial.sum(dim=0), dpast_BPC
