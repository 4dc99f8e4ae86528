"""RMS norms in persistent kernels: n programs take every n-th row, with the scale in registers.

The next row is loaded while the current one is summed. The order of summation depends on D alone.

N rows, D channels.
"""

import torch
import triton
import triton.language as tl

from hyenakernels.launch import NormPass, next_power_of_two, norm_launch


@triton.jit
def load_row(x, row, rows, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Load a row in its dtype, padded with zeros; all zeros past the last row."""
    channel = tl.arange(0, BLOCK_D)
    start = x + row.to(tl.int64) * D
    present = tl.zeros((BLOCK_D,), tl.int32) + row < rows
    return tl.load(start + channel, mask=(channel < D) & present, other=0.0)


@triton.jit
def store_row(x, row, values, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Store a row in the dtype of `x`."""
    channel = tl.arange(0, BLOCK_D)
    start = x + row.to(tl.int64) * D
    tl.store(start + channel, values.to(x.dtype.element_ty), mask=channel < D)


@triton.jit(do_not_specialize=["rows"])
def _norm_kernel(
    x,
    y,
    scale,
    normed,
    total,
    rms,
    rows,
    eps,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    HAS_Y: tl.constexpr,
):
    """Store t = x + y if y is given, r = rms(t), and scale * t / (r + eps)."""
    first = tl.program_id(0)
    step = tl.num_programs(0)
    scales = load_row(scale, first * 0, 1, D, BLOCK_D).to(tl.float32)
    row = first
    next_x = load_row(x, row, rows, D, BLOCK_D)
    if HAS_Y:
        next_y = load_row(y, row, rows, D, BLOCK_D)
    while row < rows:
        values = next_x.to(tl.float32)
        next_x = load_row(x, row + step, rows, D, BLOCK_D)
        if HAS_Y:
            # The sum is rounded to its stored dtype before it is normalized.
            summed = (values + next_y.to(tl.float32)).to(total.dtype.element_ty)
            next_y = load_row(y, row + step, rows, D, BLOCK_D)
            store_row(total, row, summed, D, BLOCK_D)
            values = summed.to(tl.float32)
        row_rms = tl.sqrt_rn(tl.sum(values * values, axis=0) / D)
        tl.store(rms + row, row_rms)
        store_row(normed, row, scales * (values * (1.0 / (row_rms + eps))), D, BLOCK_D)
        row += step


def aligned(x):
    """`x` as the kernels need it: contiguous, and aligned for the widest loads.

    With narrower loads a thread would get other channels, which changes the order of summation.
    """
    x = x.contiguous()
    return x if x.data_ptr() % 16 == 0 else x.clone()


def sizes_of(which: NormPass, x_BLD):
    """The number of programs, and the sizes that the kernels take."""
    width = x_BLD.shape[-1]
    rows = x_BLD.numel() // width
    num_warps, programs = norm_launch(which, width)
    block = max(next_power_of_two(width), 32)
    return min(rows, programs), {
        "rows": rows,
        "D": width,
        "BLOCK_D": block,
        "num_warps": num_warps,
    }


def forward(x_BLD, y_BLD, scale_D, eps, dtype):
    """The normalized rows in `dtype`, the sum (empty without y), and the RMS of each row."""
    programs, sizes = sizes_of("forward", x_BLD)
    x_BLD = aligned(x_BLD)
    normed_BLD = torch.empty_like(x_BLD, dtype=dtype)
    total_BLD = x_BLD.new_empty(0) if y_BLD is None else torch.empty_like(x_BLD)
    rms_BL = x_BLD.new_empty(x_BLD.shape[:-1], dtype=torch.float32)
    _norm_kernel[(programs,)](
        x_BLD,
        x_BLD if y_BLD is None else aligned(y_BLD),
        aligned(scale_D),
        normed_BLD,
        total_BLD,
        rms_BL,
        eps=eps,
        HAS_Y=y_BLD is not None,
        **sizes,
    )
    return normed_BLD, total_BLD, rms_BL
