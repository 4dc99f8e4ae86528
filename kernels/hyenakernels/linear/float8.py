"""Linear layers of a single row with weights in FP8: as `linear.kernel`, at a byte per weight.

The grid is persistent: n programs each take every n-th block of whole rows of the weight. A program
normalizes the row of x and rounds it to e4m3 once, then holds it in registers. So the numbers are
those of a norm, `round_rows` and a product, up to the order of summation.

Weights are loaded as 32-bit words of four, 16 bytes per thread at a time; a part of a row is what
all threads load at once. On a GPU, one instruction converts two numbers of a word to fp16, another
each of them to fp32; in the interpreter, which has no inline PTX, the bits of a number are shifted
to their positions in fp32.

I input channels, W = I / 4 words, O output channels.
"""

import torch
import triton
import triton.language as tl

from hyenakernels.float8.kernel import amax_bits, row_scale
from hyenakernels.float8.reference import E4M3, MIN_SCALE
from hyenakernels.launch import cdiv, float8_linear_launch
from hyenakernels.linear.kernel import activated, arguments_of, store
from hyenakernels.overlap import wait_for_previous

# Where bits are shifted, the exponent of an e4m3 number is 127 - 7 too low for fp32. One half of
# this factor is applied to the row and the other to the sum, so that both stay in range.
_HALF = tl.constexpr(2.0**60)


@triton.jit
def _number(words, BYTE: tl.constexpr):
    """The number in a byte of each word, times 2 ** -120."""
    shifted = (words << (24 - 8 * BYTE)) >> 4
    # Bits 31 and 26 to 20: the shift to the right has also copied the sign to bits 30 to 27.
    return (shifted & -0x78100000).to(tl.float32, bitcast=True)


@triton.jit
def _converted(words):
    """The numbers in the four bytes of each word, by conversion instructions of Ada and Hopper."""
    # ptxas 12.8 turns the high half of a word into NaN if it can prove it to be 0. Here it cannot:
    # a part of a row is a few words per thread, and at least one of them is a weight.
    return tl.inline_asm_elementwise(
        """
        {
            .reg .b16 low, high, a, b, c, d;
            .reg .b32 first, second;
            mov.b32 {low, high}, $4;
            cvt.rn.f16x2.e4m3x2 first, low;
            cvt.rn.f16x2.e4m3x2 second, high;
            mov.b32 {a, b}, first;
            mov.b32 {c, d}, second;
            cvt.f32.f16 $0, a;
            cvt.f32.f16 $1, b;
            cvt.f32.f16 $2, c;
            cvt.f32.f16 $3, d;
        }
        """,
        "=f,=f,=f,=f,r",
        [words],
        dtype=(tl.float32, tl.float32, tl.float32, tl.float32),
        is_pure=True,
        pack=1,
    )


@triton.jit
def _numbers(words, CONVERTS: tl.constexpr):
    """The numbers in the four bytes of each word, times 2 ** -120 unless CONVERTS."""
    if CONVERTS:
        numbers = _converted(words)
    else:
        numbers = _number(words, 0), _number(words, 1), _number(words, 2), _number(words, 3)
    return numbers


@triton.jit
def _quarters(x, first, I: tl.constexpr, BLOCK_W: tl.constexpr):  # noqa: E741
    """The channels of x that belong to bytes 0 to 3 of the words from `first` on, in fp32."""
    channel = 4 * (first + tl.arange(0, BLOCK_W))[:, None] + tl.arange(0, 4)[None, :]
    x_W4 = tl.load(x + channel, mask=channel < I, other=0.0).to(tl.float32)
    even, odd = tl.split(tl.reshape(x_W4, (BLOCK_W, 2, 2)))
    x_0, x_2 = tl.split(even)
    x_1, x_3 = tl.split(odd)
    return x_0, x_1, x_2, x_3


@triton.jit
def _row(x, I: tl.constexpr, BLOCK_W: tl.constexpr, PARTS: tl.constexpr):  # noqa: E741
    """Load all channels of x: `_quarters` of each part."""
    row = ()
    for part in tl.static_range(PARTS):
        row = row + _quarters(x, part * BLOCK_W, I, BLOCK_W)
    return row


@triton.jit
def _rounded_row(
    x,
    norm_scale,
    eps,
    dtype: tl.constexpr,
    NORMED: tl.constexpr,
    COUNT: tl.constexpr,
    I: tl.constexpr,  # noqa: E741
    HALF: tl.constexpr,
    FP8_MAX: tl.constexpr,
    MIN_SCALE: tl.constexpr,
):
    """The row, normalized if NORMED, rounded to e4m3, and its scale."""
    if NORMED:
        squares = x[0] * x[0]
        for i in tl.static_range(1, COUNT):
            squares += x[i] * x[i]
        factor = 1.0 / (tl.sqrt_rn(tl.sum(squares, axis=0) / I) + eps)
        normed = ()
        for i in tl.static_range(COUNT):  # rounded to the dtype that the norm stores
            normed = normed + ((norm_scale[i] * (x[i] * factor)).to(dtype).to(tl.float32),)
        x = normed
    amax = tl.abs(x[0])
    for i in tl.static_range(1, COUNT):
        amax = tl.maximum(amax, tl.abs(x[i]), propagate_nan=tl.PropagateNan.ALL)
    scale = row_scale(amax_bits(amax), FP8_MAX, MIN_SCALE)
    factor = tl.div_rn(1.0, scale)
    rounded = ()
    for i in tl.static_range(COUNT):
        clamped = tl.clamp(x[i] * factor, -FP8_MAX, FP8_MAX, propagate_nan=tl.PropagateNan.ALL)
        rounded = rounded + (clamped.to(tl.float8e4nv).to(tl.float32) * HALF,)
    return rounded, scale


