"""Decoding step of the gated FIR: one token of each sequence, L = 1, with the pasts in rings.

B batch, D channels, z [B, 1, 3D] = [x2 | x1 | v], F featurizer taps, K taps; `rings` defines a
ring.
"""

import math

import triton
import triton.language as tl

from hyenakernels.dispatch import batch_stride
from hyenakernels.gate.rows import load_featurizer
from hyenakernels.gate.step import gated_step
from hyenakernels.launch import MAX_SHORT_TAPS, cdiv, next_power_of_two
from hyenakernels.overlap import overlap_options, wait_for_previous


@triton.jit
def _step_kernel(
    z,
    z_ring,
    featurizer_taps,
    taps,
    skip,
    ring,
    lengths,
    y,
    batch_stride,
    D: tl.constexpr,
    F: tl.constexpr,
    K: tl.constexpr,
    W: tl.constexpr,
    SHARE: tl.constexpr,
    HAS_SKIP: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_K: tl.constexpr,
    OVERLAPS: tl.constexpr,
):
    batch = tl.program_id(1)
    first = tl.program_id(0) * BLOCK_D
    channel = first + tl.arange(0, BLOCK_D)
    inside = channel < D
    ring += batch.to(tl.int64) * K * D
    # Filters are loaded while the previous launch still runs.
    featurizer = load_featurizer(featurizer_taps, channel, inside, D, F)
    newest_tap = tl.load(taps + channel // W * K, mask=inside, other=0.0).to(tl.float32)
    wait_for_previous(OVERLAPS)
    position = tl.load(lengths + batch)
    newest = (position % K).to(tl.int32)
    row = tl.arange(0, BLOCK_K)[:, None]
    age = (newest + K - row) % K
    present = (row < K) & (age > 0)  # the new sample is not in the ring yet
    samples = tl.load(ring + row * D + channel[None, :], mask=present & inside[None, :], other=0.0)
    # A tap is loaded once for SHARE neighbouring channels.
    shared = first + SHARE * tl.arange(0, BLOCK_D // SHARE)[None, :]
    tap = tl.load(taps + shared // W * K + age, mask=present & (shared < D), other=0.0)
    tap = tl.broadcast_to(tap[:, :, None], (BLOCK_K, BLOCK_D // SHARE, SHARE))
    tap = tl.reshape(tap, (BLOCK_K, BLOCK_D))
    convolved = tl.sum(samples.to(tl.float32) * tap.to(tl.float32), axis=0)

    x2, u = gated_step(z, z_ring, featurizer, batch, batch_stride, position, channel, inside, D, F)
    convolved += u * newest_tap
    if HAS_SKIP:
        convolved += u * tl.load(skip + channel, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + batch * D + channel, (x2 * convolved).to(y.dtype.element_ty), mask=inside)
    tl.store(ring + newest * D + channel, u.to(ring.dtype.element_ty), mask=inside)


def step(z_B1C, filters, slots):
    """`hyena_fir_step` for contiguous filters and slots."""
    batch, _, channels = z_B1C.shape
    width, (groups, num_taps) = channels // 3, filters.taps_GK.shape
    y_B1D = z_B1C.new_empty(batch, 1, width)
    block_k = next_power_of_two(num_taps)
    block_d = 128 if num_taps <= MAX_SHORT_TAPS else 64
    _step_kernel[(cdiv(width, block_d), batch)](
        z_B1C,
        slots.featurizer_BFC,
        *filters.launch_arguments(),
        slots.inner,
        slots.lengths_B,
        y_B1D,
        batch_stride(z_B1C),
        D=width,
        F=filters.featurizer_taps_CF.shape[1],
        K=num_taps,
        W=width // groups,
        SHARE=math.gcd(width // groups, 8),
        HAS_SKIP=filters.skip_D is not None,
        BLOCK_D=block_d,
        BLOCK_K=block_k,
        num_warps=max(block_k // 64, 1),
        **overlap_options(),
    )
    return y_B1D
