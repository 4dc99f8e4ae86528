"""Featurizer and gate for one new row: taps meet the row and the past, and the past moves on.

D channels, z [B, 1, 3D] = [x2 | x1 | v], F featurizer taps.
"""

import triton
import triton.language as tl


@triton.jit
def gated_step(
    z, z_past, z_tail, taps, batch, batch_stride, channel, inside, D: tl.constexpr, F: tl.constexpr
):
    """x2, and u = x1 * v, of a sequence's row; stores the past of what follows."""
    C: tl.constexpr = 3 * D
    z += batch.to(tl.int64) * batch_stride
    z_past += batch * (F - 1) * C
    z_tail += batch * (F - 1) * C
    x2 = _featurized_step(z, z_past, z_tail, taps, channel, inside, C, F)
    x1 = _featurized_step(z, z_past, z_tail, taps, D + channel, inside, C, F)
    v = _featurized_step(z, z_past, z_tail, taps, 2 * D + channel, inside, C, F)
    return x2, x1 * v


@triton.jit
def _featurized_step(z, z_past, z_tail, taps, channel, inside, C: tl.constexpr, F: tl.constexpr):
    """The featurized row at `channel` of C; stores the past of what follows."""
    new = tl.load(z + channel, mask=inside, other=0.0)
    y = tl.load(taps + channel * F, mask=inside, other=0.0).to(tl.float32) * new.to(tl.float32)
    for j in tl.static_range(1, F):
        tap = tl.load(taps + channel * F + j, mask=inside, other=0.0).to(tl.float32)
        kept = tl.load(z_past + (F - 1 - j) * C + channel, mask=inside, other=0.0)
        y += tap * kept.to(tl.float32)
        if j < F - 1:
            tl.store(z_tail + (F - 2 - j) * C + channel, kept, mask=inside)
    if F > 1:
        tl.store(z_tail + (F - 2) * C + channel, new.to(z_tail.dtype.element_ty), mask=inside)
    return y
