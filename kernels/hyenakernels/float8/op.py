"""The public face of quantizing to FP8."""

import torch
from torch import Tensor

from hyenakernels.dispatch import kernels_take
from hyenakernels.float8 import reference


def quantize(
    x_MN: Tensor, dtype: torch.dtype, *, rows: bool = False, columns: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Give x / scale in FP8, one scale a tensor; `float8.reference.quantize` holds the contract.

    Args:
        x_MN: A matrix; the kernel takes bf16 only.
        dtype: torch.float8_e4m3fn or torch.float8_e5m2.
        rows: Whether to return it by rows, [P, N].
        columns: Whether to return it by columns, [N, P].

    Returns:
        By rows, by columns, and the scale in fp32; a layout not asked for has no meaning.
    """
    if x_MN.dtype != torch.bfloat16 or not kernels_take(x_MN):
        return reference.quantize(x_MN, dtype)
    found: tuple[Tensor, Tensor, Tensor] = fused(x_MN, dtype, rows, columns)
    return found


@torch.library.custom_op("hyenakernels::quantize", mutates_args=())
def fused(
    x_MN: Tensor, dtype: torch.dtype, rows: bool, columns: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """By the kernel: both layouts (empty where not asked for), and the scale."""
    from hyenakernels.float8 import kernel

    scale = (reference.largest(x_MN) / torch.finfo(dtype).max).clamp_min(reference.SMALLEST)
    with torch.cuda.device_of(x_MN):
        rows_PN, columns_NP = kernel.quantize(x_MN, scale, dtype, rows=rows, columns=columns)
    return rows_PN, columns_NP, scale


@fused.register_fake
def _(x_MN: Tensor, dtype: torch.dtype, rows: bool, columns: bool) -> tuple[Tensor, Tensor, Tensor]:
    height, width = x_MN.shape
    padded = -(-height // reference.MULTIPLE) * reference.MULTIPLE
    return (
        x_MN.new_empty((padded, width) if rows else (0, 0), dtype=dtype),
        x_MN.new_empty((width, padded) if columns else (0, 0), dtype=dtype),
        x_MN.new_empty((), dtype=torch.float32),
    )
