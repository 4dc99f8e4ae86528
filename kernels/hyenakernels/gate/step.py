"""Featurizer and gate for one new row: taps meet the row and its past, and the past moves on.

D channels, z [B, 1, 3D] = [x2 | x1 | v], F featurizer taps; `rings` says what a ring is.
"""

import triton
import triton.language as tl


@triton.jit
def gated_step(
    z, ring, taps, batch, batch_stride, place, channel, inside, D: tl.constexpr, F: tl.constexpr
):
    """x2, and u = x1 * v, of the row at `place` of a sequence; stores the row."""
    z += batch.to(tl.int64) * batch_stride
    ring += batch.to(tl.int64) * F * 3 * D
    x2 = _featurized_step(z, ring, taps, place, channel, inside, 3 * D, F)
    x1 = _featurized_step(z, ring, taps, place, D + channel, inside, 3 * D, F)
    v = _featurized_step(z, ring, taps, place, 2 * D + channel, inside, 3 * D, F)
    return x2, x1 * v


@triton.jit
def _featurized_step(z, ring, taps, place, channel, inside, C: tl.constexpr, F: tl.constexpr):
    """The featurized row at `channel` of C; stores the row as it was."""
    new = tl.load(z + channel, mask=inside, other=0.0)
    y = tl.load(taps + channel * F, mask=inside, other=0.0).to(tl.float32) * new.to(tl.float32)
    for age in tl.static_range(1, F):
        tap = tl.load(taps + channel * F + age, mask=inside, other=0.0).to(tl.float32)
        kept = tl.load(ring + (place + F - age) % F * C + channel, mask=inside, other=0.0)
        y += tap * kept.to(tl.float32)
    tl.store(ring + place % F * C + channel, new.to(ring.dtype.element_ty), mask=inside)
    return y
