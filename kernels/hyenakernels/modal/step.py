"""One token at a time: the gated modal convolution for L = 1.

B batch, D channels, z [B, 1, 3D] = [x2 | x1 | v], F featurizer taps, S modes; `rings` says what a
ring is.
"""

import torch
import triton
import triton.language as tl

from hyenakernels.dispatch import batch_stride
from hyenakernels.gate.step import gated_step
from hyenakernels.overlap import overlapped, wait


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
    EXACT: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_S: tl.constexpr,
    OVERLAPS: tl.constexpr,
):
    wait(OVERLAPS)
    batch = tl.program_id(1)
    channel = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = channel < D
    state += batch.to(tl.int64) * S * D
    place = tl.load(lengths + batch)
    x2, u = gated_step(
        z, z_ring, featurizer_taps, batch, batch_stride, place, channel, inside, D, F
    )

    mode = tl.arange(0, BLOCK_S)[:, None]
    present = (mode < S) & inside[None, :]
    by_channel = channel[None, :] * S + mode
    log_pole = tl.load(log_poles + by_channel, mask=present, other=0.0)
    residue = tl.load(residues + by_channel, mask=present, other=0.0).to(tl.float32)
    kept = tl.load(state + mode * D + channel[None, :], mask=present, other=0.0)
    moved = tl.broadcast_to(u[None, :], (BLOCK_S, BLOCK_D))
    if EXACT:  # as in `modes.load_poles`
        wide = tl.exp(log_pole.to(tl.float64))
        pole = wide.to(tl.float32)
        moved = tl.fma((wide - pole.to(tl.float64)).to(tl.float32), kept, moved)
    else:
        pole = tl.exp(log_pole.to(tl.float32))
    moved = tl.fma(pole, kept, moved)
    convolved = tl.sum(residue * moved, axis=0)
    if HAS_SKIP:
        convolved += u * tl.load(skip + channel, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + batch * D + channel, (x2 * convolved).to(y.dtype.element_ty), mask=inside)
    tl.debug_barrier()  # all threads have what they load from here
    tl.store(state + mode * D + channel[None, :], moved, mask=present)


def step(
    z_B1C, featurizer_taps_CF, log_poles_DS, residues_DS, skip_D, z_ring_BFC, state_BSD, lengths_B
):
    """`hyena_modal_step` for contiguous filters, ring and state."""
    batch, (width, modes) = len(z_B1C), log_poles_DS.shape
    y_B1D = z_B1C.new_empty(batch, 1, width)
    block_d = 32
    _step_kernel[(triton.cdiv(width, block_d), batch)](
        z_B1C,
        z_ring_BFC,
        featurizer_taps_CF,
        log_poles_DS,
        residues_DS,
        skip_D if skip_D is not None else log_poles_DS,
        state_BSD,
        lengths_B,
        y_B1D,
        batch_stride(z_B1C),
        D=width,
        F=featurizer_taps_CF.shape[1],
        S=modes,
        HAS_SKIP=skip_D is not None,
        EXACT=z_B1C.dtype == torch.float32,
        BLOCK_D=block_d,
        BLOCK_S=triton.next_power_of_2(modes),
        num_warps=4,
        **overlapped(),
    )
    return y_B1D
