"""References of FP8 quantization, and of products with a quantized weight, in plain PyTorch.

M rows, N columns; P, M padded to a multiple of 16; I input channels, O output channels.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from hyenakernels.precision import accumulation_dtype, full_precision

MULTIPLE = 16  # sizes of FP8 matrix products on tensor cores must be multiples of it
MIN_SCALE = torch.finfo(torch.float32).tiny
E4M3 = torch.float8_e4m3fn


@dataclass(frozen=True)
class Float8Weight:
    """A weight quantized to one byte per number: W = values * scale.

    Attributes:
        values_OI: e4m3.
        scale_O1: A scale per output channel, fp32; powers of two from `rounded`, as scaling by them
            is exact in any dtype.
    """

    values_OI: Tensor
    scale_O1: Tensor

    @classmethod
    def rounded(cls, weight_OI: Tensor) -> "Float8Weight":
        """Quantize a weight, with scales that bring the amax of each row between 224 and 448."""
        wide_OI = weight_OI.float()
        amax_O1 = wide_OI.abs().amax(dim=1, keepdim=True).clamp_min(1e-12)
        scale_O1 = torch.exp2(torch.ceil(torch.log2(amax_O1 / torch.finfo(E4M3).max)))
        return cls((wide_OI / scale_O1).to(E4M3), scale_O1)

    @property
    def shape(self) -> torch.Size:
        """[O, I]."""
        return self.values_OI.shape

    def dense(self, dtype: torch.dtype) -> Tensor:
        """The dequantized weight."""
        return self.values_OI.to(dtype) * self.scale_O1.to(dtype)


@dataclass(frozen=True)
class RoundedRows:
    """A tensor [..., N] quantized to FP8 row by row: x = values * scale.

    Attributes:
        values_PN: e4m3, padded with rows of zeros to a multiple of 16.
        scale_P1: A scale per row, fp32.
        sizes: The sizes of the tensor, without N.
        dtype: The dtype of the tensor.
    """

    values_PN: Tensor
    scale_P1: Tensor
    sizes: torch.Size
    dtype: torch.dtype

    def unpadded(self, y_PO: Tensor) -> Tensor:
        """Remove the padding from a result with a row per row, and restore the sizes."""
        return y_PO[: self.sizes.numel()].view(*self.sizes, y_PO.shape[1])


def amax(x: Tensor) -> Tensor:
    """The largest magnitude, in fp32; NaN if `x` contains one."""
    result: Tensor = torch.linalg.vector_norm(x, float("inf"))
    return result.float()


def to_float8_saturated(x: Tensor, factor: Tensor | float, dtype: torch.dtype) -> Tensor:
    """Round x * factor to the nearest FP8 number, saturating at the largest; NaN stays NaN."""
    limit = torch.finfo(dtype).max
    return (x.float() * factor).clamp(-limit, limit).to(dtype)


def quantize(
    x_MN: Tensor, dtype: torch.dtype, factor: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Quantize x * factor to FP8; the default factor maps the amax to the largest FP8 number.

    Returns:
        The matrix by rows [P, N] and by columns [N, P], both padded with rows of zeros, and the
        scale 1 / factor as an fp32 scalar. A NaN in x makes all of them NaN, unless the factor is
        given.
    """
    if factor is None:
        scale = (amax(x_MN) * (1 / torch.finfo(dtype).max)).clamp_min(MIN_SCALE)
        factor = 1 / scale
    else:
        scale = 1 / factor
    values_MN = to_float8_saturated(x_MN, factor, dtype)
    padding = -x_MN.shape[0] % MULTIPLE
    # PyTorch cannot pad FP8 tensors, but it can pad their bytes.
    rows_PN = F.pad(values_MN.view(torch.uint8), (0, 0, 0, padding)).contiguous().view(dtype)
    return rows_PN, rows_PN.T.contiguous(), scale


def round_rows(x: Tensor) -> RoundedRows:
    """Quantize to e4m3 with a scale per row, which maps the amax of the row to 448.

    A NaN makes its row NaN, and no other.
    """
    x_MN = x.flatten(0, -2)
    amax_M1 = x_MN.float().abs().amax(dim=1, keepdim=True)
    scale_M1 = (amax_M1 * (1 / torch.finfo(E4M3).max)).clamp_min(MIN_SCALE)
    values_MN = to_float8_saturated(x_MN, 1 / scale_M1, E4M3)
    padding = (0, 0, 0, -len(x_MN) % MULTIPLE)
    values_PN = F.pad(values_MN.view(torch.uint8), padding).view(E4M3)
    return RoundedRows(values_PN, F.pad(scale_M1, padding), x.shape[:-1], x.dtype)


def gated(gate: Tensor, up: Tensor, *, gelu: bool) -> Tensor:
    """Compute act(gate) * up, where act is GELU or the identity."""
    return (F.gelu(gate) if gelu else gate) * up


def rows_product(rows: RoundedRows, weight: Float8Weight, bias_O: Tensor | None = None) -> Tensor:
    """Multiply quantized rows by a weight in e4m3.

    y = (values_x . values_W^T) * scale_x * scale_W + bias, accumulated in fp32 or better.

    Args:
        rows: x.
        weight: W.
        bias_O: One number per output channel; None for no bias.

    Returns:
        [..., O] in the dtype of x.
    """
    dtype = torch.promote_types(rows.dtype, torch.float32)
    with full_precision(rows.values_PN):
        sums_PO = rows.values_PN.to(dtype) @ weight.values_OI.to(dtype).T
    y_PO = sums_PO * rows.scale_P1 * weight.scale_O1.to(dtype).T
    return rows.unpadded((y_PO if bias_O is None else y_PO + bias_O.to(dtype)).to(rows.dtype))


def scaled_product(
    x_MI: Tensor, weight_OI: Tensor, x_factor: float, weight_factor: float
) -> Tensor:
    """Multiply by a weight in e4m3, with one factor per tensor.

    y = (e4m3(x * x_factor) . weight^T) / (x_factor * weight_factor), accumulated in fp32 or better.

    Args:
        x_MI: Any float dtype, which the result has too.
        weight_OI: The values e4m3(W * weight_factor), in e4m3 or in a wider dtype.
        x_factor: The input is multiplied by it before rounding.
        weight_factor: The weight was multiplied by it before rounding.
    """
    dtype = accumulation_dtype(x_MI)
    with full_precision(x_MI):
        sums_MO = to_float8_saturated(x_MI, x_factor, E4M3).to(dtype) @ weight_OI.to(dtype).T
    return (sums_MO / (x_factor * weight_factor)).to(x_MI.dtype)
