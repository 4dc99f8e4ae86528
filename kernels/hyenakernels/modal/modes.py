"""The modes of a filter in registers: a tuple with one tensor of channels for each mode.

So a thread holds all modes of its channels. Sums are explicit fma, as in `gate.rows`.

D channels, S modes.
"""

import triton
import triton.language as tl


@triton.jit
def load_modes(x, channel, inside, S: tl.constexpr, BY_CHANNEL: tl.constexpr, D: tl.constexpr):
    """Load S values of each channel, from [D, S] if BY_CHANNEL, else from [S, D], in fp32."""
    values = ()
    for s in tl.static_range(S):
        at = x + channel * S + s if BY_CHANNEL else x + s * D + channel
        values = values + (tl.load(at, mask=inside, other=0.0).to(tl.float32),)
    return values


@triton.jit
def two_part_exp(x):
    """exp(x) as the sum of two fp32 numbers: the rounded value and its rounding remainder.

    A factor near 1 that is applied at every step needs both: its rounding error would accumulate
    and be the largest error in fp32.
    """
    wide = tl.exp(x.to(tl.float64))
    rounded = wide.to(tl.float32)
    return rounded, (wide - rounded.to(tl.float64)).to(tl.float32)


@triton.jit
def load_poles(log_poles, channel, inside, S: tl.constexpr, EXACT: tl.constexpr):
    """Load exp(log_poles) of each channel, and if EXACT the remainder of its rounding to fp32.

    Narrower dtypes do without the remainder: a pole is applied at most once per row of a segment.
    """
    poles = ()
    remainders = ()
    for s in tl.static_range(S):
        log_pole = tl.load(log_poles + channel * S + s, mask=inside, other=0.0)
        if EXACT:
            pole, remainder = two_part_exp(log_pole)
            poles = poles + (pole,)
            remainders = remainders + (remainder,)
        else:
            poles = poles + (tl.exp(log_pole.to(tl.float32)),)
            remainders = poles
    return poles, remainders


@triton.jit
def decayed(poles, remainders, states, x, s: tl.constexpr, EXACT: tl.constexpr):
    """One step of mode `s`: exp(p) S + x."""
    if EXACT:
        x = tl.fma(remainders[s], states[s], x)
    return tl.fma(poles[s], states[s], x)


@triton.jit
def store_modes(x, values, channel, inside, S: tl.constexpr, D: tl.constexpr):
    """Store S values of each channel, as [S, D]."""
    for s in tl.static_range(S):
        tl.store(x + s * D + channel, values[s], mask=inside)


@triton.jit
def advance(poles, remainders, states, x, S: tl.constexpr, EXACT: tl.constexpr):
    """One step of the recurrence, for all modes."""
    following = ()
    for s in tl.static_range(S):
        following = following + (decayed(poles, remainders, states, x, s, EXACT),)
    return following


@triton.jit
def weigh(weights, states, start, S: tl.constexpr):
    """The weighted sum over modes, `start` + sum_s weights[s] * states[s]."""
    for s in tl.static_range(S):
        start = tl.fma(weights[s], states[s], start)
    return start


@triton.jit
def load_filter(
    log_poles,
    residues,
    skip,
    channel,
    inside,
    D: tl.constexpr,
    S: tl.constexpr,
    EXACT: tl.constexpr,
    HAS_SKIP: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Load the poles, their remainders, residues and skip of each channel."""
    poles, remainders = load_poles(log_poles, channel, inside, S, EXACT)
    weights = load_modes(residues, channel, inside, S, True, D)
    skips = tl.zeros((BLOCK_D,), tl.float32)
    if HAS_SKIP:
        skips = tl.load(skip + channel, mask=inside, other=0.0).to(tl.float32)
    return poles, remainders, weights, skips
