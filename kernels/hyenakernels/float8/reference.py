"""The definitions of rounding to FP8, and of products with a rounded weight, in plain PyTorch.

M rows, N columns; P, M padded to a multiple of 16; I input channels, O output channels.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from hyenakernels.precision import accumulation_dtype, full_precision

MULTIPLE = 16  # of which the sizes of products on tensor cores are multiples
SMALLEST = torch.finfo(torch.float32).tiny
E4M3 = torch.float8_e4m3fn


@dataclass(frozen=True)
class Float8Weight:
    """A weight at one byte per number: W = values * scale.

    Attributes:
        values_OI: e4m3.
        scale_O1: A scale for each output channel, fp32. Powers of two change no digit of a weight
            in any dtype.
    """

    values_OI: Tensor
    scale_O1: Tensor

    @classmethod
    def rounded(cls, weight_OI: Tensor) -> "Float8Weight":
        """The nearest such weight, whose largest magnitude of a row is between 224 and 448."""
        wide_OI = weight_OI.float()
        largest_O1 = wide_OI.abs().amax(dim=1, keepdim=True).clamp_min(1e-12)
        scale_O1 = torch.exp2(torch.ceil(torch.log2(largest_O1 / torch.finfo(E4M3).max)))
        return cls((wide_OI / scale_O1).to(E4M3), scale_O1)

    @property
    def shape(self) -> torch.Size:
        """[O, I]."""
        return self.values_OI.shape

    def dense(self, dtype: torch.dtype) -> Tensor:
        """The weight that products multiply by."""
        return self.values_OI.to(dtype) * self.scale_O1.to(dtype)


@dataclass(frozen=True)
class RoundedRows:
    """The rows of a tensor [..., N] in FP8: x = values * scale.

    Attributes:
        values_PN: e4m3, padded with rows of zeros to a multiple of 16.
        scale_P1: A scale for each row, fp32.
        sizes: Those of the tensor, without N.
        dtype: That of the tensor.
    """

    values_PN: Tensor
    scale_P1: Tensor
    sizes: torch.Size
    dtype: torch.dtype

    def unpadded(self, y_PO: Tensor) -> Tensor:
        """Something computed for each row, without the padding, in the sizes of the tensor."""
        return y_PO[: self.sizes.numel()].view(*self.sizes, y_PO.shape[1])


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


def round_rows(x: Tensor) -> RoundedRows:
    """Round each row to e4m3 with a scale of its own, which makes its largest magnitude 448.

    A NaN in a row makes the row NaN, and no other.
    """
    x_MN = x.flatten(0, -2)
    largest_M1 = x_MN.float().abs().amax(dim=1, keepdim=True)
    scale_M1 = (largest_M1 * (1 / torch.finfo(E4M3).max)).clamp_min(SMALLEST)
    values_MN = narrow(x_MN, 1 / scale_M1, E4M3)
    padding = (0, 0, 0, -len(x_MN) % MULTIPLE)
    values_PN = F.pad(values_MN.view(torch.uint8), padding).view(E4M3)
    return RoundedRows(values_PN, F.pad(scale_M1, padding), x.shape[:-1], x.dtype)


def gated(gate: Tensor, up: Tensor, *, gelu: bool) -> Tensor:
    """Compute act(gate) * up, where act is GELU or the identity."""
    return (F.gelu(gate) if gelu else gate) * up


def rows_product(rows: RoundedRows, weight: Float8Weight, bias_O: Tensor | None = None) -> Tensor:
    """Multiply rounded rows by a weight kept in e4m3.

    y = (values_x . values_W^T) * scale_x * scale_W + bias, summed in fp32 or better.

    Args:
        rows: x.
        weight: W.
        bias_O: For each output channel; None for no bias.

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
