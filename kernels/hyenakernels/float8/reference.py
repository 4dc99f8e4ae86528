"""The definitions of FP8 quantization, and of products with a quantized weight, in plain PyTorch.

M rows, N columns; P, M padded to a multiple of 16; I input channels, O output channels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from hyenakernels.precision import accumulation_dtype, full_precision

MULTIPLE = 16  # of which the sizes of products on tensor cores are multiples
SMALLEST = torch.finfo(torch.float32).tiny
E4M3 = torch.float8_e4m3fn


def largest(x: Tensor) -> Tensor:
    """The largest magnitude in fp32; NaN if `x` contains one."""
    found: Tensor = torch.linalg.vector_norm(x, float("inf"))
    return found.float()


def narrow(x: Tensor, factor: Tensor | float, dtype: torch.dtype) -> Tensor:
    """Round x * factor to the nearest FP8 number, saturating at the largest; NaN stays NaN."""
    limit = torch.finfo(dtype).max
    return (x.float() * factor).clamp(-limit, limit).to(dtype)


def quantize(
    x_MN: Tensor, dtype: torch.dtype, factor: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Quantize x * factor to FP8; by default the largest magnitude becomes the largest FP8 number.

    Returns:
        The matrix by rows [P, N] and by columns [N, P], both padded with rows of zeros, and the
        scale 1 / factor as an fp32 scalar. A NaN in x makes all of them NaN, unless the factor is
        given.
    """
    if factor is None:
        scale = (largest(x_MN) * (1 / torch.finfo(dtype).max)).clamp_min(SMALLEST)
        factor = 1 / scale
    else:
        scale = 1 / factor
    values_MN = narrow(x_MN, factor, dtype)
    padding = -x_MN.shape[0] % MULTIPLE
    # PyTorch cannot pad FP8 tensors, but it can pad their bytes.
    rows_PN = F.pad(values_MN.view(torch.uint8), (0, 0, 0, padding)).contiguous().view(dtype)
    return rows_PN, rows_PN.T.contiguous(), scale


def scaled_product(
    x_MI: Tensor, weight_OI: Tensor, x_factor: float, weight_factor: float
) -> Tensor:
    """Multiply by a weight kept in e4m3.

    y = (e4m3(x * x_factor) . weight^T) / (x_factor * weight_factor), summed in fp32 or better.

    Args:
        x_MI: Any float dtype, which the result has too.
        weight_OI: The values e4m3(W * weight_factor), in e4m3 or in a wider dtype.
        x_factor: The input is multiplied by it before rounding.
        weight_factor: The weight was multiplied by it before rounding.
    """
    dtype = accumulation_dtype(x_MI)
    with full_precision(x_MI):
        sums_MO = narrow(x_MI, x_factor, E4M3).to(dtype) @ weight_OI.to(dtype).T
    return (sums_MO / (x_factor * weight_factor)).to(x_MI.dtype)