@triton.jit
def _load_words(
    weight,
    up,
    start,
    O: tl.constexpr,  # noqa: E741
    I: tl.constexpr,  # noqa: E741
    ROWS: tl.constexpr,
    GATED: tl.constexpr,
    BLOCK_W: tl.constexpr,
    PARTS: tl.constexpr,
):
    """Load a block of rows as words, a tensor per part; if GATED, every second row is of `up`."""
    row = tl.arange(0, ROWS)
    out = start + row
    if GATED:
        out = start + row // 2
        weight = tl.where(row % 2 == 0, weight, up)[:, None]
    at = weight + out.to(tl.int64)[:, None] * (I // 4)
    loaded = ()
    for part in tl.static_range(PARTS):
        lane = part * BLOCK_W + tl.arange(0, BLOCK_W)[None, :]
        present = (out < O)[:, None] & (lane < I // 4)
        loaded = loaded + (tl.load(at + lane, mask=present, other=0),)
    return loaded


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
    FP8_MAX: tl.constexpr,
    MIN_SCALE: tl.constexpr,
    NORMED: tl.constexpr,
    GATED: tl.constexpr,
    GELU: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ADDED: tl.constexpr,
    OVERLAPS: tl.constexpr,
    CONVERTS: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_W: tl.constexpr,
    PARTS: tl.constexpr,
):
    ROWS: tl.constexpr = 2 * BLOCK_O if GATED else BLOCK_O
    HALF: tl.constexpr = 1.0 if CONVERTS else _HALF
    first = tl.program_id(0) * BLOCK_O
    step = tl.num_programs(0) * BLOCK_O
    # Weights are prefetched one block ahead, the first block while the previous launch still runs.
    following = _load_words(weight, up, first, O, I, ROWS, GATED, BLOCK_W, PARTS)
    scales = ()
    if NORMED:
        scales = _row(norm_scale, I, BLOCK_W, PARTS)
    wait_for_previous(OVERLAPS)
    row = _row(x, I, BLOCK_W, PARTS)
    row, x_scale = _rounded_row(
        row, scales, eps, x.dtype.element_ty, NORMED, 4 * PARTS, I, HALF, FP8_MAX, MIN_SCALE
    )
    for start in range(first, O, step):
        words = following
        following = _load_words(weight, up, start + step, O, I, ROWS, GATED, BLOCK_W, PARTS)
        sums = tl.zeros((ROWS, BLOCK_W), tl.float32)
        for part in tl.static_range(PARTS):
            numbers = _numbers(words[part], CONVERTS)
            for byte in tl.static_range(4):
                sums += numbers[byte] * row[4 * part + byte][None, :]
        products = tl.sum(sums, axis=1) * HALF
        out = start + tl.arange(0, BLOCK_O)
        is_out = out < O
        if GATED:
            y_O, up_O = tl.split(tl.reshape(products, (BLOCK_O, 2)))
        else:
            y_O = products
        y_O *= x_scale * tl.load(weight_scale + out, mask=is_out, other=0.0)
        y_O = activated(y_O, bias, out, is_out, HAS_BIAS, GELU)
        if GATED:
            y_O *= up_O * (x_scale * tl.load(up_scale + out, mask=is_out, other=0.0))
        store(y, y_O, added, out, is_out, ADDED)


def linear(x_1I, weight, *, up=None, **parts):
    """Compute act(norm(x) W^T + bias) * (norm(x) U^T) + added; for `parts` see `arguments_of`."""
    outputs, inputs = weight.shape
    y_1O = x_1I.new_empty(1, outputs)
    launch = float8_linear_launch(inputs, gated=up is not None)
    arguments = arguments_of(x_1I, y_1O, is_gated=up is not None, **parts)
    up = weight if up is None else up
    _linear_kernel[(min(cdiv(outputs, launch.block_o), launch.programs),)](
        **arguments,
        weight=weight.values_OI.view(torch.int32),
        weight_scale=weight.scale_O1,
        up=up.values_OI.view(torch.int32),
        up_scale=up.scale_O1,
        O=outputs,
        I=inputs,
        FP8_MAX=torch.finfo(E4M3).max,
        MIN_SCALE=MIN_SCALE,
        CONVERTS=x_1I.is_cuda,  # the interpreter has no inline PTX
        BLOCK_O=launch.block_o,
        BLOCK_W=launch.block_w,
        PARTS=cdiv(inputs // 4, launch.block_w),
        num_warps=launch.num_warps,
    )
    return y_1O
