"""The public functions of a decoding step's linear layers, with the norm, gate and sum around them.

For a single row each is one launch, which takes as long as reading its weights; without gradients.
For more rows `linear.reference`, which defines them, computes them: PyTorch's products are as fast.

B batch, L rows of a sequence, I input channels, O output channels.
"""

from typing import Any

import torch
from torch import Tensor

from hyenakernels.dispatch import all_contiguous, kernels_take
from hyenakernels.linear import reference


def normed_linear(x_BLI: Tensor, scale_I: Tensor, eps: float, weight_OI: Tensor) -> Tensor:
    """Compute norm(x) W^T.

    Args:
        x_BLI: The rows.
        scale_I: The scale of the RMS norm.
        eps: Added to the root, not inside it.
        weight_OI: W.

    Returns:
        [B, L, O], in the dtype of `x`.

    Raises:
        ValueError: The shapes do not fit each other.
    """
    _check("normed_linear", x_BLI, weight_OI, scale_I)
    if _is_one_row(x_BLI, scale_I, weight_OI):
        return _by_kernel(x_BLI, weight_OI, scale_I=scale_I, eps=eps)
    return reference.normed_linear(x_BLI, scale_I, eps, weight_OI)


def gated_linear(
    x_BLI: Tensor, scale_I: Tensor, eps: float, gate_OI: Tensor, up_OI: Tensor, *, gelu: bool
) -> Tensor:
    """Compute act(norm(x) G^T) * (norm(x) U^T).

    Args:
        x_BLI: The rows.
        scale_I: The scale of the RMS norm.
        eps: Added to the root, not inside it.
        gate_OI: G.
        up_OI: U.
        gelu: Whether act is GELU; else it is the identity.

    Returns:
        [B, L, O], in the dtype of `x`.

    Raises:
        ValueError: The shapes do not fit each other.
    """
    _check("gated_linear", x_BLI, gate_OI, scale_I)
    _check("gated_linear", x_BLI, up_OI, scale_I)
    if _is_one_row(x_BLI, scale_I, gate_OI, up_OI):
        return _by_kernel(x_BLI, gate_OI, up_OI=up_OI, gelu=gelu, scale_I=scale_I, eps=eps)
    return reference.gated_linear(x_BLI, scale_I, eps, gate_OI, up_OI, gelu=gelu)


def added_linear(
    x_BLI: Tensor, weight_OI: Tensor, bias_O: Tensor | None, added_BLO: Tensor
) -> Tensor:
    """Compute added + (x W^T + bias).

    Args:
        x_BLI: The rows.
        weight_OI: W.
        bias_O: For each output channel; None for no bias.
        added_BLO: The product is added to it.

    Returns:
        [B, L, O], in the dtype of `x`.

    Raises:
        ValueError: The shapes do not fit each other.
    """
    _check("added_linear", x_BLI, weight_OI)
    if added_BLO.shape != (*x_BLI.shape[:2], len(weight_OI)):
        raise ValueError(
            f"added_linear: the product is {(*x_BLI.shape[:2], len(weight_OI))}, but added is "
            f"{tuple(added_BLO.shape)}"
        )
    if _is_one_row(x_BLI, None, weight_OI, bias_O, added_BLO):
        return _by_kernel(x_BLI, weight_OI, bias_O=bias_O, added_1O=added_BLO[0])
    return reference.added_linear(x_BLI, weight_OI, bias_O, added_BLO)


def _check(op: str, x_BLI: Tensor, weight_OI: Tensor, scale_I: Tensor | None = None) -> None:
    if weight_OI.shape[1:] != x_BLI.shape[2:]:
        raise ValueError(
            f"{op}: x is {tuple(x_BLI.shape)}, but the weight is {tuple(weight_OI.shape)}"
        )
    if scale_I is not None and scale_I.shape != x_BLI.shape[2:]:
        raise ValueError(
            f"{op}: x is {tuple(x_BLI.shape)}, but the scale is {tuple(scale_I.shape)}"
        )


def _is_one_row(x_BLI: Tensor, scale_I: Tensor | None, *others: Tensor | None) -> bool:
    """Whether the kernel supports this: one row, all contiguous, all but scales in one dtype."""
    return (
        x_BLI.shape[:2] == (1, 1)
        and all(x is None or x.dtype == x_BLI.dtype for x in others)
        and all_contiguous(scale_I, *others)
        and not torch.is_grad_enabled()
        and kernels_take(x_BLI)
    )


def _by_kernel(x_BLI: Tensor, weight_OI: Tensor, **others: Any) -> Tensor:
    from hyenakernels.linear import kernel

    with torch.cuda.device_of(x_BLI):
        y_1O: Tensor = kernel.linear(x_BLI[0].contiguous(), weight_OI, **others)
    return y_1O[None]
