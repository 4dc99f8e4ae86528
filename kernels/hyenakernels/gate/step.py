"""Featurizer and gate of one new row per sequence, which is also written to the ring.

D channels, z [B, 1, 3D] = [x2 | x1 | v], F featurizer taps; `rings` defines a ring.
"""

import triton
import triton.language as tl


@triton.jit
def gated_step(
    z, ring, taps, batch, batch_stride, position, channel, inside, D: tl.constexpr, F: tl.constexpr
):
    """Compute x2 and u = x1 * v of the row at `position` of a sequence; store the row in the ring.

    `taps` is the result of `gate.rows.load_featurizer`.
    """
    x2_taps, x1_taps, v_taps = taps
    newest = (position % F).to(tl.int32)
    z += batch.to(tl.int64) * batch_stride
    ring += batch.to(tl.int64) * F * 3 * D
    x2 = _featurized_step(z, ring, x2_taps, newest, channel, inside, 3 * D, F)
    x1 = _featurized_step(z, ring, x1_taps, newest, D + channel, inside, 3 * D, F)
    v = _featurized_step(z, ring, v_taps, newest, 2 * D + channel, inside, 3 * D, F)
    return x2, x1 * v


@triton.jit
def _featurized_step(z, ring, taps, newest, channel, inside, C: tl.constexpr, F: tl.constexpr):
    """Compute the featurized row at `channel` of C; store the row of z itself in the ring."""
    new = tl.load(z + channel, mask=inside, other=0.0)
    y = taps[0] * new.to(tl.float32)
    for age in tl.static_range(1, F):
        old = tl.load(ring + (newest + F - age) % F * C + channel, mask=inside, other=0.0)
        y += taps[age] * old.to(tl.float32)
    tl.store(ring + newest * C + channel, new.to(ring.dtype.element_ty), mask=inside)
    return y
