"""Featurizer and gate of one new row of each sequence, which is also stored in the ring.

D channels, z [B, 1, 3D] = [x2 | x1 | v], F featurizer taps; `rings` defines a ring.
"""

import triton
import triton.language as tl


@triton.jit
def gated_step(
    z, ring, taps, batch, batch_stride, position, channel, inside, D: tl.constexpr, F: tl.constexpr
):
    """Compute x2 and u = x1 * v of the row at `position` of a sequence; store the row."""
    z += batch.to(tl.int64) * batch_stride
    ring += batch.to(tl.int64) * F * 3 * D
    x2 = _featurized_step(z, ring, taps, position, channel, inside, 3 * D, F)
    x1 = _featurized_step(z, ring, taps, position, D + channel, inside, 3 * D, F)
    v = _featurized_step(z, ring, taps, position, 2 * D + channel, inside, 3 * D, F)
    return x2, x1 * v


@triton.jit
def _featurized_step(z, ring, taps, position, channel, inside, C: tl.constexpr, F: tl.constexpr):
    """Compute the featurized row at `channel` of C; store the row as it is in z."""
    new = tl.load(z + channel, mask=inside, other=0.0)
    y = tl.load(taps + channel * F, mask=inside, other=0.0).to(tl.float32) * new.to(tl.float32)
    for age in tl.static_range(1, F):
        tap = tl.load(taps + channel * F + age, mask=inside, other=0.0).to(tl.float32)
        kept = tl.load(ring + (position + F - age) % F * C + channel, mask=inside, other=0.0)
        y += tap * kept.to(tl.float32)
    tl.store(ring + position % F * C + channel, new.to(ring.dtype.element_ty), mask=inside)
    return y
