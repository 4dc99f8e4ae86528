"""The gated modal convolution for one token of each sequence, L = 1.

B batch, D channels, z [B, 1, 3D] = [x2 | x1 | v], F featurizer taps, S modes; `rings` defines a
ring.
"""

import triton
import triton.language as tl

from hyenakernels.dispatch import batch_stride
from hyenakernels.gate.step import gated_step
from hyenakernels.launch import parts_of, power_of_two
from hyenakernels.modal.modes import two_part_exp
from hyenakernels.overlap import overlap_options, wait_for_previous


@triton.jit
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
    batch_stride,
    D: tl.constexpr,
    F: tl.constexpr,
    S: tl.constexpr,
    HAS_SKIP: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_S: tl.constexpr,
    OVERLAPS: tl.constexpr,
):
    wait_for_previous(OVERLAPS)
    batch = tl.program_id(1)
    channel = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = channel < D
    state += batch.to(tl.int64) * S * D
    position = tl.load(lengths + batch)
    x2, u = gated_step(
        z, z_ring, featurizer_taps, batch, batch_stride, position, channel, inside, D, F
    )

    mode = tl.arange(0, BLOCK_S)[:, None]
    present = (mode < S) & inside[None, :]
    by_channel = channel[None, :] * S + mode
    log_pole = tl.load(log_poles + by_channel, mask=present, other=0.0)
    residue = tl.load(residues + by_channel, mask=present, other=0.0).to(tl.float32)
    kept = tl.load(state + mode * D + channel[None, :], mask=present, other=0.0)
    moved = tl.broadcast_to(u[None, :], (BLOCK_S, BLOCK_D))
    # Whatever the dtype: a pole is applied once for each token, without an end.
    pole, remainder = two_part_exp(log_pole)
    moved = tl.fma(pole, kept, tl.fma(remainder, kept, moved))
    convolved = tl.sum(residue * moved, axis=0)
    if HAS_SKIP:
        convolved += u * tl.load(skip + channel, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + batch * D + channel, (x2 * convolved).to(y.dtype.element_ty), mask=inside)
    tl.debug_barrier()  # all threads have loaded the state before it is overwritten
    tl.store(state + mode * D + channel[None, :], moved, mask=present)


def step(z_B1C, filters, slots):
    """`hyena_modal_step` for contiguous filters and rings, and states contiguous as [B, S, D]."""
    batch, (width, modes) = len(z_B1C), filters.log_poles_DS.shape
    y_B1D = z_B1C.new_empty(batch, 1, width)
    block_d = 32
    _step_kernel[(parts_of(width, block_d), batch)](
        z_B1C,
        slots.featurizer_BFC,
        *filters.launch_arguments(),
        slots.inner,
        slots.lengths_B,
        y_B1D,
        batch_stride(z_B1C),
        D=width,
        F=filters.featurizer_taps_CF.shape[1],
        S=modes,
        HAS_SKIP=filters.skip_D is not None,
        BLOCK_D=block_d,
        BLOCK_S=power_of_two(modes),
        num_warps=4,
        **overlap_options(),
    )
    return y_B1D
