"""Frozen projections with weights in FP8, one byte each.

`FrozenLinear` quantizes the weight alone, beside which adapters train. `RoundedLinear` quantizes
its inputs too, for inference: tensor cores multiply FP8 twice as fast, and decoding takes as long
as reading the weights. Both pass gradients straight through the rounding to their inputs; the
backward pass dequantizes the weight again instead of saving a copy.

I input channels, O output channels.
"""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hyenakernels.float8.op import round_rows, rows_product
from hyenakernels.float8.reference import Float8Weight, RoundedRows

if TYPE_CHECKING:
    from stripedhyena2.model import StripedHyena2

Forward = Callable[[Tensor], Tensor]
Dense = Callable[[torch.dtype], Tensor]


class FrozenLinear(nn.Module):
    """x W^T + b with W quantized to e4m3, multiplied in the dtype of the activations.

    Attributes:
        weight: Quantized weight [O, I].
        scale_O1: A scale per output channel: W = weight * scale.
        bias: The bias of the layer that it replaces; may be None.
    """

    scale_O1: Tensor

    def __init__(self, weight: Float8Weight, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.values_OI, requires_grad=False)
        self.bias: nn.Parameter | None
        self.register_parameter("bias", bias)
        self.register_buffer("scale_O1", weight.scale_O1)

    @property
    def rounded(self) -> Float8Weight:
        """The quantized weight, as the kernels take it."""
        return Float8Weight(self.weight.detach(), self.scale_O1)

    def dense(self, dtype: torch.dtype) -> Tensor:
        """The dequantized weight."""
        return self.rounded.dense(dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Compute x W^T + b; the result has the dtype of autocast if it is on, else that of `x`."""
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        y = straight_through(x, self._product, self.dense)
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def _product(self, x: Tensor) -> Tensor:
        return F.linear(x, self.dense(x.dtype))


class RoundedLinear(FrozenLinear):
    """x W^T + b with both operands quantized to e4m3, x with a scale per token."""

    @property
    def operand(self) -> Float8Weight | None:
        """The weight, if the layer is a plain product; None if it has an adapter."""
        return None if any(self.children()) else self.rounded

    def forward(self, x: Tensor | RoundedRows) -> Tensor:
        """Compute `hyenakernels.float8.reference.rows_product`, in the dtype of `x`.

        There is no gradient for rows that are quantized already.
        """
        if isinstance(x, RoundedRows):
            return rows_product(x, self.rounded, self.bias)
        return straight_through(x, self._product, self.dense)

    def _product(self, x: Tensor) -> Tensor:
        return rows_product(round_rows(x), self.rounded, self.bias)


def straight_through(x: Tensor, forward: Forward, dense: Dense) -> Tensor:
    """`forward(x)`, a product with a frozen weight, with a straight-through gradient.

    Args:
        x: The input.
        forward: The product.
        dense: Returns the weight [O, I] in a dtype; the gradient of x is that of x W^T.
    """
    y: Tensor = _StraightThrough.apply(x, forward, dense)  # type: ignore[no-untyped-call]
    return y


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, product: Forward, dense: Dense) -> Tensor:
        ctx.dense = dense
        return product(x)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None]:
        return dy @ ctx.dense(dy.dtype), None, None


def freeze_float8(
    model: "StripedHyena2", names: Iterable[str], kind: type[FrozenLinear] = FrozenLinear
) -> list[str]:
    """Quantize the weights of projections to FP8, except those that already are.

    Returns:
        The names of the projections that it has quantized.
    """
    wide = [name for name in names if isinstance(model.get_submodule(name), nn.Linear)]
    for name in wide:
        linear = model.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        weight = Float8Weight.rounded(linear.weight.detach())
        model.set_submodule(name, kind(weight, linear.bias))
    return wide
