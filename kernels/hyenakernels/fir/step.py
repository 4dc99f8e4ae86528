"""One token at a time: the gated FIR for L = 1, where every tap meets the past.

B batch, D channels, z [B, 1, 3D] = [x2 | x1 | v], F featurizer taps, K taps.
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
    taps,
    skip,
    past,
    y,
    z_tail,
    tail,
    batch_stride,
    D: tl.constexpr,
    F: tl.constexpr,
    K: tl.constexpr,
    W: tl.constexpr,
    HAS_SKIP: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_K: tl.constexpr,
    OVERLAPS: tl.constexpr,
):
    wait(OVERLAPS)
    batch = tl.program_id(1)
    channel = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = channel < D
    past += batch.to(tl.int64) * (K - 1) * D
    tail += batch.to(tl.int64) * (K - 1) * D
    x2, u = gated_step(
        z, z_past, z_tail, featurizer_taps, batch, batch_stride, channel, inside, D, F
    )

    group = channel // W
    row = tl.arange(0, BLOCK_K)[:, None]
    present = (row < K - 1) & inside[None, :]
    kept = tl.load(past + row * D + channel[None, :], mask=present, other=0.0)
    tap = tl.load(taps + group[None, :] * K + (K - 1 - row), mask=present, other=0.0)
    convolved = tl.sum(kept.to(tl.float32) * tap.to(tl.float32), axis=0)
    convolved += u * tl.load(taps + group * K, mask=inside, other=0.0).to(tl.float32)
    if HAS_SKIP:
        convolved += u * tl.load(skip + channel, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + batch * D + channel, (x2 * convolved).to(y.dtype.element_ty), mask=inside)
    tl.store(tail + (row - 1) * D + channel[None, :], kept, mask=present & (row > 0))
    if K > 1:
        tl.store(tail + (K - 2) * D + channel, u.to(tail.dtype.element_ty), mask=inside)


def step(z_BLC, featurizer_taps_CF, taps_GK, skip_D, z_past_BFC, past_BPD):
    """`hyena_fir` for one row after a past; returns y and both pasts of what follows."""
    batch, _, channels = z_BLC.shape
    width, (groups, num_taps) = channels // 3, taps_GK.shape
    y_BLD = z_BLC.new_empty(batch, 1, width)
    z_tail_BFC, tail_BPD = torch.empty_like(z_past_BFC), torch.empty_like(past_BPD)
    block_d = 32
    _step_kernel[(triton.cdiv(width, block_d), batch)](
        z_BLC,
        z_past_BFC,
        featurizer_taps_CF,
        taps_GK,
        skip_D if skip_D is not None else taps_GK,
        past_BPD,
        y_BLD,
        z_tail_BFC,
        tail_BPD,
        batch_stride(z_BLC),
        D=width,
        F=featurizer_taps_CF.shape[1],
        K=num_taps,
        W=width // groups,
        HAS_SKIP=skip_D is not None,
        BLOCK_D=block_d,
        BLOCK_K=triton.next_power_of_2(max(num_taps - 1, 1)),
        num_warps=4,
        **overlapped(),
    )
    return y_BLD, z_tail_BFC, tail_BPD
