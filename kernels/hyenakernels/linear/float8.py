"""Linear layers of one row with weights in FP8: as `linear.kernel`, at a byte a weight.

As many programs as fit the GPU at once each take every n-th block of whole rows of the weight. A
program normalizes the row of x and rounds it to e4m3 once, then holds it in registers. So the
numbers are those of a norm, `round_rows` and a product, up to the order of sums.

Weights are read as words of four. A word is a quarter of the registers that four bytes would take
in a loop, and three instructions make a byte of it an fp32 number.

I input channels, W = I / 4 words, O output channels.
"""

import torch
import triton
import triton.language as tl

from hyenakernels.float8.kernel import largest_bits, row_scale
from hyenakernels.float8.reference import E4M3, SMALLEST
from hyenakernels.launch import float8_linear_launch, parts_of, power_of_two
from hyenakernels.linear.kernel import activated
from hyenakernels.overlap import overlap_options, wait_for_previous

# The bits of an e4m3 number, as part of an fp32 number, mean an exponent that is 127 - 7 too low.
# The row makes up for half of that and the sum for the other half, so that both stay in range.
_HALF = 2.0**60


@triton.jit
def _number(words, BYTE: tl.constexpr):
    """The number in a byte of each word, times 2 ** -120; the sign is copied, then masked."""
    moved = (words << (24 - 8 * BYTE)) >> 4
    return (moved & -0x78100000).to(tl.float32, bitcast=True)  # bits 31 and 26 to 20


@triton.jit
def _product(words, x_0, x_1, x_2, x_3):
    """The sum of weights times x over each row of words."""
    sums = _number(words, 0) * x_0[None, :]
    sums += _number(words, 1) * x_1[None, :]
    sums += _number(words, 2) * x_2[None, :]
    sums += _number(words, 3) * x_3[None, :]
    return tl.sum(sums, axis=1)


@triton.jit
def _load(x, lane, I: tl.constexpr, BYTE: tl.constexpr):  # noqa: E741
    """The channels of x whose weights stand in a byte of each word, in fp32."""
    channel = 4 * lane + BYTE
    return tl.load(x + channel, mask=channel < I, other=0.0).to(tl.float32)


@triton.jit
def _normed(x_W, scale_W, factor, dtype: tl.constexpr):
    """Rounded as the norm stores it."""
    return (scale_W * (x_W * factor)).to(dtype).to(tl.float32)


@triton.jit
def _rounded(x_W, factor, HALF: tl.constexpr, LIMIT: tl.constexpr):
    limited = tl.clamp(x_W * factor, -LIMIT, LIMIT, propagate_nan=tl.PropagateNan.ALL)
    return limited.to(tl.float8e4nv).to(tl.float32) * HALF


