"""One token at a time: the gated modal convolution for L = 1.

B batch, D channels, z [B, 1, 3D] = [x2 | x1 | v], F featurizer taps, S modes.
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
    z_past,
    featurizer_taps,
    log_poles,
    residues,
    skip,
    state,
    y,
    z_tail,
    following,
    batch_stride,
    D: tl.constexpr,
    F: tl.constexpr,
    S: tl.constexpr,
    HAS_SKIP: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_S: tl.constexpr,
    OVERLAPS: tl.constexpr,
):
    wait(OVERLAPS)
    batch = tl.program_id(1)
    channel = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = channel < D
    state += batch.to(tl.int64) * S * D
    following += batch.to(tl.int64) * S * D
    x2, u = gated_step(
        z, z_past, z_tail, featurizer_taps, batch, batch_stride, channel, inside, D, F
    )

    mode = tl.arange(0, BLOCK_S)[:, None]
    present = (mode < S) & inside[None, :]
    by_channel = channel[None, :] * S + mode
    pole = tl.exp(tl.load(log_poles + by_channel, mask=present, other=0.0).to(tl.float32))
    residue = tl.load(residues + by_channel, mask=present, other=0.0).to(tl.float32)
    kept = tl.load(state + mode * D + channel[None, :], mask=present, other=0.0)
    moved = tl.fma(pole, kept, tl.broadcast_to(u[None, :], (BLOCK_S, BLOCK_D)))
    convolved = tl.sum(residue * moved, axis=0)
    if HAS_SKIP:
        convolved += u * tl.load(skip + channel, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + batch * D + channel, (x2 * convolved).to(y.dtype.element_ty), mask=inside)
    tl.store(following + mode * D + channel[None, :], moved, mask=present)


def step(z_BLC, featurizer_taps_CF, log_poles_DS, residues_DS, skip_D, z_past_BFC, state_BSD):
    """`hyena_modal` for one row after a past; returns y and both pasts of what follows."""
    batch, (width, modes) = len(z_BLC), log_poles_DS.shape
    y_BLD = z_BLC.new_empty(batch, 1, width)
    z_tail_BFC, following_BSD = torch.empty_like(z_past_BFC), torch.empty_like(state_BSD)
    block_d = 32
    _step_kernel[(triton.cdiv(width, block_d), batch)](
        z_BLC,
        z_past_BFC,
        featurizer_taps_CF,
        log_poles_DS,
        residues_DS,
        skip_D if skip_D is not None else log_poles_DS,
        state_BSD,
        y_BLD,
        z_tail_BFC,
        following_BSD,
        batch_stride(z_BLC),
        D=width,
        F=featurizer_taps_CF.shape[1],
        S=modes,
        HAS_SKIP=skip_D is not None,
        BLOCK_D=block_d,
        BLOCK_S=triton.next_power_of_2(modes),
        num_warps=4,
        **overlapped(),
    )
    return y_BLD, z_tail_BFC, following_BSD
