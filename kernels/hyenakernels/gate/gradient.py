"""Gradients of the featurizer, row by row: the epilogue of the fused backward kernels.

With d the gradient at the featurizer's output and z its input,

    dz[t] = sum_j taps[j] d[t + j],    dtaps[j] = sum_t d[t] z[t - j].

D channels, z [B, L, 3D] = [x2 | x1 | v].
"""

import triton
import triton.language as tl


@triton.jit
def zero_sums(zero, NUM_TAPS: tl.constexpr):
    """Initial accumulators for `add_taps`: `zero` for each tap of x2, x1 and v."""
    zeros = ()
    for _ in tl.static_range(NUM_TAPS):
        zeros = zeros + (zero,)
    return zeros, zeros, zeros


@triton.jit
def add_taps(sums, gradient, signals, i: tl.constexpr, NUM_TAPS: tl.constexpr):
    """Accumulate row `i` into the gradients of the taps of x2, x1 and v.

    As in `featurized`, the rows of `signals` begin NUM_TAPS - 1 rows before those of the gradient.
    """
    following = ()
    for part in tl.static_range(3):
        added = ()
        for j in tl.static_range(NUM_TAPS):
            value = signals[part][i + NUM_TAPS - 1 - j].to(tl.float32)
            added = added + (tl.fma(gradient[part], value, sums[part][j]),)
        following = following + (added,)
    return following


@triton.jit
def store_transposed(
    at, gradients, taps, i: tl.constexpr, present, D: tl.constexpr, NUM_TAPS: tl.constexpr
):
    """Store row `i` of dz: the transposed featurizer, for x2, x1 and v."""
    for part in tl.static_range(3):
        dz = taps[part][0] * gradients[part][i]
        for j in tl.static_range(1, NUM_TAPS):
            dz = tl.fma(taps[part][j], gradients[part][i + j], dz)
        tl.store(at + part * D, dz.to(at.dtype.element_ty), mask=present)


@triton.jit
def store_sums(partial, sums, channel, inside, D: tl.constexpr, NUM_TAPS: tl.constexpr):
    """Store a program's partial sums of the gradients of the taps, [3D, NUM_TAPS]."""
    for part in tl.static_range(3):
        for j in tl.static_range(NUM_TAPS):
            at = partial + (part * D + channel) * NUM_TAPS + j
            total = sums[part][j]
            if len(total.shape) == 2:
                total = tl.sum(total, axis=0)[None, :]
            tl.store(at, total, mask=inside)
