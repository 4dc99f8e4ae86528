"""The modal scan: the recurrence itself, fused with featurizer, gates and skip.

    S[t] = exp(p) S[t - 1] + u[t],    y[t] = x2[t] (sum_s R_s S_s[t] + skip u[t])

A thread keeps the states of a few channels in registers and walks down a segment of the sequence,
in fp32 and without any exchange between threads: S multiply-adds for the states and S for the
output are all there is to do, and the rows of the next block arrive meanwhile. Segments run side by
side: first each finds the state it would leave if it began at zero, then a scan over segments gives
every one its true first state, then all outputs follow.

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
from hyenakernels.launch import modal_launch, modal_segment
from hyenakernels.modal.modes import (
    advance,
    load_filter,
    load_modes,
    load_poles,
    store_modes,
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
    """The state each segment but the last would leave if it began at zero."""
    C: tl.constexpr = 3 * D
    HALO: tl.constexpr = F - 1
    COUNT: tl.constexpr = ROWS + HALO
    piece, batch = tl.program_id(1), tl.program_id(2)
    channel = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = channel < D
    z += batch.to(tl.int64) * batch_stride
    z_past += batch * HALO * C
    poles, rests = load_poles(log_poles, channel, inside, S, EXACT)
    taps_x1 = load_taps(featurizer_taps + D * F, channel, inside, F)
    taps_v = load_taps(featurizer_taps + 2 * D * F, channel, inside, F)
    states = zero_rows(S, BLOCK_D)

    z_x1, z_v = z + D, z + 2 * D
    past_x1, past_v = z_past + D, z_past + 2 * D
    first = piece * segment
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
            states = advance(poles, rests, states, u, S, EXACT)
        first = after
        x1, v = next_x1, next_v
    at = ends + (batch * num_segments + piece).to(tl.int64) * S * D
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
    """Carry states from segment to segment; `starts` is what each finds, `ends` what each adds."""
    mode, batch = tl.program_id(1), tl.program_id(2)
    channel = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = channel < D
    log_pole = tl.load(log_poles + channel * S + mode, mask=inside, other=0.0).to(tl.float32)
    decay = tl.exp(log_pole * segment)
    lane = batch.to(tl.int64) * num_segments * S * D + mode * D + channel
    carried = tl.load(initial + (batch * S + mode) * D + channel, mask=inside, other=0.0)
    none = tl.zeros_like(channel)
    for n in range(0, num_segments, STEPS):
        added = ()
        for i in tl.static_range(STEPS):
            piece = num_segments - 1 - n - i if REVERSED else n + i
            present = (n + i + none < num_segments - 1) & inside
            at = ends + lane + piece.to(tl.int64) * S * D
            added = added + (tl.load(at, mask=present, other=0.0),)
        for i in tl.static_range(STEPS):
            piece = num_segments - 1 - n - i if REVERSED else n + i
            at = starts + lane + piece.to(tl.int64) * S * D
            tl.store(at, carried, mask=(n + i + none < num_segments) & inside)
            if REVERSED:
                # The last segment may be short, and has let the first state decay by itself.
                carried = tl.where(n + i + none == 0, 0.0, carried)
            carried = decay * carried + added[i]


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
    poles, rests, residues, skips = filters
    at = y + first.to(tl.int64) * D + channel
    for i in tl.static_range(NUM_ROWS):
        u = featurized(x1, taps_x1, i, F) * featurized(v, taps_v, i, F)
        states = advance(poles, rests, states, u, S, EXACT)
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
    """All outputs of a segment from its first state; the last segment leaves the final state."""
    HALO: tl.constexpr = F - 1
    piece, batch = tl.program_id(1), tl.program_id(2)
    channel = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = channel < D
    z += batch.to(tl.int64) * batch_stride
    y += batch.to(tl.int64) * length * D
    z_past += batch * HALO * 3 * D
    taps = load_featurizer(featurizer_taps, channel, inside, D, F)
    filters = load_filter(
        log_poles, residues, skip, channel, inside, D, S, EXACT, HAS_SKIP, BLOCK_D
    )
    at = starts + (batch * num_segments + piece).to(tl.int64) * S * D
    states = load_modes(at, channel, inside, S, False, D)

    first = piece * segment
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
    if piece == num_segments - 1:
        store_modes(final + batch.to(tl.int64) * S * D, states, channel, inside, S, D)


def _rows(launch, num_featurizer_taps, num_modes):
    rows = launch.rows * 16 // max(16, triton.next_power_of_2(num_modes))
    # Only a first block may reach behind the sequence: blocks are as long as the featurizer's past.
    return max(rows, triton.next_power_of_2(num_featurizer_taps - 1), 1)


def sizes_of(z_BLC, featurizer_taps_CF, log_poles_DS, launch):
    """The compile-time sizes that every kernel of this folder takes."""
    return {
        "row_stride": z_BLC.stride(1),
        "D": log_poles_DS.shape[0],
        "F": featurizer_taps_CF.shape[1],
        "S": log_poles_DS.shape[1],
        "EXACT": z_BLC.dtype == torch.float32,
        "BLOCK_D": launch.block_d,
        # More modes, fewer rows: what a thread holds and Triton compiles stays the same.
        "ROWS": _rows(launch, featurizer_taps_CF.shape[1], log_poles_DS.shape[1]),
        "num_warps": launch.num_warps,
        "num_stages": 1,
    }


def scan(ends_BNSD, initial_BSD, log_poles_DS, segment, *, reverse):
    """The state every segment finds, from what each adds and the state before the first.

    Args:
        ends_BNSD: What each segment would leave if it began at zero; the last in the order of the
            scan is not read. In reverse the last segment begins at `initial` instead.
        initial_BSD: The state before the first segment, or after the last.
        log_poles_DS: The poles.
        segment: Rows of a segment.
        reverse: Go from the last segment to the first.
    """
    batch, num_segments, modes, width = ends_BNSD.shape
    starts_BNSD = torch.empty_like(ends_BNSD)
    block_d = 128
    _scan_kernel[(triton.cdiv(width, block_d), modes, batch)](
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


def starts(z_BLC, featurizer_taps_CF, log_poles_DS, z_past_BFC, state_BSD):
    """The state before each segment, [B, N, S, D]; arguments as `forward` takes them."""
    batch, length, _ = z_BLC.shape
    launch = modal_launch("forward", z_BLC.dtype)
    sizes = sizes_of(z_BLC, featurizer_taps_CF, log_poles_DS, launch)
    segment = modal_segment(sizes["D"])
    num_segments = triton.cdiv(length, segment)
    if num_segments == 1:
        return state_BSD[:, None].clone()
    ends_BNSD = state_BSD.new_empty(batch, num_segments, *state_BSD.shape[1:])
    _ends_kernel[(triton.cdiv(sizes["D"], launch.block_d), num_segments - 1, batch)](
        z_BLC,
        z_past_BFC,
        featurizer_taps_CF,
        log_poles_DS,
        ends_BNSD,
        length,
        segment,
        num_segments,
        batch_stride(z_BLC),
        **sizes,
    )
    return scan(ends_BNSD, state_BSD, log_poles_DS, segment, reverse=False)


def forward(z_BLC, featurizer_taps_CF, log_poles_DS, residues_DS, skip_D, z_past_BFC, state_BSD):
    """Compute y = x2 * (modal convolution of u + skip * u), u = x1 * v, all featurized.

    Args:
        z_BLC: The projections, contiguous along C.
        featurizer_taps_CF: Newest first.
        log_poles_DS: Real poles.
        residues_DS: The weight of each mode.
        skip_D: None for no skip.
        z_past_BFC: The F - 1 rows before `z`.
        state_BSD: The state before the first row, fp32.

    Returns:
        y [B, L, D] in the dtype of `z`, the state after the last row [B, S, D], and the state
        before each segment [B, N, S, D], which the backward pass starts from; both in fp32.
    """
    batch, length, _ = z_BLC.shape
    launch = modal_launch("forward", z_BLC.dtype)
    sizes = sizes_of(z_BLC, featurizer_taps_CF, log_poles_DS, launch)
    starts_BNSD = starts(z_BLC, featurizer_taps_CF, log_poles_DS, z_past_BFC, state_BSD)
    num_segments = starts_BNSD.shape[1]
    y_BLD = z_BLC.new_empty(batch, length, sizes["D"])
    final_BSD = torch.empty_like(state_BSD)
    _output_kernel[(triton.cdiv(sizes["D"], launch.block_d), num_segments, batch)](
        z_BLC,
        z_past_BFC,
        featurizer_taps_CF,
        log_poles_DS,
        residues_DS,
        skip_D if skip_D is not None else log_poles_DS,
        starts_BNSD,
        y_BLD,
        final_BSD,
        length,
        modal_segment(sizes["D"]),
        num_segments,
        batch_stride(z_BLC),
        HAS_SKIP=skip_D is not None,
        **sizes,
    )
    return y_BLD, final_BSD, starts_BNSD
