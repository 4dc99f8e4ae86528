"""The public functions of a decoding step's linear layers, with norm, gate and residual fused.

For a single row each is one launch, which takes as long as reading its weights; without gradients.
For more rows `linear.reference`, which defines them, runs: PyTorch's matrix products are as fast.
With a weight in FP8, rows are rounded to e4m3 too, even a single one: a sequence has the same
numbers alone and in a batch, up to the order of summation.

B batch, L rows of a sequence, I input channels, O output channels.
"""

from typing import Any

import torch
from torch import Tensor

from hyenakernels.dispatch import all_contiguous, kernels_support
from hyenakernels.float8.op import MAX_ROW, runs_float8
from hyenakernels.float8.reference import E4M3, Float8Weight
from hyenakernels.linear import reference
from hyenakernels.linear.reference import Weight


def normed_linear(x_BLI: Tensor, scale_I: Tensor, eps: float, weight: Weight) -> Tensor:
    """Compute norm(x) W^T.

    Args:
        x_BLI: The rows.
        scale_I: The scale of the RMS norm.
        eps: Added to the RMS, outside the square root.
        weight: W [O, I], in the dtype of `x` or in FP8.

    Returns:
        [B, L, O], in the dtype of `x`.

    Raises:
        ValueError: The shapes do not match.
    """
    _check("normed_linear", x_BLI, weight, scale_I)
    if _is_one_row(x_BLI, scale_I, weight):
        return _by_kernel(x_BLI, weight, scale_I=scale_I, eps=eps)
    return reference.normed_linear(x_BLI, scale_I, eps, weight)


def gated_linear(
    x_BLI: Tensor, scale_I: Tensor, eps: float, gate: Weight, up: Weight, *, gelu: bool
) -> Tensor:
    """Compute act(norm(x) G^T) * (norm(x) U^T).

    Args:
        x_BLI: The rows.
        scale_I: The scale of the RMS norm.
        eps: Added to the RMS, outside the square root.
        gate: G [O, I], in the dtype of `x` or in FP8.
        up: U, likewise.
        gelu: Whether act is GELU; else it is the identity.

    Returns:
        [B, L, O], in the dtype of `x`.

    Raises:
        ValueError: The shapes do not match.
    """
    _check("gated_linear", x_BLI, gate, scale_I)
    _check("gated_linear", x_BLI, up, scale_I)
    if _is_one_row(x_BLI, scale_I, gate, up):
        return _by_kernel(x_BLI, gate, up=up, gelu=gelu, scale_I=scale_I, eps=eps)
    return reference.gated_linear(x_BLI, scale_I, eps, gate, up, gelu=gelu)


def added_linear(x_BLI: Tensor, weight: Weight, bias_O: Tensor | None, added_BLO: Tensor) -> Tensor:
    """Compute added + (x W^T + bias).

    Args:
        x_BLI: The rows.
        weight: W [O, I], in the dtype of `x` or in FP8.
        bias_O: One number per output channel; None for no bias.
        added_BLO: What the product is added to, e.g. the residual stream.

    Returns:
        [B, L, O], in the dtype of `x`.

    Raises:
        ValueError: The shapes do not match.
    """
    _check("added_linear", x_BLI, weight)
    if added_BLO.shape != (*x_BLI.shape[:2], weight.shape[0]):
        raise ValueError(
            f"added_linear: the product is {(*x_BLI.shape[:2], weight.shape[0])}, but added is "
            f"{tuple(added_BLO.shape)}"
        )
    if _is_one_row(x_BLI, None, weight, bias_O, added_BLO):
        return _by_kernel(x_BLI, weight, bias_O=bias_O, added_1O=added_BLO[0])
    return reference.added_linear(x_BLI, weight, bias_O, added_BLO)


def _check(op: str, x_BLI: Tensor, weight: Weight, scale_I: Tensor | None = None) -> None:
    if weight.shape[1:] != x_BLI.shape[2:]:
        raise ValueError(
            f"{op}: x is {tuple(x_BLI.shape)}, but the weight is {tuple(weight.shape)}"
        )
    if scale_I is not None and scale_I.shape != x_BLI.shape[2:]:
        raise ValueError(
            f"{op}: x is {tuple(x_BLI.shape)}, but the scale is {tuple(scale_I.shape)}"
        )


def _is_one_row(x_BLI: Tensor, scale_I: Tensor | None, *others: Weight | None) -> bool:
    """Whether the kernels support this: one row, all contiguous, all but scales in one dtype."""
    float8 = [x for x in others if isinstance(x, Float8Weight)]
    tensors = [x for x in others if isinstance(x, Tensor)]
    return (
        x_BLI.shape[:2] == (1, 1)
        and all(x.dtype == x_BLI.dtype for x in tensors)
        and all_contiguous(scale_I, *tensors, *(x.values_OI for x in float8))
        and not torch.is_grad_enabled()
        and kernels_support(x_BLI)
        and (not float8 or _supports_float8(x_BLI, float8))
    )


def _supports_float8(x_BLI: Tensor, weights: list[Float8Weight]) -> bool:
    """Whether the kernel supports these FP8 weights: on GPUs with FP8, and in the interpreter."""
    return (
        x_BLI.shape[2] <= MAX_ROW
        and x_BLI.shape[2] % 4 == 0  # a word holds four weights
        and all(weight.values_OI.dtype == E4M3 for weight in weights)
        and (not x_BLI.is_cuda or runs_float8(x_BLI.device))
    )


def _by_kernel(x_BLI: Tensor, weight: Weight, **others: Any) -> Tensor:
    from hyenakernels.linear import float8, kernel

    kernels: Any = float8 if isinstance(weight, Float8Weight) else kernel
    with torch.cuda.device_of(x_BLI):
        y_1O: Tensor = kernels.linear(x_BLI[0].contiguous(), weight, **others)
    return y_1O[None]
