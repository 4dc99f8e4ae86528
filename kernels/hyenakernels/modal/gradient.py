"""Gradients of the fused modal scan.

With g = dy * x2, the adjoint of the state runs up the sequence,

    A[t] = exp(p) (A[t + 1] + R g[t]),    du[t] = sum_s (A_s[t + 1] + R_s g[t]) + skip g[t],

and is scanned over segments as the state is. The gradients of residues and poles run down it,

    dR = sum_t g[t] S[t],    dexp(p) = R sum_t g[t] Q[t] + sum_n A_n Q_n,

where Q[t] = exp(p) Q[t - 1] + S[t - 1] is the derivative of the state by exp(p) inside a segment,
Q_n its value after segment n, and A_n the adjoint that segment n finds at its end.

B batch, L length, D channels, z [B, L, 3D] = [x2 | x1 | v], F featurizer taps, S modes, N segments.
"""

import torch
import triton
import triton.language as tl

from hyenakernels.gate.rows import (
    featurized,
    load_featurizer,
    load_rows,
    load_signals,
    load_taps,
    zero_rows,
)
from hyenakernels.launch import modal_gradient_launch, modal_launch, modal_segment
from hyenakernels.modal.kernel import scan, sizes_of
from hyenakernels.modal.modes import decayed, load_filter, load_modes, store_modes


@triton.jit
def _adjoint_rows(
    du,
    x2,
    dy,
    taps_x2,
    filters,
    adjoints,
    first,
    channel,
    inside,
    D: tl.constexpr,
    F: tl.constexpr,
    S: tl.constexpr,
    EXACT: tl.constexpr,
    NUM_ROWS: tl.constexpr,
    OUTPUT: tl.constexpr,
):
    poles, rests, residues, skips = filters
    at = du + first.to(tl.int64) * D + channel
    for i in tl.static_range(NUM_ROWS - 1, -1, -1):
        g = featurized(x2, taps_x2, i, F) * dy[i].to(tl.float32)
        gradient = skips * g
        received = ()
        following = ()
        for s in tl.static_range(S):
            received = received + (adjoints[s] + residues[s] * g,)
            gradient += received[s]
            following = following + (decayed(poles, rests, received, 0.0, s, EXACT),)
        adjoints = following
        if OUTPUT:
            tl.store(at + i * D, gradient.to(du.dtype.element_ty), mask=inside)
    return adjoints


