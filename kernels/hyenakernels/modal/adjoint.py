"""The adjoint of the modal scan, from the last row to the first: the gradient of z.

With g = dy * x2,

    A[t] = exp(p) (A[t + 1] + R g[t]),    du[t] = sum_s (A_s[t + 1] + R_s g[t]) + skip g[t],

scanned over segments as the state is. The thread that computes du[t] has just computed the F - 1
rows after it, so the gates and the transposed featurizer are fused, and du stays in registers. The
last F - 1 rows of dz of a segment need rows of the next segment. The program of the next segment
computes them: it continues for F - 1 rows before its first row.

B batch, L length, D channels, z [B, L, 3D] = [x2 | x1 | v], F featurizer taps, S modes, N segments.
"""

import torch
import triton
import triton.language as tl

from hyenakernels.dispatch import batch_stride
from hyenakernels.gate.gradient import add_taps, store_sums, store_transposed, zero_sums
from hyenakernels.gate.rows import (
    featurized,
    load_featurizer,
    load_rows,
    load_signals,
    load_taps,
    zero_rows,
)
from hyenakernels.launch import cdiv, modal_launch
from hyenakernels.modal.kernel import scan, sizes_of
from hyenakernels.modal.modes import load_filter, load_modes, load_poles, store_modes


@triton.jit
def _start_carry(adjoints, S: tl.constexpr, EXACT: tl.constexpr):
    """Initial adjoints, and their pending decay: zero, and not used unless EXACT."""
    pending = ()
    for s in tl.static_range(S):
        pending = pending + (tl.zeros_like(adjoints[s]) if EXACT else adjoints[s],)
    return adjoints, pending


@triton.jit
def _step_back(poles, remainders, residues, carry, g, start, S: tl.constexpr, EXACT: tl.constexpr):
    """The adjoints one row earlier, and `start` + sum_s (A_s + R_s g), the gradient du.

    If EXACT, the decay (exp(p) - 1) A stays pending until the next row is added. On its own, the
    decay of a slow mode is less than half a unit in the last place of A, and would be lost at every
    row.
    """
    adjoints, pending = carry
    earlier = ()
    still_pending = ()
    for s in tl.static_range(S):
        if EXACT:
            received = adjoints[s] + tl.fma(residues[s], g, pending[s])
            decay = tl.fma(remainders[s], received, (poles[s] - 1.0) * received)
            earlier = earlier + (received,)
            still_pending = still_pending + (decay,)
        else:
            received = tl.fma(residues[s], g, adjoints[s])
            earlier = earlier + (poles[s] * received,)
            still_pending = earlier
        start += received
    return (earlier, still_pending), start


@triton.jit
def _finish_carry(carry, S: tl.constexpr, EXACT: tl.constexpr):
    """The adjoints with their pending decay added."""
    adjoints, pending = carry
    complete = ()
    for s in tl.static_range(S):
        complete = complete + (adjoints[s] + pending[s] if EXACT else adjoints[s],)
    return complete