@triton.jit
def _linear_kernel(
    x,
    norm_scale,
    weight,
    weight_scale,
    up,
    up_scale,
    bias,
    added,
    y,
    eps,
    O: tl.constexpr,  # noqa: E741
    I: tl.constexpr,  # noqa: E741
    HALF: tl.constexpr,
    LIMIT: tl.constexpr,
    SMALLEST: tl.constexpr,
    NORMED: tl.constexpr,
    GATED: tl.constexpr,
    GELU: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ADDED: tl.constexpr,
    OVERLAPS: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    lane = tl.arange(0, BLOCK_W)
    inside = (lane < I // 4)[None, :]
    first = tl.program_id(0) * BLOCK_O
    step = tl.num_programs(0) * BLOCK_O
    out = first + tl.arange(0, BLOCK_O)
    at = out.to(tl.int64)[:, None] * (I // 4) + lane[None, :]
    # Weights are loaded one block ahead, the first block while the previous launch still runs.
    next_OW = tl.load(weight + at, mask=(out < O)[:, None] & inside, other=0)
    if GATED:
        next_up_OW = tl.load(up + at, mask=(out < O)[:, None] & inside, other=0)
    wait_for_previous(OVERLAPS)
    x_0 = _load(x, lane, I, 0)
    x_1 = _load(x, lane, I, 1)
    x_2 = _load(x, lane, I, 2)
    x_3 = _load(x, lane, I, 3)
    if NORMED:
        squares = tl.sum(x_0 * x_0 + x_1 * x_1 + x_2 * x_2 + x_3 * x_3, axis=0)
        factor = 1.0 / (tl.sqrt_rn(squares / I) + eps)
        x_0 = _normed(x_0, _load(norm_scale, lane, I, 0), factor, x.dtype.element_ty)
        x_1 = _normed(x_1, _load(norm_scale, lane, I, 1), factor, x.dtype.element_ty)
        x_2 = _normed(x_2, _load(norm_scale, lane, I, 2), factor, x.dtype.element_ty)
        x_3 = _normed(x_3, _load(norm_scale, lane, I, 3), factor, x.dtype.element_ty)
    bits = tl.maximum(
        tl.maximum(largest_bits(x_0), largest_bits(x_1)),
        tl.maximum(largest_bits(x_2), largest_bits(x_3)),
    )
    x_scale = row_scale(bits, LIMIT, SMALLEST)
    factor = tl.div_rn(1.0, x_scale)
    x_0 = _rounded(x_0, factor, HALF, LIMIT)
    x_1 = _rounded(x_1, factor, HALF, LIMIT)
    x_2 = _rounded(x_2, factor, HALF, LIMIT)
    x_3 = _rounded(x_3, factor, HALF, LIMIT)
    for start in range(first, O, step):
        out = start + tl.arange(0, BLOCK_O)
        is_out = out < O
        present = (out + step < O)[:, None] & inside
        at = (out + step).to(tl.int64)[:, None] * (I // 4) + lane[None, :]
        words_OW = next_OW
        next_OW = tl.load(weight + at, mask=present, other=0)
        scale_O = x_scale * tl.load(weight_scale + out, mask=is_out, other=0.0)
        y_O = _product(words_OW, x_0, x_1, x_2, x_3) * HALF * scale_O
        y_O = activated(y_O, bias, out, is_out, HAS_BIAS, GELU)
        if GATED:
            words_OW = next_up_OW
            next_up_OW = tl.load(up + at, mask=present, other=0)
            scale_O = x_scale * tl.load(up_scale + out, mask=is_out, other=0.0)
            y_O *= _product(words_OW, x_0, x_1, x_2, x_3) * HALF * scale_O
        if ADDED:
            y_O += tl.load(added + out, mask=is_out, other=0.0).to(tl.float32)
        tl.store(y + out, y_O.to(y.dtype.element_ty), mask=is_out)


def linear(
    x_1I,
    weight,
    *,
    scale_I=None,
    eps=0.0,
    up=None,
    gelu=False,
    bias_O=None,
    added_1O=None,
):
    """Compute act(norm(x) W^T + bias) * (norm(x) U^T) + added, without the parts not given."""
    outputs, inputs = weight.shape
    y_1O = x_1I.new_empty(1, outputs)
    block_i = max(power_of_two(inputs), 32)
    launch = float8_linear_launch(block_i, gated=up is not None)
    up = weight if up is None else up
    _linear_kernel[(min(parts_of(outputs, launch.block_o), launch.programs),)](
        x_1I,
        x_1I if scale_I is None else scale_I,
        weight.values_OI.view(torch.int32),
        weight.scale_O1,
        up.values_OI.view(torch.int32),
        up.scale_O1,
        x_1I if bias_O is None else bias_O,
        x_1I if added_1O is None else added_1O,
        y_1O,
        eps,
        O=outputs,
        I=inputs,
        HALF=_HALF,
        LIMIT=torch.finfo(E4M3).max,
        SMALLEST=SMALLEST,
        NORMED=scale_I is not None,
        GATED=up is not weight,
        GELU=gelu,
        HAS_BIAS=bias_O is not None,
        ADDED=added_1O is not None,
        BLOCK_O=launch.block_o,
        BLOCK_W=block_i // 4,
        num_warps=launch.num_warps,
        **overlap_options(),
    )
    return y_1O
