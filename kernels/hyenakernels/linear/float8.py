"""Linear layers of one row with weights in FP8: as `linear.kernel`, at a byte a weight.

As many programs as fit the GPU at once each take every n-th block of whole rows of the weight. A
program normalizes the row of x and rounds it to e4m3 once, then holds it in registers. So the
numbers are those of a norm, `quantize_rows` and a product, up to the order of sums.

I input channels, O output channels.
"""

import torch
import triton
import triton.language as tl

from hyenakernels.float8.kernel import normed_row, row_scale
from hyenakernels.float8.reference import E4M3, SMALLEST
from hyenakernels.launch import float8_linear_launch, parts_of, power_of_two
from hyenakernels.overlap import overlap_options, wait_for_previous


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
    LIMIT: tl.constexpr,
    SMALLEST: tl.constexpr,
    NORMED: tl.constexpr,
    GATED: tl.constexpr,
    GELU: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ADDED: tl.constexpr,
    OVERLAPS: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_I: tl.constexpr,
):
    lane = tl.arange(0, BLOCK_I)
    inside = lane < I
    first = tl.program_id(0) * BLOCK_O
    step = tl.num_programs(0) * BLOCK_O
    out = first + tl.arange(0, BLOCK_O)
    at = out.to(tl.int64)[:, None] * I + lane[None, :]
    # Weights are loaded one block ahead, the first block while the previous launch still runs.
    next_OI = tl.load(weight + at, mask=(out < O)[:, None] & inside[None, :], other=0.0)
    if GATED:
        next_up_OI = tl.load(up + at, mask=(out < O)[:, None] & inside[None, :], other=0.0)
    wait_for_previous(OVERLAPS)
    x_I = tl.load(x + lane, mask=inside, other=0.0).to(tl.float32)
    if NORMED:
        x_I = normed_row(x_I, norm_scale, eps, I, BLOCK_I, x.dtype.element_ty)
    x_scale = row_scale(x_I, LIMIT, SMALLEST)
    x_I *= tl.div_rn(1.0, x_scale)
    x_I = tl.clamp(x_I, -LIMIT, LIMIT, propagate_nan=tl.PropagateNan.ALL)
    x_I = x_I.to(weight.dtype.element_ty).to(tl.float32)
    for start in range(first, O, step):
        out = start + tl.arange(0, BLOCK_O)
        is_out = out < O
        present = (out + step < O)[:, None] & inside[None, :]
        at = (out + step).to(tl.int64)[:, None] * I + lane[None, :]
        w_OI = next_OI
        next_OI = tl.load(weight + at, mask=present, other=0.0)
        y_O = tl.sum(w_OI.to(tl.float32) * x_I[None, :], axis=1)
        y_O *= x_scale * tl.load(weight_scale + out, mask=is_out, other=0.0)
        if HAS_BIAS:
            y_O += tl.load(bias + out, mask=is_out, other=0.0).to(tl.float32)
        if GELU:
            y_O = 0.5 * y_O * (1.0 + tl.erf(y_O * 0.7071067811865476))
        if GATED:
            w_OI = next_up_OI
            next_up_OI = tl.load(up + at, mask=present, other=0.0)
            up_O = tl.sum(w_OI.to(tl.float32) * x_I[None, :], axis=1)
            y_O *= up_O * (x_scale * tl.load(up_scale + out, mask=is_out, other=0.0))
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
        weight.values_OI,
        weight.scale_O1,
        up.values_OI,
        up.scale_O1,
        x_1I if bias_O is None else bias_O,
        x_1I if added_1O is None else added_1O,
        y_1O,
        eps,
        O=outputs,
        I=inputs,
        LIMIT=torch.finfo(E4M3).max,
        SMALLEST=SMALLEST,
        NORMED=scale_I is not None,
        GATED=up is not weight,
        GELU=gelu,
        HAS_BIAS=bias_O is not None,
        ADDED=added_1O is not None,
        BLOCK_O=launch.block_o,
        BLOCK_I=block_i,
        num_warps=launch.num_warps,
        **overlap_options(),
    )
    return y_1O
