"""The public face of quantizing to FP8, and of products with a weight kept in it."""

from functools import cache

import torch
from torch import Tensor

from hyenakernels.dispatch import kernels_take
from hyenakernels.float8 import reference
from hyenakernels.float8.reference import E4M3


def quantize(
    x_MN: Tensor,
    dtype: torch.dtype,
    *,
    factor: Tensor | None = None,
    rows: bool = False,
    columns: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Give x * factor in FP8, one factor a tensor; `float8.reference.quantize` holds the contract.

    Args:
        x_MN: A matrix; the kernel takes bf16 only.
        dtype: torch.float8_e4m3fn or torch.float8_e5m2.
        factor: In fp32, []; by default it puts the largest magnitude at the end of the range.
        rows: Whether to return it by rows, [P, N].
        columns: Whether to return it by columns, [N, P].

    Returns:
        By rows, by columns, and 1 / factor in fp32; a layout not asked for has no meaning.
    """
    if x_MN.dtype != torch.bfloat16 or not kernels_take(x_MN):
        return reference.quantize(x_MN, dtype, factor)
    found: tuple[Tensor, Tensor, Tensor] = fused(x_MN, dtype, rows, columns, factor)
    return found


@torch.library.custom_op("hyenakernels::quantize", mutates_args=())
def fused(
    x_MN: Tensor, dtype: torch.dtype, rows: bool, columns: bool, factor: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """By the kernel: both layouts (empty where not asked for), and the scale."""
    from hyenakernels.float8 import kernel

    with torch.cuda.device_of(x_MN):
        found: tuple[Tensor, Tensor, Tensor] = kernel.quantize(
            x_MN, factor, dtype, rows=rows, columns=columns
        )
    return found


@fused.register_fake
def _(
    x_MN: Tensor,
    dtype: torch.dtype,
    rows: bool,
    columns: bool,
    factor: Tensor | None = None,  # noqa: ARG001 # no shape depends on it
) -> tuple[Tensor, Tensor, Tensor]:
    height, width = x_MN.shape
    padded = -(-height // reference.MULTIPLE) * reference.MULTIPLE
    return (
        x_MN.new_empty((padded, width) if rows else (0, 0), dtype=dtype),
        x_MN.new_empty((width, padded) if columns else (0, 0), dtype=dtype),
        x_MN.new_empty((), dtype=torch.float32),
    )


@cache
def runs_float8(device: torch.device) -> bool:
    """Whether the matrix units of `device` multiply FP8: NVIDIA GPUs from Ada and Hopper on."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 9)


def held(weight_OI: Tensor, factor: float, device: torch.device) -> Tensor:
    """What `device` keeps of a weight for `scaled_product`: the values e4m3(W * factor).

    They are in e4m3 where that is multiplied, else in the narrowest dtype that is: bf16 on a GPU,
    fp32 elsewhere. Both hold every number of e4m3.
    """
    values_OI = reference.narrow(weight_OI.to(device), factor, E4M3)
    if runs_float8(device):
        return values_OI
    return values_OI.to(torch.bfloat16 if device.type == "cuda" else torch.float32)


def scaled_product(
    x_MI: Tensor, weight_OI: Tensor, x_factor: float, weight_factor: float
) -> Tensor:
    """Multiply by what `held` keeps; `float8.reference.scaled_product` holds the contract.

    Where FP8 is multiplied, sums are those of the tensor cores without correction: the published
    models of 20B and 40B were trained with Hopper's, and need them.
    """
    if x_MI.is_cuda and weight_OI.dtype == E4M3 and runs_float8(x_MI.device):
        factor, scale = (_number(value, x_MI) for value in (x_factor, 1 / weight_factor))
        x_PI, _, x_scale = quantize(x_MI, E4M3, factor=factor, rows=True)
        y_PO = torch._scaled_mm(
            x_PI,
            weight_OI.T,
            scale_a=x_scale,
            scale_b=scale,
            out_dtype=x_MI.dtype,
            use_fast_accum=True,
        )
        return y_PO[: len(x_MI)]
    if x_MI.is_cuda and weight_OI.dtype == torch.bfloat16:
        values_MI = reference.narrow(x_MI, x_factor, E4M3).bfloat16()
        sums_MO = torch.mm(values_MI, weight_OI.T, out_dtype=torch.float32)
        return (sums_MO / (x_factor * weight_factor)).to(x_MI.dtype)
    return reference.scaled_product(x_MI, weight_OI, x_factor, weight_factor)


def _number(value: float, like: Tensor) -> Tensor:
    return torch.full((), value, dtype=torch.float32, device=like.device)
