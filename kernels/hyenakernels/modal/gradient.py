"""Filter gradients of the fused modal scan, from the first row to the last.

With g = dy * x2, S the states and A their adjoints (`modal.adjoint`),

    dx2[t] = dy[t] (sum_s R_s S_s[t] + skip u[t]),
    dR = sum_t g[t] S[t],    dexp(p) = R sum_t g[t] Q[t] + sum_n A_n Q_n,

where Q[t] = exp(p) Q[t - 1] + S[t - 1] is the derivative of the state with respect to exp(p) inside
a segment, Q_n its value after segment n, and A_n the adjoint at the end of segment n. With frozen
filters, only dx2 is computed.

B batch, L length, D channels, z [B, L, 3D] = [x2 | x1 | v], F featurizer taps, S modes, N segments.
"""

import torch
import triton
import triton.language as tl

from hyenakernels.dispatch import batch_stride
from hyenakernels.gate.rows import featurized, load_featurizer, load_rows, load_signals, zero_rows
from hyenakernels.launch import cdiv, modal_launch, modal_segment
from hyenakernels.modal.adjoint import adjoints, input_gradient
from hyenakernels.modal.kernel import sizes_of
from hyenakernels.modal.modes import decayed, load_filter, load_modes, store_modes


@triton.jit
def _parameter_rows(
    dx2,
    signals,
    dy,
    taps,
    filters,
    carry,
    first,
    channel,
    inside,
    D: tl.constexpr,
    F: tl.constexpr,
    S: tl.constexpr,
    EXACT: tl.constexpr,
    FROZEN: tl.constexpr,
    NUM_ROWS: tl.constexpr,
):
    x2, x1, v = signals
    taps_x2, taps_x1, taps_v = taps
    poles, remainders, residues, skips = filters
    states, slopes, sum_residues, sum_poles, sum_skip = carry
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
            state = decayed(poles, remainders, states, u, s, EXACT)
            convolved += residues[s] * state
            following = following + (state,)
            if not FROZEN:
                slope = decayed(poles, remainders, slopes, states[s], s, EXACT)
                sloped = sloped + (slope,)
                residue_sums = residue_sums + (sum_residues[s] + g * state,)
                pole_sums = pole_sums + (sum_poles[s] + g * slope,)
        states = following
        if not FROZEN:
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
    FROZEN: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Compute dx2 of a segment, and its partial sums for poles, residues and skip unless FROZEN."""
    HALO: tl.constexpr = F - 1
    segment_index, batch = tl.program_id(1), tl.program_id(2)
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
    index = (batch * num_segments + segment_index).to(tl.int64)
    states = load_modes(starts + index * S * D, channel, inside, S, False, D)
    zeros = zero_rows(S, BLOCK_D)
    # States, their derivatives with respect to exp(p), accumulators for residues, poles and skip.
    carry = (states, zeros, zeros, zeros, tl.zeros((BLOCK_D,), tl.float32))

    first = segment_index * segment
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
        carry = _parameter_rows(
            dx2,
            signals,
            rows_dy,
            taps,
            filters,
            carry,
            first,
            channel,
            inside,
            D,
            F,
            S,
            EXACT,
            FROZEN,
            ROWS,
        )
        first = after
        signals = next_signals
        rows_dy = next_dy
    for _ in range(count % ROWS):
        row = load_signals(
            z, z_past, first, channel, inside, length, row_stride, D, F, HALO, HALO, HALO
        )
        row_dy = load_rows(dy, dy, first, channel, inside, length, D, D, 1, 0, 0, 0)
        carry = _parameter_rows(
            dx2,
            row,
            row_dy,
            taps,
            filters,
            carry,
            first,
            channel,
            inside,
            D,
            F,
            S,
            EXACT,
            FROZEN,
            1,
        )
        first += 1

    if FROZEN:
        return
    poles, _, weights, _ = filters
    _, slopes, sum_residues, sum_poles, sum_skip = carry
    at_end = load_modes(adjoints + index * S * D, channel, inside, S, False, D)
    log_pole_sums = ()
    for s in tl.static_range(S):
        by_pole = weights[s] * sum_poles[s] + at_end[s] * slopes[s]
        log_pole_sums = log_pole_sums + (poles[s] * by_pole,)
    store_modes(partial_poles + index * S * D, log_pole_sums, channel, inside, S, D)
    store_modes(partial_residues + index * S * D, sum_residues, channel, inside, S, D)
    if HAS_SKIP:
        tl.store(partial_skip + index * D + channel, sum_skip, mask=inside)


def gradients(z_BLC, filters, z_past_BPC, starts_BNSD, dy_BLD, dfinal_BSD, frozen):
    """Gradients of all inputs of `forward`.

    Args:
        z_BLC: As for `forward`, like the filters and the past.
        filters: Contiguous `ModalFilters`.
        z_past_BPC: The F - 1 rows before `z`.
        starts_BNSD: The state before each segment, as `forward` returned it.
        dy_BLD: The gradient of y.
        dfinal_BSD: The gradient of the state after the last row.
        frozen: Whether poles, residues and skip need no gradients, which are then empty.

    Returns:
        Gradients of z, featurizer taps, poles, residues, skip (empty without one), past and state:
        those of z and of its past in the dtype of `z`, the others in fp32.
    """
    segment = modal_segment(filters.log_poles_DS.shape[0])
    adjoints_BNSD = adjoints(z_BLC, filters, dy_BLD, dfinal_BSD, segment)
    dx2_BLD, dpoles_DS, dresidues_DS, dskip_D = _parameter_gradients(
        z_BLC, filters, z_past_BPC, dy_BLD, starts_BNSD, adjoints_BNSD, segment, frozen
    )
    dz_BLC, dfeaturizer_CF, dz_past_BPC, dstate_BSD = input_gradient(
        z_BLC, filters, z_past_BPC, dy_BLD, dx2_BLD, adjoints_BNSD, segment
    )
    return dz_BLC, dfeaturizer_CF, dpoles_DS, dresidues_DS, dskip_D, dz_past_BPC, dstate_BSD


def _parameter_gradients(
    z_BLC, filters, z_past_BPC, dy_BLD, starts_BNSD, adjoints_BNSD, segment, frozen
):
    """Gradients of the featurized x2, and of poles, residues and skip."""
    batch, num_segments, _, width = starts_BNSD.shape
    launch, has_skip = modal_launch("parameters", z_BLC.dtype), filters.skip_D is not None
    dx2_BLD = z_BLC.new_empty(batch, z_BLC.shape[1], width)
    sums = starts_BNSD[:0] if frozen else starts_BNSD
    dpoles_BNSD, dresidues_BNSD = torch.empty_like(sums), torch.empty_like(sums)
    dskip_BND = starts_BNSD.new_empty(len(sums), num_segments, width)
    _parameter_kernel[(cdiv(width, launch.block_d), num_segments, batch)](
        z_BLC,
        z_past_BPC,
        *filters.launch_arguments(),
        dy_BLD,
        starts_BNSD,
        adjoints_BNSD,
        dx2_BLD,
        dpoles_BNSD,
        dresidues_BNSD,
        dskip_BND,
        z_BLC.shape[1],
        segment,
        num_segments,
        batch_stride(z_BLC),
        HAS_SKIP=has_skip,
        FROZEN=frozen,
        **sizes_of(z_BLC, filters, launch),
    )
    if frozen:
        return dx2_BLD, *(dskip_BND.new_empty(0) for _ in range(3))
    dskip_D = dskip_BND.sum(dim=(0, 1)) if has_skip else dskip_BND.new_empty(0)
    return dx2_BLD, dpoles_BNSD.sum(dim=(0, 1)).T, dresidues_BNSD.sum(dim=(0, 1)).T, dskip_D
