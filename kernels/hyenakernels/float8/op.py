"""The public functions for quantization to FP8, and for matrix products with weights in FP8."""

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.functional import ScalingType

from hyenakernels.dispatch import kernels_support
from hyenakernels.float8 import reference
from hyenakernels.float8.reference import E4M3, MULTIPLE, Float8Weight, RoundedRows
from hyenakernels.gradients import is_traced
from hyenakernels.norm.op import rms_norm

MAX_ROW = 32_768  # the longest row that a program quantizes


def quantize(
    x_MN: Tensor,
    dtype: torch.dtype,
    *,
    factor: Tensor | None = None,
    rows: bool = False,
    columns: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Quantize x * factor to FP8 with one factor per tensor; see `float8.reference.quantize`.

    Args:
        x_MN: A matrix; the kernel supports bf16 only.
        dtype: torch.float8_e4m3fn or torch.float8_e5m2.
        factor: An fp32 scalar; by default it maps the amax to the largest FP8 number.
        rows: Whether to return the matrix by rows, [P, N].
        columns: Whether to return the matrix by columns, [N, P].

    Returns:
        The matrix by rows, by columns, and 1 / factor in fp32; a layout that was not requested
        is empty.
    """
    # The reference too is opaque to torch.compile, which would choose another memory layout for its
    # results than FP8 products support.
    run = traced if is_traced(x_MN) else _in_layouts
    result: tuple[Tensor, Tensor, Tensor] = run(x_MN, dtype, rows, columns, factor)
    return result


def by_kernel(
    x_MN: Tensor, dtype: torch.dtype, rows: bool, columns: bool, factor: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """`quantize` by the kernel: both layouts, each empty if not requested, and 1 / factor."""
    from hyenakernels.float8 import kernel

    with torch.cuda.device_of(x_MN):
        result: tuple[Tensor, Tensor, Tensor] = kernel.quantize(
            x_MN, factor, dtype, rows=rows, columns=columns
        )
    return result


def _in_layouts(
    x_MN: Tensor, dtype: torch.dtype, rows: bool, columns: bool, factor: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """`by_kernel` if the kernel supports `x`, else the same by the reference."""
    if x_MN.dtype == torch.bfloat16 and kernels_support(x_MN):
        return by_kernel(x_MN, dtype, rows, columns, factor)
    rows_PN, columns_NP, scale = reference.quantize(x_MN, dtype, factor)
    empty = (0, 0)
    return (
        rows_PN if rows else rows_PN.new_empty(empty),
        columns_NP if columns else columns_NP.new_empty(empty),
        scale,
    )


traced = torch.library.custom_op("hyenakernels::quantize", _in_layouts, mutates_args=())


@traced.register_fake
def _(
    x_MN: Tensor,
    dtype: torch.dtype,
    rows: bool,
    columns: bool,
    factor: Tensor | None = None,  # noqa: ARG001 - no shape depends on it
) -> tuple[Tensor, Tensor, Tensor]:
    height, width = x_MN.shape
    padded = -(-height // MULTIPLE) * MULTIPLE
    return (
        x_MN.new_empty((padded, width) if rows else (0, 0), dtype=dtype),
        x_MN.new_empty((width, padded) if columns else (0, 0), dtype=dtype),
        x_MN.new_empty((), dtype=torch.float32),
    )


Norm = tuple[Tensor, float]  # the scale [N] of an RMS norm, and its eps


def round_rows(x: Tensor, norm: Norm | None = None) -> RoundedRows:
    """Quantize to e4m3 with a scale per row; see `float8.reference.round_rows`.

    Args:
        x: Rows [..., N].
        norm: An RMS norm to apply to the rows first; None for no norm.
    """
    if _supports_rounding(x):
        scale_N, eps = (None, 0.0) if norm is None else norm
        return _by_kernel(x, norm_scale_N=scale_N, eps=eps)
    if norm is not None:
        x = rms_norm(x.flatten(0, -2)[None], *norm).view(x.shape)
    return reference.round_rows(x)


def round_gated(gate: Tensor, up: Tensor, *, gelu: bool) -> RoundedRows:
    """Quantize the rows of act(gate) * up, where act is GELU or the identity."""
    if _supports_rounding(gate) and up.dtype == gate.dtype:
        return _by_kernel(gate, up_MN=up.flatten(0, -2), gelu=gelu)
    return reference.round_rows(reference.gated(gate, up, gelu=gelu))


def _supports_rounding(x: Tensor) -> bool:
    """Whether the kernel supports the rows of `x`: on GPUs with FP8, and in the interpreter."""
    on_device = not x.is_cuda or runs_float8(x.device)
    return x.shape[-1] <= MAX_ROW and kernels_support(x) and on_device


def _by_kernel(x: Tensor, **others: Any) -> RoundedRows:
    from hyenakernels.float8 import kernel

    with torch.cuda.device_of(x):
        values_PN, scale_P1 = kernel.round_rows(x.flatten(0, -2), **others)
    return RoundedRows(values_PN, scale_P1, x.shape[:-1], x.dtype)


def rows_product(rows: RoundedRows, weight: Float8Weight, bias_O: Tensor | None = None) -> Tensor:
    """Multiply quantized rows by a weight in e4m3; see `float8.reference.rows_product`.

    Uses the fast accumulation of the tensor cores, as `scaled_product` does: promoting partial sums
    to fp32 takes longer, and the error is far below the rounding of the operands to 4 bits.
    """
    if not _use_scaled_mm(rows, weight):
        return reference.rows_product(rows, weight, bias_O)
    y_PO: Tensor = F.scaled_mm(
        rows.values_PN,
        weight.values_OI.T,
        rows.scale_P1,
        ScalingType.RowWise,
        weight.scale_O1.T,
        ScalingType.RowWise,
        bias=bias_O,
        output_dtype=rows.dtype,
        use_fast_accum=True,
    )
    return rows.unpadded(y_PO)


def _use_scaled_mm(rows: RoundedRows, weight: Float8Weight) -> bool:
    """Whether FP8 tensor cores compute this: with a scale per row, only with bf16 results."""
    values_PN = rows.values_PN
    return (
        values_PN.is_cuda
        and values_PN.numel() > 0
        and rows.dtype == torch.bfloat16
        and runs_float8(values_PN.device)
        and weight.values_OI.dtype == E4M3
        and not any(size % MULTIPLE for size in weight.shape)
    )


@cache
def runs_float8(device: torch.device) -> bool:
    """Whether the tensor cores of `device` multiply FP8: NVIDIA GPUs from Ada and Hopper on."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 9)


def quantize_weight(weight_OI: Tensor, factor: float, device: torch.device) -> Tensor:
    """Quantize a weight to e4m3(W * factor) on `device`, as `scaled_product` takes it.

    The values are stored in e4m3 if the device multiplies e4m3, else in the narrowest dtype that it
    multiplies: bf16 on a GPU, fp32 elsewhere. Both represent every number of e4m3.
    """
    values_OI = reference.to_float8_saturated(weight_OI.to(device), factor, E4M3)
    if runs_float8(device):
        return values_OI
    return values_OI.to(torch.bfloat16 if device.type == "cuda" else torch.float32)


def scaled_product(
    x_MI: Tensor, weight_OI: Tensor, x_factor: float, weight_factor: float
) -> Tensor:
    """Multiply by the result of `quantize_weight`; see `float8.reference.scaled_product`.

    Uses the fast accumulation of the tensor cores, without promotion to fp32: the published 20B and
    40B models were trained with that of Hopper, and need it.
    """
    if x_MI.is_cuda and weight_OI.dtype == E4M3 and runs_float8(x_MI.device):
        factor, scale = (_scalar(value, x_MI) for value in (x_factor, 1 / weight_factor))
        x_PI, _, x_scale = quantize(x_MI, E4M3, factor=factor, rows=True)
        y_PO: Tensor = F.scaled_mm(
            x_PI,
            weight_OI.T,
            x_scale,
            ScalingType.TensorWise,
            scale,
            ScalingType.TensorWise,
            output_dtype=x_MI.dtype,
            use_fast_accum=True,
        )
        return y_PO[: len(x_MI)]
    if x_MI.is_cuda and weight_OI.dtype == torch.bfloat16:
        values_MI = reference.to_float8_saturated(x_MI, x_factor, E4M3).bfloat16()
        sums_MO = torch.mm(values_MI, weight_OI.T, out_dtype=torch.float32)
        return (sums_MO / (x_factor * weight_factor)).to(x_MI.dtype)
    return reference.scaled_product(x_MI, weight_OI, x_factor, weight_factor)


def _scalar(value: float, like: Tensor) -> Tensor:
    return torch.full((), value, dtype=torch.float32, device=like.device)
