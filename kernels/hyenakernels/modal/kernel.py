"""The modal scan: the recurrence itself, fused with featurizer, gates and skip.

    S[t] = exp(p) S[t - 1] + u[t],    y[t] = x2[t] (sum_s R_s S_s[t] + skip u[t])

A thread keeps the states of a few channels in registers and processes a segment of the sequence in
order, in fp32 and without communication between threads: S multiply-adds for the states and S for
the output are all the work, and the rows of the next block are loaded meanwhile. Segments run in
parallel, as a chunked scan: first each computes its final state from a zero initial state, then a
scan over segments computes the true initial states, then all segments compute their outputs.

B batch, L length, D channels, z [B, L, 3D] = [x2 | x1 | v], F featurizer taps, S modes, N segments.
"""

import torch
import triton
import triton.language as tl

from hyenakernels.dispatch import batch_stride
from hyenakernels.gate.rows import (
    featurized,
    load_featurizer,
    load_rows,
    load_signals,
    load_taps,
    zero_rows,
)
from hyenakernels.launch import cdiv, modal_launch, modal_segment, next_power_of_two
from hyenakernels.modal.modes import (
    advance,
    load_filter,
    load_modes,
    load_poles,
    store_modes,
    two_part_exp,
    weigh,
)


@triton.jit(do_not_specialize=["length", "segment", "num_segments"])
def _ends_kernel(
    z,
    z_past,
    featurizer_taps,
    log_poles,
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
    """The final state of each segment but the last, from a zero initial state."""
    C: tl.constexpr = 3 * D
    HALO: tl.constexpr = F - 1
    COUNT: tl.constexpr = ROWS + HALO
    segment_index, batch = tl.program_id(1), tl.program_id(2)
    channel = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = channel < D
    z += batch.to(tl.int64) * batch_stride
    z_past += batch * HALO * C
    poles, remainders = load_poles(log_poles, channel, inside, S, EXACT)
    taps_x1 = load_taps(featurizer_taps + D * F, channel, inside, F)
    taps_v = load_taps(featurizer_taps + 2 * D * F, channel, inside, F)
    states = zero_rows(S, BLOCK_D)

    z_x1, z_v = z + D, z + 2 * D
    past_x1, past_v = z_past + D, z_past + 2 * D
    first = segment_index * segment
    x1 = load_rows(
        z_x1, past_x1, first, channel, inside, length, row_stride, C, COUNT, HALO, HALO, HALO
    )
    v = load_rows(
        z_v, past_v, first, channel, inside, length, row_stride, C, COUNT, HALO, HALO, HALO
    )
    for _ in range(segment // ROWS):
        after = first + ROWS
        next_x1 = load_rows(
            z_x1, past_x1, after, channel, inside, length, row_stride, C, COUNT, HALO, 0, 0
        )
        next_v = load_rows(
            z_v, past_v, after, channel, inside, length, row_stride, C, COUNT, HALO, 0, 0
        )
        for i in tl.static_range(ROWS):
            u = featurized(x1, taps_x1, i, F) * featurized(v, taps_v, i, F)
            states = advance(poles, remainders, states, u, S, EXACT)
        first = after
        x1, v = next_x1, next_v
    at = ends + (batch * num_segments + segment_index).to(tl.int64) * S * D
    store_modes(at, states, channel, inside, S, D)


@triton.jit(do_not_specialize=["segment", "num_segments"])
def _scan_kernel(
    ends,
    initial,
    starts,
    log_poles,
    segment,
    num_segments,
    D: tl.constexpr,
    S: tl.constexpr,
    REVERSED: tl.constexpr,
    BLOCK_D: tl.constexpr,
    STEPS: tl.constexpr,
):
    """Scan over segments: from `ends`, their final states from zero, to `starts`, the true ones."""
    mode, batch = tl.program_id(1), tl.program_id(2)
    channel = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = channel < D
    log_pole = tl.load(log_poles + channel * S + mode, mask=inside, other=0.0)
    decay, remainder = two_part_exp(log_pole.to(tl.float64) * segment)
    lane = batch.to(tl.int64) * num_segments * S * D + mode * D + channel
    carried = tl.load(initial + (batch * S + mode) * D + channel, mask=inside, other=0.0)
    zeros = tl.zeros_like(channel)
    for n in range(0, num_segments, STEPS):
        added = ()
        for i in tl.static_range(STEPS):
            segment_index = num_segments - 1 - n - i if REVERSED else n + i
            present = (n + i + zeros < num_segments - 1) & inside
            at = ends + lane + segment_index.to(tl.int64) * S * D
            added = added + (tl.load(at, mask=present, other=0.0),)
        for i in tl.static_range(STEPS):
            segment_index = num_segments - 1 - n - i if REVERSED else n + i
            at = starts + lane + segment_index.to(tl.int64) * S * D
            tl.store(at, carried, mask=(n + i + zeros < num_segments) & inside)
            if REVERSED:
                # The last segment may be short: its `ends` include the decayed initial state.
                carried = tl.where(n + i + zeros == 0, 0.0, carried)
            carried = tl.fma(decay, carried, tl.fma(remainder, carried, added[i]))


@triton.jit
def _output_rows(
    y,
    signals,
    taps,
    filters,
    states,
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
    poles, remainders, residues, skips = filters
    at = y + first.to(tl.int64) * D + channel
    for i in tl.static_range(NUM_ROWS):
        u = featurized(x1, taps_x1, i, F) * featurized(v, taps_v, i, F)
        states = advance(poles, remainders, states, u, S, EXACT)
        convolved = weigh(residues, states, skips * u, S)
        gated = featurized(x2, taps_x2, i, F) * convolved
        tl.store(at + i * D, gated.to(y.dtype.element_ty), mask=inside)
    return states


@triton.jit(do_not_specialize=["length", "segment", "num_segments"])
def _output_kernel(
    z,
    z_past,
    featurizer_taps,
    log_poles,
    residues,
    skip,
    starts,
    y,
    final,
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
    """The outputs of a segment from its initial state; the last segment stores the final state."""
    HALO: tl.constexpr = F - 1
    segment_index, batch = tl.program_id(1), tl.program_id(2)
    channel = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = channel < D
    z += batch.to(tl.int64) * batch_stride
    y += batch.to(tl.int64) * length * D
    z_past += batch * HALO * 3 * D
    taps = load_featurizer(featurizer_taps, channel, inside, D, F)
    filters = load_filter(
        log_poles, residues, skip, channel, inside, D, S, EXACT, HAS_SKIP, BLOCK_D
    )
    at = starts + (batch * num_segments + segment_index).to(tl.int64) * S * D
    states = load_modes(at, channel, inside, S, False, D)

    first = segment_index * segment
    count = tl.minimum(segment, length - first)
    signals = load_signals(
        z, z_past, first, channel, inside, length, row_stride, D, ROWS + HALO, HALO, HALO, HALO
    )
    for _ in range(count // ROWS):
        after = first + ROWS
        next_signals = load_signals(
            z, z_past, after, channel, inside, length, row_stride, D, ROWS + HALO, HALO, 0, 0
        )
        states = _output_rows(
            y, signals, taps, filters, states, first, channel, inside, D, F, S, EXACT, ROWS
        )
        first = after
        signals = next_signals
    for _ in range(count % ROWS):
        row = load_signals(
            z, z_past, first, channel, inside, length, row_stride, D, F, HALO, HALO, HALO
        )
        states = _output_rows(
            y, row, taps, filters, states, first, channel, inside, D, F, S, EXACT, 1
        )
        first += 1
    if segment_index == num_segments - 1:
        store_modes(final + batch.to(tl.int64) * S * D, states, channel, inside, S, D)


def _rows(launch, num_featurizer_taps, num_modes):
    rows = launch.rows * 16 // max(16, next_power_of_two(num_modes))
    # Only the first block may read the past, so blocks are no shorter than the featurizer's past.
    return max(rows, next_power_of_two(num_featurizer_taps - 1), 1)


def sizes_of(z_BLC, filters, launch):
    """The constexpr sizes that every kernel of this folder takes."""
    num_featurizer_taps = filters.featurizer_taps_CF.shape[1]
    width, num_modes = filters.log_poles_DS.shape
    return {
        "row_stride": z_BLC.stride(1),
        "D": width,
        "F": num_featurizer_taps,
        "S": num_modes,
        "EXACT": z_BLC.dtype == torch.float32,
        "BLOCK_D": launch.block_d,
        # Fewer rows for more modes, so that a thread needs about the same number of registers.
        "ROWS": _rows(launch, num_featurizer_taps, num_modes),
        "num_warps": launch.num_warps,
        "num_stages": 1,
    }


def scan(ends_BNSD, initial_BSD, log_poles_DS, segment, *, reverse):
    """The state before every segment, or the adjoint after every segment if `reverse`.

    Args:
        ends_BNSD: The final state of each segment from a zero initial state. The last one in the
            order of the scan is not read. In reverse the last segment starts from `initial`.
        initial_BSD: The state before the first segment, or the adjoint after the last.
        log_poles_DS: Contiguous.
        segment: Rows of a segment.
        reverse: Scan from the last segment to the first.
    """
    batch, num_segments, modes, width = ends_BNSD.shape
    starts_BNSD = torch.empty_like(ends_BNSD)
    block_d = 128
    _scan_kernel[(cdiv(width, block_d), modes, batch)](
        ends_BNSD,
        initial_BSD,
        starts_BNSD,
        log_poles_DS,
        segment,
        num_segments,
        D=width,
        S=modes,
        REVERSED=reverse,
        BLOCK_D=block_d,
        STEPS=16,
        num_warps=4,
    )
    return starts_BNSD


def starts(z_BLC, filters, z_past_BPC, state_BSD):
    """The state before each segment, [B, N, S, D]; the arguments are those of `forward`."""
    batch, length, _ = z_BLC.shape
    launch = modal_launch("forward", z_BLC.dtype)
    sizes = sizes_of(z_BLC, filters, launch)
    segment = modal_segment(sizes["D"])
    num_segments = cdiv(length, segment)
    if num_segments == 1:
        return state_BSD[:, None].clone()
    ends_BNSD = state_BSD.new_empty(batch, num_segments, *state_BSD.shape[1:])
    _ends_kernel[(cdiv(sizes["D"], launch.block_d), num_segments - 1, batch)](
        z_BLC,
        z_past_BPC,
        filters.featurizer_taps_CF,
        filters.log_poles_DS,
        ends_BNSD,
        length,
        segment,
        num_segments,
        batch_stride(z_BLC),
        **sizes,
    )
    return scan(ends_BNSD, state_BSD, filters.log_poles_DS, segment, reverse=False)


def forward(z_BLC, filters, z_past_BPC, state_BSD):
    """Compute y = x2 * (modal(u) + skip * u), u = x1 * v, of the featurized projections.

    Args:
        z_BLC: The projections, contiguous along C.
        filters: Contiguous `ModalFilters`.
        z_past_BPC: The F - 1 rows before `z`, contiguous.
        state_BSD: The state before the first row, fp32, contiguous.

    Returns:
        y [B, L, D] in the dtype of `z`, the state after the last row [B, S, D], and the state
        before each segment [B, N, S, D], saved for the backward pass; both in fp32.
    """
    batch, length, _ = z_BLC.shape
    launch = modal_launch("forward", z_BLC.dtype)
    sizes = sizes_of(z_BLC, filters, launch)
    starts_BNSD = starts(z_BLC, filters, z_past_BPC, state_BSD)
    num_segments = starts_BNSD.shape[1]
    y_BLD = z_BLC.new_empty(batch, length, sizes["D"])
    final_BSD = torch.empty_like(state_BSD)
    _output_kernel[(cdiv(sizes["D"], launch.block_d), num_segments, batch)](
        z_BLC,
        z_past_BPC,
        *filters.launch_arguments(),
        starts_BNSD,
        y_BLD,
        final_BSD,
        length,
        modal_segment(sizes["D"]),
        num_segments,
        batch_stride(z_BLC),
        HAS_SKIP=filters.skip_D is not None,
        **sizes,
    )
    return y_BLD, final_BSD, starts_BNSD