@triton.jit(do_not_specialize=["length", "segment", "num_segments"])
def _ends_kernel(
    z,
    featurizer_taps,
    log_poles,
    residues,
    dy,
    final,
    ends,
    length,
    segment,
    num_segments,
    batch_stride,
    row_stride: tl.constexpr,
    D: tl.constexpr,
    F: tl.constexpr,
    S: tl.constexpr,
    EXACT: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ROWS: tl.constexpr,
):
    """The adjoint at the start of each segment but the first, from zero at its end.

    The last segment may be short, so it starts from `final` instead.
    """
    C: tl.constexpr = 3 * D
    HALO: tl.constexpr = F - 1
    COUNT: tl.constexpr = ROWS + HALO
    segment_index, batch = tl.program_id(1) + 1, tl.program_id(2)
    channel = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = channel < D
    z += batch.to(tl.int64) * batch_stride
    dy += batch.to(tl.int64) * length * D
    taps = load_taps(featurizer_taps, channel, inside, F)
    poles, remainders = load_poles(log_poles, channel, inside, S, EXACT)
    weights = load_modes(residues, channel, inside, S, True, D)
    is_last = inside & (segment_index + tl.zeros_like(channel) == num_segments - 1)
    at = final + batch.to(tl.int64) * S * D
    carry = _start_carry(load_modes(at, channel, is_last, S, False, D), S, EXACT)

    begin = segment_index * segment
    count = tl.minimum(segment, length - begin)
    first = begin + count - 1
    for _ in range(count % ROWS):
        x2 = load_rows(z, z, first, channel, inside, length, row_stride, C, F, HALO, 0, 0)
        rows_dy = load_rows(dy, dy, first, channel, inside, length, D, D, 1, 0, 0, 0)
        g = featurized(x2, taps, 0, F) * rows_dy[0].to(tl.float32)
        carry, _ = _step_back(poles, remainders, weights, carry, g, 0.0, S, EXACT)
        first -= 1
    first -= ROWS - 1
    x2 = load_rows(z, z, first, channel, inside, length, row_stride, C, COUNT, HALO, 0, 0)
    rows_dy = load_rows(dy, dy, first, channel, inside, length, D, D, ROWS, 0, 0, 0)
    for _ in range(count // ROWS):
        before = first - ROWS
        next_x2 = load_rows(z, z, before, channel, inside, length, row_stride, C, ROWS, HALO, 0, 0)
        next_dy = load_rows(dy, dy, before, channel, inside, length, D, D, ROWS, 0, 0, 0)
        for i in tl.static_range(ROWS - 1, -1, -1):
            g = featurized(x2, taps, i, F) * rows_dy[i].to(tl.float32)
            carry, _ = _step_back(poles, remainders, weights, carry, g, 0.0, S, EXACT)
        first = before
        x2 = next_x2 + x2[:HALO]
        rows_dy = next_dy
    at = ends + (batch * num_segments + segment_index).to(tl.int64) * S * D
    store_modes(at, _finish_carry(carry, S, EXACT), channel, inside, S, D)


@triton.jit
def _gradient_rows(
    dz,
    rows,
    parameters,
    carry,
    first,
    stop,
    channel,
    inside,
    D: tl.constexpr,
    F: tl.constexpr,
    S: tl.constexpr,
    EXACT: tl.constexpr,
    NUM_ROWS: tl.constexpr,
    LOWEST: tl.constexpr,
    IN_SEGMENT: tl.constexpr,
):
    """Process rows NUM_ROWS - 1 .. LOWEST of a block; store dz where row < stop.

    Only rows IN_SEGMENT are accumulated into the gradients of the taps. Before row 0, du is zero
    and dz depends on the later rows alone.
    """
    x2, x1, v, rows_dy, rows_dx2 = rows
    taps, filters = parameters
    taps_x2, taps_x1, taps_v = taps
    poles, remainders, residues, skips = filters
    adjoints, later, sums = carry
    later_x2, later_x1, later_v = later
    for i in tl.static_range(NUM_ROWS - 1, LOWEST - 1, -1):
        g = featurized(x2, taps_x2, i, F) * rows_dy[i].to(tl.float32)
        adjoints, du = _step_back(poles, remainders, residues, adjoints, g, skips * g, S, EXACT)
        row = first + i + tl.zeros_like(channel)
        if not IN_SEGMENT:
            du = tl.where(row >= 0, du, 0.0)
        d_x2 = rows_dx2[i].to(tl.float32)
        d_x1 = du * featurized(v, taps_v, i, F)
        d_v = du * featurized(x1, taps_x1, i, F)
        if IN_SEGMENT:
            sums = add_taps(sums, (d_x2, d_x1, d_v), (x2, x1, v), i, F)
        gradients = ((d_x2,) + later_x2, (d_x1,) + later_x1, (d_v,) + later_v)
        at = dz + row.to(tl.int64) * 3 * D + channel
        store_transposed(at, gradients, taps, 0, (row < stop) & inside, D, F)
        later_x2 = gradients[0][: F - 1]
        later_x1 = gradients[1][: F - 1]
        later_v = gradients[2][: F - 1]
    return adjoints, (later_x2, later_x1, later_v), sums


@triton.jit
def _load_rows(
    z,
    z_past,
    dy,
    dx2,
    first,
    channel,
    inside,
    length,
    row_stride: tl.constexpr,
    D: tl.constexpr,
    P: tl.constexpr,
    MORE: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Load ROWS + MORE rows of x2, x1 and v from row `first` - P on, ROWS rows of dy and dx2."""
    N: tl.constexpr = ROWS + MORE
    x2, x1, v = load_signals(z, z_past, first, channel, inside, length, row_stride, D, N, P, P, P)
    rows_dy = load_rows(dy, dy, first, channel, inside, length, D, D, ROWS, 0, 0, 0)
    rows_dx2 = load_rows(dx2, dx2, first, channel, inside, length, D, D, ROWS, 0, 0, 0)
    return x2, x1, v, rows_dy, rows_dx2


@triton.jit(do_not_specialize=["length", "segment", "num_segments"])
def _gradient_kernel(
    z,
    z_past,
    featurizer_taps,
    log_poles,
    residues,
    skip,
    dy,
    dx2,
    adjoints,
    dz,
    dz_past,
    dstate,
    partial_taps,
    length,
    segment,
    num_segments,
    batch_stride,
    row_stride: tl.constexpr,
    D: tl.constexpr,
    F: tl.constexpr,
    S: tl.constexpr,
    EXACT: tl.constexpr,
    HAS_SKIP: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Compute dz of a segment and the F - 1 rows before it, and partial sums for the taps."""
    C: tl.constexpr = 3 * D
    P: tl.constexpr = F - 1
    segment_index, batch = tl.program_id(1), tl.program_id(2)
    channel = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = channel < D
    z += batch.to(tl.int64) * batch_stride
    dy += batch.to(tl.int64) * length * D
    dx2 += batch.to(tl.int64) * length * D
    dz += batch.to(tl.int64) * length * C
    z_past += batch * P * C
    taps = load_featurizer(featurizer_taps, channel, inside, D, F)
    filters = load_filter(
        log_poles, residues, skip, channel, inside, D, S, EXACT, HAS_SKIP, BLOCK_D
    )
    parameters = (taps, filters)
    index = (batch * num_segments + segment_index).to(tl.int64)
    at_end = load_modes(adjoints + index * S * D, channel, inside, S, False, D)
    # Adjoints, gradients at the F - 1 rows after the current one, and accumulators for the taps.
    later = zero_rows(P, BLOCK_D)
    sums = zero_sums(tl.zeros((BLOCK_D,), tl.float32), F)
    carry = (_start_carry(at_end, S, EXACT), (later, later, later), sums)

    begin = segment_index * segment
    count = tl.minimum(segment, length - begin)
    stop = tl.where(segment_index == num_segments - 1, length, begin + count - P)
    first = begin + count - 1
    for _ in range(count % ROWS):
        rows = _load_rows(
            z, z_past, dy, dx2, first, channel, inside, length, row_stride, D, P, P, 1
        )
        carry = _gradient_rows(
            dz, rows, parameters, carry, first, stop, channel, inside, D, F, S, EXACT, 1, 0, True
        )
        first -= 1
    first -= ROWS - 1
    rows = _load_rows(z, z_past, dy, dx2, first, channel, inside, length, row_stride, D, P, P, ROWS)
    for _ in range(count // ROWS):
        before = first - ROWS
        following = _load_rows(
            z, z_past, dy, dx2, before, channel, inside, length, row_stride, D, P, 0, ROWS
        )
        carry = _gradient_rows(
            dz, rows, parameters, carry, first, stop, channel, inside, D, F, S, EXACT, ROWS, 0, True
        )
        first = before
        x2, x1, v, rows_dy, rows_dx2 = following
        rows = (x2 + rows[0][:P], x1 + rows[1][:P], v + rows[2][:P], rows_dy, rows_dx2)

    before_z = dz
    if segment_index == 0:
        at = dstate + batch.to(tl.int64) * S * D
        store_modes(at, _finish_carry(carry[0], S, EXACT), channel, inside, S, D)
        before_z = dz_past + batch * P * C + P * C
    _gradient_rows(
        before_z,
        rows,
        parameters,
        carry,
        first,
        stop,
        channel,
        inside,
        D,
        F,
        S,
        EXACT,
        ROWS,
        ROWS - P,
        False,
    )
    store_sums(partial_taps + index * C * F, carry[2], channel, inside, D, F)


def adjoints(z_BLC, filters, dy_BLD, dfinal_BSD, segment):
    """The adjoint at the end of each segment, [B, N, S, D]."""
    batch, length, _ = z_BLC.shape
    _, modes, width = dfinal_BSD.shape
    num_segments = cdiv(length, segment)
    if num_segments == 1:
        return dfinal_BSD[:, None]
    launch = modal_launch("adjoint", z_BLC.dtype)
    ends_BNSD = dfinal_BSD.new_empty(batch, num_segments, modes, width)
    _ends_kernel[(cdiv(width, launch.block_d), num_segments - 1, batch)](
        z_BLC,
        *filters[:3],
        dy_BLD,
        dfinal_BSD,
        ends_BNSD,
        length,
        segment,
        num_segments,
        batch_stride(z_BLC),
        **sizes_of(z_BLC, filters, launch),
    )
    return scan(ends_BNSD, dfinal_BSD, filters.log_poles_DS, segment, reverse=True)


def input_gradient(z_BLC, filters, z_past_BPC, dy_BLD, dx2_BLD, adjoints_BNSD, segment):
    """Gradients of z, of the featurizer's taps (fp32), and of the rows and the state before z.

    Args:
        z_BLC: As for `kernel.forward`, like the filters and the past.
        filters: Contiguous `ModalFilters`.
        z_past_BPC: The F - 1 rows before `z`.
        dy_BLD: The gradient of y.
        dx2_BLD: The gradient of the featurized x2.
        adjoints_BNSD: The result of `adjoints`.
        segment: Rows of a segment.
    """
    batch, num_segments, modes, width = adjoints_BNSD.shape
    launch = modal_launch("input gradient", z_BLC.dtype)
    dz_BLC = torch.empty_like(z_BLC, memory_format=torch.contiguous_format)
    dz_past_BPC = torch.empty_like(z_past_BPC)
    dstate_BSD = adjoints_BNSD.new_empty(batch, modes, width)
    partials = adjoints_BNSD.new_empty(batch * num_segments, *filters.featurizer_taps_CF.shape)
    _gradient_kernel[(cdiv(width, launch.block_d), num_segments, batch)](
        z_BLC,
        z_past_BPC,
        *filters.launch_arguments(),
        dy_BLD,
        dx2_BLD,
        adjoints_BNSD,
        dz_BLC,
        dz_past_BPC,
        dstate_BSD,
        partials,
        z_BLC.shape[1],
        segment,
        num_segments,
        batch_stride(z_BLC),
        HAS_SKIP=filters.skip_D is not None,
        **sizes_of(z_BLC, filters, launch),
    )
    return dz_BLC, partials.sum(dim=0), dz_past_BPC, dstate_BSD
