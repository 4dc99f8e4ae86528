"""Gradients of the norms, row by row as in the forward pass.

With t the row, r = rms(t), i = 1 / (r + eps), q = t i, and g the gradient of the normalized row,

    dt = i scale g - q sum(scale g q) / (r D) + dtotal,    dscale = sum over rows of g q.

Each program accumulates dscale over its rows; these partial sums are reduced in a fixed order.

N rows, D channels.
"""

import torch
import triton
import triton.language as tl

from hyenakernels.norm.kernel import aligned, load_row, sizes_of, store_row


@triton.jit(do_not_specialize=["rows"])
def _norm_gradient_kernel(
    x,
    scale,
    rms,
    dnormed,
    dtotal,
    dx,
    dy,
    partial_scale,
    rows,
    eps,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    HAS_TOTAL: tl.constexpr,
    HAS_Y: tl.constexpr,
):
    """Store the gradient of each row in the dtypes of x and y, and a partial sum of dscale."""
    first = tl.program_id(0)
    step = tl.num_programs(0)
    scales = load_row(scale, first * 0, 1, D, BLOCK_D).to(tl.float32)
    sums = tl.zeros((BLOCK_D,), tl.float32)
    row = first
    next_x = load_row(x, row, rows, D, BLOCK_D)
    next_g = load_row(dnormed, row, rows, D, BLOCK_D)
    while row < rows:
        row_rms = tl.load(rms + row)
        inverse = 1.0 / (row_rms + eps)
        normed = next_x.to(tl.float32) * inverse
        g = next_g.to(tl.float32)
        next_x = load_row(x, row + step, rows, D, BLOCK_D)
        next_g = load_row(dnormed, row + step, rows, D, BLOCK_D)
        sums += g * normed
        g *= scales
        # For a row of zeros any divisor will do: the term is multiplied by q = 0.
        mean_product = tl.sum(g * normed, axis=0) / (tl.where(row_rms == 0.0, 1.0, row_rms) * D)
        gradient = g * inverse - normed * mean_product
        if HAS_TOTAL:  # not loaded ahead, for lack of registers
            gradient += load_row(dtotal, row, rows, D, BLOCK_D).to(tl.float32)
        store_row(dx, row, gradient, D, BLOCK_D)
        if HAS_Y:
            store_row(dy, row, gradient, D, BLOCK_D)
        row += step
    store_row(partial_scale, first, sums, D, BLOCK_D)


def gradients(x_BLD, scale_D, rms_BL, dnormed_BLD, dtotal_BLD, eps, dy_dtype):
    """The gradients of x (the sum), of y in `dy_dtype` (empty when None), and of the scale."""
    programs, sizes = sizes_of("backward", x_BLD)
    x_BLD = aligned(x_BLD)
    dx_BLD = torch.empty_like(x_BLD)
    dy_BLD = x_BLD.new_empty(0) if dy_dtype is None else torch.empty_like(x_BLD, dtype=dy_dtype)
    partials = x_BLD.new_empty(programs, sizes["D"], dtype=torch.float32)
    _norm_gradient_kernel[(programs,)](
        x_BLD,
        aligned(scale_D),
        rms_BL.contiguous(),
        aligned(dnormed_BLD),
        x_BLD if dtotal_BLD is None else aligned(dtotal_BLD),
        dx_BLD,
        dy_BLD,
        partials,
        eps=eps,
        HAS_TOTAL=dtotal_BLD is not None,
        HAS_Y=dy_dtype is not None,
        **sizes,
    )
    return dx_BLD, dy_BLD, partials.sum(dim=0)
