"""The gated FIR for one token of each sequence: L = 1, with the past in rings.

B batch, D channels, z [B, 1, 3D] = [x2 | x1 | v], F featurizer taps, K taps; `rings` defines a
ring.
"""

import triton
import triton.language as tl

from hyenakernels.dispatch import batch_stride
from hyenakernels.gate.step import gated_step
from hyenakernels.launch import parts_of, power_of_two
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
    HAS_SKIP: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_K: tl.constexpr,
    OVERLAPS: tl.constexpr,
):
    wait_for_previous(OVERLAPS)
    batch = tl.program_id(1)
    channel = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = channel < D
    ring += batch.to(tl.int64) * K * D
    position = tl.load(lengths + batch)
    x2, u = gated_step(
        z, z_ring, featurizer_taps, batch, batch_stride, position, channel, inside, D, F
    )

    group = channel // W
    newest = (position % K).to(tl.int32)
    row = tl.arange(0, BLOCK_K)[:, None]
    age = (newest + K - row) % K
    present = (row < K) & (age > 0) & inside[None, :]  # the new sample is not read from the ring
    kept = tl.load(ring + row * D + channel[None, :], mask=present, other=0.0)
    tap = tl.load(taps + group[None, :] * K + age, mask=present, other=0.0)
    convolved = tl.sum(kept.to(tl.float32) * tap.to(tl.float32), axis=0)
    convolved += u * tl.load(taps + group * K, mask=inside, other=0.0).to(tl.float32)
    if HAS_SKIP:
        convolved += u * tl.load(skip + channel, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + batch * D + channel, (x2 * convolved).to(y.dtype.element_ty), mask=inside)
    tl.store(ring + newest * D + channel, u.to(ring.dtype.element_ty), mask=inside)


def step(z_B1C, filters, slots):
    """`hyena_fir_step` for contiguous filters and slots."""
    batch, _, channels = z_B1C.shape
    width, (groups, num_taps) = channels // 3, filters.taps_GK.shape
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
        K=num_taps,
        W=width // groups,
        HAS_SKIP=filters.skip_D is not None,
        BLOCK_D=block_d,
        BLOCK_K=power_of_two(num_taps),
        num_warps=4,
        **overlap_options(),
    )
    return y_B1D
