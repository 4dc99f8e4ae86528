"""Quantize a matrix to FP8, with a scale per tensor or per row.

Per tensor: two reads, and a write in each requested layout. The first read finds the amax (largest
magnitude); it is skipped if the factor is given. Per row: one read and one write, one row per
program.

M rows, N columns; P, M padded to a multiple of 16.
"""

import torch
import triton
import triton.language as tl

from hyenakernels.float8.reference import E4M3, MIN_SCALE, MULTIPLE
from hyenakernels.launch import cdiv, next_power_of_two

BLOCK = 64  # rows and columns per program: stores of 64 bytes in FP8
CHUNK, NUM_CHUNKS = 4096, 8  # a program computes the amax of 8 times 4096 numbers


@triton.jit
def _amax_kernel(x, amax, count, CHUNK: tl.constexpr, NUM_CHUNKS: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * CHUNK * NUM_CHUNKS + tl.arange(0, CHUNK)
    maximum = tl.zeros([CHUNK], dtype=tl.int32)
    for index in tl.static_range(NUM_CHUNKS):
        values = tl.load(x + at + index * CHUNK, mask=at + index * CHUNK < count, other=0.0)
        # As integers, the bits of magnitudes have the same order, with NaN above infinity.
        bits = tl.abs(values.to(tl.float32)).to(tl.int32, bitcast=True)
        maximum = tl.maximum(maximum, bits)
    tl.atomic_max(amax, tl.max(maximum, axis=0), sem="relaxed")


@triton.jit
def amax_bits(x_N):
    """The amax of a row as the bits of an fp32 number; NaN is above infinity in their order."""
    return tl.max(tl.abs(x_N).to(tl.int32, bitcast=True), axis=0)


@triton.jit
def row_scale(bits, FP8_MAX: tl.constexpr, MIN_SCALE: tl.constexpr):
    """The scale of a row: divided by it, the amax of the row becomes FP8_MAX."""
    amax = bits.to(tl.float32, bitcast=True)
    return tl.maximum(amax * (1 / FP8_MAX), MIN_SCALE, propagate_nan=tl.PropagateNan.ALL)


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
    FP8_MAX: tl.constexpr,
    MIN_SCALE: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK_N)
    width = tl.where(row < M, N, 0)  # padding rows are zeros
    x_N = tl.load(x + row * N + column, mask=column < width, other=0.0).to(tl.float32)
    if NORMED:
        # Rounded to the dtype that the norm stores.
        scales_N = tl.load(norm_scale + column, mask=column < N, other=0.0).to(tl.float32)
        factor = 1.0 / (tl.sqrt_rn(tl.sum(x_N * x_N, axis=0) / N) + eps)
        x_N = (scales_N * (x_N * factor)).to(x.dtype.element_ty).to(tl.float32)
    if GATED:
        up_N = tl.load(up + row * N + column, mask=column < width, other=0.0).to(tl.float32)
        if GELU:
            x_N = 0.5 * x_N * (1.0 + tl.erf(x_N * 0.7071067811865476))
            x_N = x_N.to(x.dtype.element_ty).to(tl.float32)
        x_N = (x_N * up_N).to(x.dtype.element_ty).to(tl.float32)
    inverse = row_scale(amax_bits(x_N), FP8_MAX, MIN_SCALE)
    scaled = x_N * tl.div_rn(1.0, inverse)
    clamped = tl.clamp(scaled, -FP8_MAX, FP8_MAX, propagate_nan=tl.PropagateNan.ALL)
    tl.store(values + row * N + column, clamped.to(values.dtype.element_ty), mask=column < N)
    tl.store(scale + row, inverse)


@triton.jit
def _quantize_kernel(
    x,
    amax_or_factor,
    scale,
    row_major,
    transposed,
    M,
    P,
    N,
    FP8_MAX: tl.constexpr,
    MIN_SCALE: tl.constexpr,
    HAS_FACTOR: tl.constexpr,
    HAS_ROWS: tl.constexpr,
    HAS_COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    column = tl.program_id(1).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    if HAS_FACTOR:
        factor = tl.load(amax_or_factor)
        inverse = tl.div_rn(1.0, factor)
    else:
        amax = tl.load(amax_or_factor)
        inverse = tl.maximum(amax * (1 / FP8_MAX), MIN_SCALE, propagate_nan=tl.PropagateNan.ALL)
        factor = tl.div_rn(1.0, inverse)
    if (tl.program_id(0) == 0) & (tl.program_id(1) == 0):
        tl.store(scale, inverse)
    inside = (row < M)[:, None] & (column < N)[None, :]
    padded = (row < P)[:, None] & (column < N)[None, :]
    values = tl.load(x + row[:, None] * N + column[None, :], mask=inside, other=0.0)
    scaled = values.to(tl.float32) * factor
    clamped = tl.clamp(scaled, -FP8_MAX, FP8_MAX, propagate_nan=tl.PropagateNan.ALL)
    saturated = clamped.to(row_major.dtype.element_ty)
    if HAS_ROWS:
        tl.store(row_major + row[:, None] * N + column[None, :], saturated, mask=padded)
    if HAS_COLUMNS:
        tl.store(transposed + column[:, None] * P + row[None, :], saturated.T, mask=padded.T)


def _amax(x_MN):
    """The amax of a contiguous matrix as an fp32 scalar; NaN if it contains one."""
    amax = torch.zeros((), dtype=torch.float32, device=x_MN.device)
    grid = (cdiv(x_MN.numel(), CHUNK * NUM_CHUNKS),)
    _amax_kernel[grid](
        x_MN, amax.view(torch.int32), x_MN.numel(), CHUNK=CHUNK, NUM_CHUNKS=NUM_CHUNKS
    )
    return amax


def quantize(x_MN, factor, dtype, *, rows, columns):
    """Return x * factor by rows and by columns (empty unless requested), and 1 / factor."""
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
        _amax(x_MN) if factor is None else factor,
        scale,
        rows_PN,
        columns_NP,
        height,
        padded,
        width,
        FP8_MAX=torch.finfo(dtype).max,
        MIN_SCALE=MIN_SCALE,
        HAS_FACTOR=factor is not None,
        HAS_ROWS=rows,
        HAS_COLUMNS=columns,
        BLOCK=BLOCK,
    )
    return rows_PN, columns_NP, scale


def round_rows(x_MN, *, norm_scale_N=None, eps=0.0, up_MN=None, gelu=False):
    """Quantize rows of x, norm(x) or act(x) * up: values in e4m3 [P, N], and scales [P, 1]."""
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
        FP8_MAX=torch.finfo(E4M3).max,
        MIN_SCALE=MIN_SCALE,
        BLOCK_N=block,
        num_warps=min(max(block // 512, 1), 16),  # 16 to 64 numbers per thread
    )
    return values_PN, scale_P1
