"""One read of a matrix, one write of it in FP8 in each layout that is asked for.

M rows, N columns; P, M padded to a multiple of 16.
"""

import torch
import triton
import triton.language as tl

from hyenakernels.float8.reference import MULTIPLE

BLOCK = 64  # rows and columns a program turns: lines of 64 bytes in FP8


@triton.jit
def _quantize_kernel(
    x,
    factor,
    by_rows,
    by_columns,
    M,
    P,
    N,
    LIMIT: tl.constexpr,
    HAS_ROWS: tl.constexpr,
    HAS_COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    column = tl.program_id(1).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    there = (row < M)[:, None] & (column < N)[None, :]
    kept = (row < P)[:, None] & (column < N)[None, :]
    values = tl.load(x + row[:, None] * N + column[None, :], mask=there, other=0.0)
    scaled = values.to(tl.float32) * tl.load(factor)
    limited = tl.clamp(scaled, -LIMIT, LIMIT, propagate_nan=tl.PropagateNan.ALL)
    narrow = limited.to(by_rows.dtype.element_ty)
    if HAS_ROWS:
        tl.store(by_rows + row[:, None] * N + column[None, :], narrow, mask=kept)
    if HAS_COLUMNS:
        tl.store(by_columns + column[:, None] * P + row[None, :], narrow.T, mask=kept.T)


def quantize(x_MN, factor, dtype, *, rows, columns):
    """Give x * factor by rows and by columns; empty where it is not asked for."""
    height, width = x_MN.shape
    padded = height + -height % MULTIPLE
    rows_PN = torch.empty((padded, width) if rows else (0, 0), dtype=dtype, device=x_MN.device)
    columns_NP = torch.empty(
        (width, padded) if columns else (0, 0), dtype=dtype, device=x_MN.device
    )
    grid = (triton.cdiv(padded, BLOCK), triton.cdiv(width, BLOCK))
    _quantize_kernel[grid](
        x_MN.contiguous(),
        factor,
        rows_PN,
        columns_NP,
        height,
        padded,
        width,
        LIMIT=torch.finfo(dtype).max,
        HAS_ROWS=rows,
        HAS_COLUMNS=columns,
        BLOCK=BLOCK,
    )
    return rows_PN, columns_NP
