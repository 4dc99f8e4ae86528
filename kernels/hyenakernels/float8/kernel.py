"""Quantize a matrix to FP8: with one scale, or with a scale for each row.

With one scale: two reads of it, and one write in each requested layout. The first read finds the
largest magnitude; it is not needed when the factor is given. With a scale for each row: one read
and one write, a row a program.

M rows, N columns; P, M padded to a multiple of 16.
"""

import torch
import triton
import triton.language as tl

from hyenakernels.float8.reference import E4M3, MULTIPLE, SMALLEST
from hyenakernels.launch import cdiv, next_power_of_two

BLOCK = 64  # rows and columns of a program: lines of 64 bytes in FP8
CHUNK, NUM_CHUNKS = 4096, 8  # numbers of which a program finds the largest: 8 times 4096


@triton.jit
def _largest_kernel(x, largest, count, CHUNK: tl.constexpr, NUM_CHUNKS: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * CHUNK * NUM_CHUNKS + tl.arange(0, CHUNK)
    found = tl.zeros([CHUNK], dtype=tl.int32)
    for index in tl.static_range(NUM_CHUNKS):
        values = tl.load(x + at + index * CHUNK, mask=at + index * CHUNK < count, other=0.0)
        # The bits of magnitudes are in the order of the magnitudes, with NaN above infinity.
        bits = tl.abs(values.to(tl.float32)).to(tl.int32, bitcast=True)
        found = tl.maximum(found, bits)
    tl.atomic_max(largest, tl.max(found, axis=0), sem="relaxed")


@triton.jit
def largest_bits(x_N):
    """The bits of the largest magnitude: in the order of magnitudes, with NaN above infinity."""
    return tl.max(tl.abs(x_N).to(tl.int32, bitcast=True), axis=0)


@triton.jit
def row_scale(bits, LIMIT: tl.constexpr, SMALLEST: tl.constexpr):
    """What makes the largest magnitude of a row LIMIT when the row is divided by it."""
    largest = bits.to(tl.float32, bitcast=True)
    return tl.maximum(largest * (1 / LIMIT), SMALLEST, propagate_nan=tl.PropagateNan.ALL)


@triton.jit(do_not_specialize=["M"])
def _round_rows_kernel(
    x,
    norm_scale,
    up,
    values,
    scale,
    eps,
    M,
    NORMED: tl.constexpr,
    GATED: tl.constexpr,
    GELU: tl.constexpr,
    N: tl.constexpr,
    LIMIT: tl.constexpr,
    SMALLEST: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK_N)
    width = tl.where(row < M, N, 0)  # rows of padding are zeros
    x_N = tl.load(x + row * N + column, mask=column < width, other=0.0).to(tl.float32)
    if NORMED:
        # As the norm stores it.
        scales_N = tl.load(norm_scale + column, mask=column < N, other=0.0).to(tl.float32)
        factor = 1.0 / (tl.sqrt_rn(tl.sum(x_N * x_N, axis=0) / N) + eps)
        x_N = (scales_N * (x_N * factor)).to(x.dtype.element_ty).to(tl.float32)
    if GATED:
        up_N = tl.load(up + row * N + column, mask=column < width, other=0.0).to(tl.float32)
        if GELU:
            x_N = 0.5 * x_N * (1.0 + tl.erf(x_N * 0.7071067811865476))
            x_N = x_N.to(x.dtype.element_ty).to(tl.float32)
        x_N = (x_N * up_N).to(x.dtype.element_ty).to(tl.float32)
    inverse = row_scale(largest_bits(x_N), LIMIT, SMALLEST)
    scaled = x_N * tl.div_rn(1.0, inverse)
    limited = tl.clamp(scaled, -LIMIT, LIMIT, propagate_nan=tl.PropagateNan.ALL)
    tl.store(values + row * N + column, limited.to(values.dtype.element_ty), mask=column < N)
    tl.store(scale + row, inverse)


@triton.jit
def _quantize_kernel(
    x,
    given,
    scale,
    by_rows,
    by_columns,
    M,
    P,
    N,
    LIMIT: tl.constexpr,
    SMALLEST: tl.constexpr,
    HAS_FACTOR: tl.constexpr,
    HAS_ROWS: tl.constexpr,
    HAS_COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    column = tl.program_id(1).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    if HAS_FACTOR:
        factor = tl.load(given)
        inverse = tl.div_rn(1.0, factor)
    else:
        largest = tl.load(given)
        inverse = tl.maximum(largest * (1 / LIMIT), SMALLEST, propagate_nan=tl.PropagateNan.ALL)
        factor = tl.div_rn(1.0, inverse)
    if (tl.program_id(0) == 0) & (tl.program_id(1) == 0):
        tl.store(scale, inverse)
    inside = (row < M)[:, None] & (column < N)[None, :]
    padded = (row < P)[:, None] & (column < N)[None, :]
    values = tl.load(x + row[:, None] * N + column[None, :], mask=inside, other=0.0)
    scaled = values.to(tl.float32) * factor
    limited = tl.clamp(scaled, -LIMIT, LIMIT, propagate_nan=tl.PropagateNan.ALL)
    narrow = limited.to(by_rows.dtype.element_ty)
    if HAS_ROWS:
        tl.store(by_rows + row[:, None] * N + column[None, :], narrow, mask=padded)
    if HAS_COLUMNS:
        tl.store(by_columns + column[:, None] * P + row[None, :], narrow.T, mask=padded.T)


def _largest(x_MN):
    """The largest magnitude of a contiguous matrix as an fp32 scalar; NaN if it contains one."""
    largest = torch.zeros((), dtype=torch.float32, device=x_MN.device)
    grid = (cdiv(x_MN.numel(), CHUNK * NUM_CHUNKS),)
    _largest_kernel[grid](
        x_MN, largest.view(torch.int32), x_MN.numel(), CHUNK=CHUNK, NUM_CHUNKS=NUM_CHUNKS
    )
    return largest


def quantize(x_MN, factor, dtype, *, rows, columns):
    """Return x * factor by rows and by columns, each empty if not requested, and 1 / factor."""
    height, width = x_MN.shape
    padded = height + -height % MULTIPLE
    x_MN = x_MN.contiguous()
    rows_PN = torch.empty((padded, width) if rows else (0, 0), dtype=dtype, device=x_MN.device)
    columns_NP = torch.empty(
        (width, padded) if columns else (0, 0), dtype=dtype, device=x_MN.device
    )
    scale = torch.empty((), dtype=torch.float32, device=x_MN.device)
    grid = (cdiv(padded, BLOCK), cdiv(width, BLOCK))
    _quantize_kernel[grid](
        x_MN,
        _largest(x_MN) if factor is None else factor,
        scale,
        rows_PN,
        columns_NP,
        height,
        padded,
        width,
        LIMIT=torch.finfo(dtype).max,
        SMALLEST=SMALLEST,
        HAS_FACTOR=factor is not None,
        HAS_ROWS=rows,
        HAS_COLUMNS=columns,
        BLOCK=BLOCK,
    )
    return rows_PN, columns_NP, scale


def round_rows(x_MN, *, norm_scale_N=None, eps=0.0, up_MN=None, gelu=False):
    """The rows of x, of norm(x), or of act(x) * up in e4m3 [P, N], and their scales [P, 1]."""
    height, width = x_MN.shape
    padded = height + -height % MULTIPLE
    values_PN = torch.empty((padded, width), dtype=E4M3, device=x_MN.device)
    scale_P1 = torch.empty((padded, 1), dtype=torch.float32, device=x_MN.device)
    block = max(next_power_of_two(width), 32)
    _round_rows_kernel[(padded,)](
        x_MN.contiguous(),
        x_MN if norm_scale_N is None else norm_scale_N.contiguous(),
        x_MN if up_MN is None else up_MN.contiguous(),
        values_PN,
        scale_P1,
        eps,
        height,
        NORMED=norm_scale_N is not None,
        GATED=up_MN is not None,
        GELU=gelu,
        N=width,
        LIMIT=torch.finfo(E4M3).max,
        SMALLEST=SMALLEST,
        BLOCK_N=block,
        num_warps=min(max(block // 512, 1), 16),  # 16 to 64 numbers a thread
    )
    return values_PN, scale_P1