@triton.jit(do_not_specialize=["length", "segment", "num_segments"])
def _adjoint_kernel(
    z,
    z_past,
    featurizer_taps,
    log_poles,
    residues,
    skip,
    dy,
    starts,
    ends,
    du,
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
    OUTPUT: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Up a segment: from the adjoint it finds to the one it hands on; du on the way if OUTPUT.

    Without OUTPUT all segments but the last begin at zero, and the first is left out.
    """
    C: tl.constexpr = 3 * D
    HALO: tl.constexpr = F - 1
    COUNT: tl.constexpr = ROWS + HALO
    piece, batch = tl.program_id(1), tl.program_id(2)
    if not OUTPUT:
        piece += 1
    channel = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = channel < D
    z += batch.to(tl.int64) * batch_stride
    dy += batch.to(tl.int64) * length * D
    du += batch.to(tl.int64) * length * D
    z_past += batch * HALO * C
    taps_x2 = load_taps(featurizer_taps, channel, inside, F)
    filters = load_filter(
        log_poles, residues, skip, channel, inside, D, S, EXACT, HAS_SKIP, BLOCK_D
    )
    found = (batch * num_segments + piece).to(tl.int64) * S * D
    if OUTPUT:
        adjoints = load_modes(starts + found, channel, inside, S, False, D)
    else:
        given = inside & (piece + tl.zeros_like(channel) == num_segments - 1)
        at = starts + batch.to(tl.int64) * S * D
        adjoints = load_modes(at, channel, given, S, False, D)

    begin = piece * segment
    count = tl.minimum(segment, length - begin)
    first = begin + count - 1
    for _ in range(count % ROWS):
        row_x2 = load_rows(
            z, z_past, first, channel, inside, length, row_stride, C, F, HALO, HALO, HALO
        )
        row_dy = load_rows(dy, dy, first, channel, inside, length, D, D, 1, 0, 0, 0)
        adjoints = _adjoint_rows(
            du,
            row_x2,
            row_dy,
            taps_x2,
            filters,
            adjoints,
            first,
            channel,
            inside,
            D,
            F,
            S,
            EXACT,
            1,
            OUTPUT,
        )
        first -= 1
    first -= ROWS - 1
    x2 = load_rows(
        z, z_past, first, channel, inside, length, row_stride, C, COUNT, HALO, HALO, HALO
    )
    rows_dy = load_rows(dy, dy, first, channel, inside, length, D, D, ROWS, 0, 0, 0)
    for _ in range(count // ROWS):
        before = first - ROWS
        next_x2 = load_rows(
            z, z_past, before, channel, inside, length, row_stride, C, COUNT, HALO, HALO, HALO
        )
        next_dy = load_rows(dy, dy, before, channel, inside, length, D, D, ROWS, 0, 0, 0)
        adjoints = _adjoint_rows(
            du,
            x2,
            rows_dy,
            taps_x2,
            filters,
            adjoints,
            first,
            channel,
            inside,
            D,
            F,
            S,
            EXACT,
            ROWS,
            OUTPUT,
        )
        first = before
        x2 = next_x2
        rows_dy = next_dy
    store_modes(ends + found, adjoints, channel, inside, S, D)


@triton.jit
def _parameter_rows(
    dx2,
    signals,
    dy,
    taps,
    filters,
    walk,
    first,
    channel,
    inside,
    D: tl.constexpr,
    F: tl.constexpr,
    S: tl.constexpr,
    EXACT: tl.constexpr,
    NUM_ROWS: tl.constexpr,
):
    x2, x1, v = signals
    taps_x2, taps_x1, taps_v = taps
    poles, rests, residues, skips = filters
    states, slopes, sum_residues, sum_poles, sum_skip = walk
    at = dx2 + first.to(tl.int64) * D + channel
    for i in tl.static_range(NUM_ROWS):
        u = featurized(x1, taps_x1, i, F) * featurized(v, taps_v, i, F)
        gate = dy[i].to(tl.float32)
        g = featurized(x2, taps_x2, i, F) * gate
        convolved = skips * u
        following = ()
        sloped = ()
        residue_sums = ()
        pole_sums = ()
        for s in tl.static_range(S):
            slope = decayed(poles, rests, slopes, states[s], s, EXACT)
            state = decayed(poles, rests, states, u, s, EXACT)
            convolved += residues[s] * state
            sloped = sloped + (slope,)
            following = following + (state,)
            residue_sums = residue_sums + (sum_residues[s] + g * state,)
            pole_sums = pole_sums + (sum_poles[s] + g * slope,)
        states = following
        slopes = sloped
        sum_residues = residue_sums
        sum_poles = pole_sums
        sum_skip += g * u
        tl.store(at + i * D, (gate * convolved).to(dx2.dtype.element_ty), mask=inside)
    return states, slopes, sum_residues, sum_poles, sum_skip


@triton.jit(do_not_specialize=["length", "segment", "num_segments"])
def _parameter_kernel(
    z,
    z_past,
    featurizer_taps,
    log_poles,
    residues,
    skip,
    dy,
    starts,
    adjoints,
    dx2,
    partial_poles,
    partial_residues,
    partial_skip,
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
    """Down a segment: dx2, and its share of the gradients of poles, residues and skip."""
    HALO: tl.constexpr = F - 1
    piece, batch = tl.program_id(1), tl.program_id(2)
    channel = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = channel < D
    z += batch.to(tl.int64) * batch_stride
    dy += batch.to(tl.int64) * length * D
    dx2 += batch.to(tl.int64) * length * D
    z_past += batch * HALO * 3 * D
    taps = load_featurizer(featurizer_taps, channel, inside, D, F)
    filters = load_filter(
        log_poles, residues, skip, channel, inside, D, S, EXACT, HAS_SKIP, BLOCK_D
    )
    index = (batch * num_segments + piece).to(tl.int64)
    states = load_modes(starts + index * S * D, channel, inside, S, False, D)
    zeros = zero_rows(S, BLOCK_D)
    # States, their slopes by exp(p), and the sums for residues, poles and skip.
    walk = (states, zeros, zeros, zeros, tl.zeros((BLOCK_D,), tl.float32))

    first = piece * segment
    count = tl.minimum(segment, length - first)
    signals = load_signals(
        z, z_past, first, channel, inside, length, row_stride, D, ROWS + HALO, HALO, HALO, HALO
    )
    rows_dy = load_rows(dy, dy, first, channel, inside, length, D, D, ROWS, 0, 0, 0)
    for _ in range(count // ROWS):
        after = first + ROWS
        next_signals = load_signals(
            z, z_past, after, channel, inside, length, row_stride, D, ROWS + HALO, HALO, 0, 0
        )
        next_dy = load_rows(dy, dy, after, channel, inside, length, D, D, ROWS, 0, 0, 0)
        walk = _parameter_rows(
            dx2, signals, rows_dy, taps, filters, walk, first, channel, inside, D, F, S, EXACT, ROWS
        )
        first = after
        signals = next_signals
        rows_dy = next_dy
    for _ in range(count % ROWS):
        row = load_signals(
            z, z_past, first, channel, inside, length, row_stride, D, F, HALO, HALO, HALO
        )
        row_dy = load_rows(dy, dy, first, channel, inside, length, D, D, 1, 0, 0, 0)
        walk = _parameter_rows(
            dx2, row, row_dy, taps, filters, walk, first, channel, inside, D, F, S, EXACT, 1
        )
        first += 1

    poles, _, weights, _ = filters
    _, slopes, sum_residues, sum_poles, sum_skip = walk
    found = load_modes(adjoints + index * S * D, channel, inside, S, False, D)
    log_pole_sums = ()
    for s in tl.static_range(S):
        by_pole = weights[s] * sum_poles[s] + found[s] * slopes[s]
        log_pole_sums = log_pole_sums + (poles[s] * by_pole,)
    store_modes(partial_poles + index * S * D, log_pole_sums, channel, inside, S, D)
    store_modes(partial_residues + index * S * D, sum_residues, channel, inside, S, D)
    if HAS_SKIP:
        tl.store(partial_skip + index * D + channel, sum_skip, mask=inside)


def gradients(
    z_BLC,
    featurizer_taps_CF,
    log_poles_DS,
    residues_DS,
    skip_D,
    z_past_BFC,
    starts_BNSD,
    dy,
    dfinal,
):
    """Gradients at the fused scan's inner signals and of its parameters.

    Args:
        z_BLC: As in forward, and so are the parameters and the past.
        featurizer_taps_CF: Newest first.
        log_poles_DS: Real poles.
        residues_DS: The weight of each mode.
        skip_D: None for no skip.
        z_past_BFC: The F - 1 rows before `z`.
        starts_BNSD: The state before each segment, as forward returned it.
        dy: Gradient of y.
        dfinal: Gradient of the state after the last row, [B, S, D].

    Returns:
        Gradients of the featurized x2 and of u = x1 * v in the dtype of `z`; of log poles, residues
        and skip (empty when there is none), and of the state before the first row, in fp32.
    """
    batch, length, _ = z_BLC.shape
    num_segments, _, width = starts_BNSD.shape[1:]
    skip = log_poles_DS if skip_D is None else skip_D
    inputs = (z_BLC, z_past_BFC, featurizer_taps_CF, log_poles_DS, residues_DS, skip, dy)
    shape = (length, modal_segment(width), num_segments, z_BLC.stride(0))
    du_BLD, found_BNSD, dstate_BSD = _adjoints(inputs, shape, skip_D is not None, dfinal)

    dx2_BLD = torch.empty_like(du_BLD)
    dpoles_BNSD, dresidues_BNSD = torch.empty_like(starts_BNSD), torch.empty_like(starts_BNSD)
    dskip_BND = starts_BNSD.new_empty(batch, num_segments, width)
    sizes = sizes_of(z_BLC, featurizer_taps_CF, log_poles_DS, modal_gradient_launch())
    _parameter_kernel[(triton.cdiv(width, sizes["BLOCK_D"]), num_segments, batch)](
        *inputs,
        starts_BNSD,
        found_BNSD,
        dx2_BLD,
        dpoles_BNSD,
        dresidues_BNSD,
        dskip_BND,
        *shape,
        HAS_SKIP=skip_D is not None,
        **sizes,
    )
    dskip = dskip_BND.sum(dim=(0, 1)) if skip_D is not None else dskip_BND.new_empty(0)
    dpoles, dresidues = dpoles_BNSD.sum(dim=(0, 1)).T, dresidues_BNSD.sum(dim=(0, 1)).T
    return dx2_BLD, du_BLD, dpoles, dresidues, dskip, dstate_BSD


def _adjoints(inputs, shape, has_skip, dfinal):
    """The gradient of u, the adjoint each segment finds at its end, and that of the first state."""
    z_BLC, _, featurizer_taps_CF, log_poles_DS, *_ = inputs
    length, segment, num_segments, _ = shape
    batch, modes, width = dfinal.shape
    sizes = sizes_of(z_BLC, featurizer_taps_CF, log_poles_DS, modal_launch(z_BLC.dtype))
    sizes["HAS_SKIP"] = has_skip
    programs = triton.cdiv(width, sizes["BLOCK_D"])
    du_BLD = z_BLC.new_empty(batch, length, width)
    ends_BNSD = dfinal.new_empty(batch, num_segments, modes, width)
    found_BNSD = dfinal[:, None]
    if num_segments > 1:
        _adjoint_kernel[(programs, num_segments - 1, batch)](
            *inputs, dfinal, ends_BNSD, du_BLD, *shape, OUTPUT=False, **sizes
        )
        found_BNSD = scan(ends_BNSD, dfinal, log_poles_DS, segment, reverse=True)
    _adjoint_kernel[(programs, num_segments, batch)](
        *inputs, found_BNSD, ends_BNSD, du_BLD, *shape, OUTPUT=True, **sizes
    )
    return du_BLD, found_BNSD, ends_BNSD[:, 0]
