"""Linear layers of a single row (GEMV), which take as long as reading their weights.

A program reads a few whole rows of the weight and keeps an accumulator per column of a block; these
are summed at the end. The norm before a product and the residual addition after it are fused: the
norm's factor of the row commutes with the product, and the residual is added in the epilogue.

I input channels, O output channels.
"""

import triton
import triton.language as tl

from hyenakernels.launch import cdiv, linear_launch, next_power_of_two
from hyenakernels.overlap import overlap_options, wait_for_previous


@triton.jit
def activated(y_O, bias, out, is_out, HAS_BIAS: tl.constexpr, GELU: tl.constexpr):
    """act(y + bias), each only if its flag is set."""
    if HAS_BIAS:
        y_O += tl.load(bias + out, mask=is_out, other=0.0).to(tl.float32)
    if GELU:
        y_O = 0.5 * y_O * (1.0 + tl.erf(y_O * 0.7071067811865476))
    return y_O


@triton.jit
def store(y, y_O, added, out, is_out, ADDED: tl.constexpr):
    """Store the outputs, plus `added` if ADDED."""
    if ADDED:
        y_O += tl.load(added + out, mask=is_out, other=0.0).to(tl.float32)
    tl.store(y + out, y_O.to(y.dtype.element_ty), mask=is_out)


@triton.jit
def _linear_kernel(
    x,
    norm_scale,
    weight,
    up,
    bias,
    added,
    y,
    eps,
    O: tl.constexpr,  # noqa: E741
    I: tl.constexpr,  # noqa: E741
    NORMED: tl.constexpr,
    GATED: tl.constexpr,
    GELU: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ADDED: tl.constexpr,
    OVERLAPS: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_I: tl.constexpr,
):
    out = tl.program_id(0) * BLOCK_O + tl.arange(0, BLOCK_O)
    is_out = out < O
    lane = tl.arange(0, BLOCK_I)
    at = out.to(tl.int64)[:, None] * I + lane[None, :]
    # Weights are prefetched one block ahead, the first block while the previous launch still runs.
    present = is_out[:, None] & (lane < I)[None, :]
    next_OI = tl.load(weight + at, mask=present, other=0.0)
    if GATED:
        next_up_OI = tl.load(up + at, mask=present, other=0.0)
    wait_for_previous(OVERLAPS)
    sums_OI = tl.zeros((BLOCK_O, BLOCK_I), tl.float32)
    if GATED:
        up_sums_OI = tl.zeros((BLOCK_O, BLOCK_I), tl.float32)
    squares_I = tl.zeros((BLOCK_I,), tl.float32)
    for first in range(0, I, BLOCK_I):
        channel = first + lane
        x_I = tl.load(x + channel, mask=channel < I, other=0.0).to(tl.float32)
        if NORMED:
            squares_I += x_I * x_I
            x_I *= tl.load(norm_scale + channel, mask=channel < I, other=0.0).to(tl.float32)
        w_OI = next_OI
        at += BLOCK_I
        present = is_out[:, None] & (channel + BLOCK_I < I)[None, :]
        next_OI = tl.load(weight + at, mask=present, other=0.0)
        sums_OI += w_OI.to(tl.float32) * x_I[None, :]
        if GATED:
            w_OI = next_up_OI
            next_up_OI = tl.load(up + at, mask=present, other=0.0)
            up_sums_OI += w_OI.to(tl.float32) * x_I[None, :]
    y_O = tl.sum(sums_OI, axis=1)
    if NORMED:
        factor = 1.0 / (tl.sqrt_rn(tl.sum(squares_I, axis=0) / I) + eps)
        y_O *= factor
    y_O = activated(y_O, bias, out, is_out, HAS_BIAS, GELU)
    if GATED:
        up_O = tl.sum(up_sums_OI, axis=1)
        if NORMED:
            up_O *= factor
        y_O *= up_O
    store(y, y_O, added, out, is_out, ADDED)


def arguments_of(
    x_1I, y_1O, *, is_gated, scale_I=None, eps=0.0, gelu=False, bias_O=None, added_1O=None
):
    """The keyword arguments that both kernels share; x stands for tensors that are not read."""
    return {
        "x": x_1I,
        "norm_scale": x_1I if scale_I is None else scale_I,
        "bias": x_1I if bias_O is None else bias_O,
        "added": x_1I if added_1O is None else added_1O,
        "y": y_1O,
        "eps": eps,
        "NORMED": scale_I is not None,
        "GATED": is_gated,
        "GELU": gelu,
        "HAS_BIAS": bias_O is not None,
        "ADDED": added_1O is not None,
        **overlap_options(),
    }


def linear(x_1I, weight_OI, *, up=None, **parts):
    """Compute act(norm(x) W^T + bias) * (norm(x) U^T) + added; for `parts` see `arguments_of`."""
    outputs, inputs = weight_OI.shape
    y_1O = x_1I.new_empty(1, outputs)
    launch = linear_launch(inputs, gated=up is not None)
    arguments = arguments_of(x_1I, y_1O, is_gated=up is not None, **parts)
    _linear_kernel[(cdiv(outputs, launch.block_o),)](
        **arguments,
        weight=weight_OI,
        up=weight_OI if up is None else up,
        O=outputs,
        I=inputs,
        BLOCK_O=launch.block_o,
        BLOCK_I=min(launch.block_i, next_power_of_two(inputs)),
        num_warps=launch.num_warps,
    )
    return y_1O
