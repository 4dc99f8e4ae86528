"""What quantizing to FP8, and multiplying what is quantized, means in plain PyTorch.

M rows, N columns; P, M padded to a multiple of 16; I input channels, O output channels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from hyenakernels.precision import accumulation_dtype, full_precision

MULTIPLE = 16  # the tensor cores take sizes in steps of it
SMALLEST = torch.finfo(torch.float32).tiny
E4M3 = torch.float8_e4m3fn


def largest(x: Tensor) -> Tensor:
    """The largest magnitude, in fp32; NaN if there is one."""
    found: Tensor = torch.linalg.vector_norm(x, float("inf"))
    return found.float()


def narrow(x: Tensor, factor: Tensor | float, dtype: torch.dtype) -> Tensor:
    """Give x * factor in FP8, rounded to nearest; beyond the range its end, NaN stays NaN."""
    limit = torch.finfo(dtype).max
    return (x.float() * factor).clamp(-limit, limit).to(dtype)


def quantize(
    x_MN: Tensor, dtype: torch.dtype, factor: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Give x * factor in FP8; by default the largest magnitude comes to the end of the range.

    Returns:
        By rows [P, N], by columns [N, P] (both with zeros for the rows that x lacks), and the scale
        1 / factor in fp32, []. A NaN makes all of them NaN, unless the factor was given.
    """
    if factor is None:
        scale = (largest(x_MN) * (1 / torch.finfo(dtype).max)).clamp_min(SMALLEST)
        factor = 1 / scale
    else:
        scale = 1 / factor
    values_MN = narrow(x_MN, factor, dtype)
    lacking = -x_MN.shape[0] % MULTIPLE
    # FP8 itself cannot be padded, its bytes can.
    rows_PN = F.pad(values_MN.view(torch.uint8), (0, 0, 0, lacking)).view(dtype)
    return rows_PN, rows_PN.T.contiguous(), scale


def scaled_product(
    x_MI: Tensor, weight_OI: Tensor, x_factor: float, weight_factor: float
) -> Tensor:
    """Multiply by a weight that is kept in e4m3.

    y = (e4m3(x * x_factor) . weight^T) / (x_factor * weight_factor), summed in fp32 or better.

    Args:
        x_MI: Any dtype; the result has it too.
        weight_OI: The values e4m3(W * weight_factor), in e4m3 or in a dtype that holds them.
        x_factor: What the input is multiplied by.
        weight_factor: What the weight was multiplied by.
    """
    dtype = accumulation_dtype(x_MI)
    with full_precision(x_MI):
        sums_MO = narrow(x_MI, x_factor, E4M3).to(dtype) @ weight_OI.to(dtype).T
    return (sums_MO / (x_factor * weight_factor)).to(x_MI.dtype)
