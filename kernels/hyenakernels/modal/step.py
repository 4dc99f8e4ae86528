"""Decoding step of the gated modal convolution: one token of each sequence, L = 1.

B batch, D channels, z [B, 1, 3D] = [x2 | x1 | v], F featurizer taps, S modes; `rings` defines a
ring.
"""

import triton
import triton.language as tl

from hyenakernels.dispatch import batch_stride
from hyenakernels.gate.rows import load_featurizer
from hyenakernels.gate.step import gated_step
from hyenakernels.launch import cdiv
from hyenakernels.modal.modes import advance, load_filter, load_modes, store_modes, weigh
from hyenakernels.overlap import overlap_options, wait_for_previous

BLOCK_D = 32  # channels of a program, one per thread
PROGRAMS = 16  # for the same channels of different sequences: as many as are resident at once


@triton.jit(do_not_specialize=["batch_size"])
def _step_kernel(
    z,
    z_ring,
    featurizer_taps,
    log_poles,
    residues,
    skip,
    state,
    lengths,
    y,
    batch_size,
    batch_stride,
    D: tl.constexpr,
    F: tl.constexpr,
    S: tl.constexpr,
    HAS_SKIP: tl.constexpr,
    BLOCK_D: tl.constexpr,
    OVERLAPS: tl.constexpr,
):
    channel = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = channel < D
    # Filters are loaded while the previous launch still runs.
    featurizer = load_featurizer(featurizer_taps, channel, inside, D, F)
    # EXACT whatever the dtype: there is no limit to the number of tokens that a pole is applied to.
    poles, remainders, residue, skips = load_filter(
        log_poles, residues, skip, channel, inside, D, S, True, HAS_SKIP, BLOCK_D
    )
    wait_for_previous(OVERLAPS)
    first, step = tl.program_id(1).to(tl.int64), tl.num_programs(1)
    # States are loaded one sequence ahead (prefetched).
    following = load_modes(state + first * S * D, channel, inside, S, False, D)
    for sequence in range(first, batch_size, step):
        batch = tl.cast(sequence, tl.int64)
        states = following
        is_next = channel < tl.where(batch + step < batch_size, D, 0)
        following = load_modes(state + (batch + step) * S * D, channel, is_next, S, False, D)
        position = tl.load(lengths + batch)
        x2, u = gated_step(
            z, z_ring, featurizer, batch, batch_stride, position, channel, inside, D, F
        )
        moved = advance(poles, remainders, states, u, S, True)
        convolved = weigh(residue, moved, u * skips, S)
        tl.store(y + batch * D + channel, (x2 * convolved).to(y.dtype.element_ty), mask=inside)
        store_modes(state + batch * S * D, moved, channel, inside, S, D)


def step(z_B1C, filters, slots):
    """`hyena_modal_step` for contiguous filters and rings, and states contiguous as [B, S, D]."""
    batch, (width, modes) = len(z_B1C), filters.log_poles_DS.shape
    y_B1D = z_B1C.new_empty(batch, 1, width)
    _step_kernel[(cdiv(width, BLOCK_D), min(batch, PROGRAMS))](
        z_B1C,
        slots.featurizer_BFC,
        *filters.launch_arguments(),
        slots.inner,
        slots.lengths_B,
        y_B1D,
        batch,
        batch_stride(z_B1C),
        D=width,
        F=filters.featurizer_taps_CF.shape[1],
        S=modes,
        HAS_SKIP=filters.skip_D is not None,
        BLOCK_D=BLOCK_D,
        num_warps=1,
        **overlap_options(),
    )
    return y_B1D
