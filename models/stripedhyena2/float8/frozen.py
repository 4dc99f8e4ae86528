"""Frozen projections with their weights in FP8, a byte each, beside which adapters train.

Only the weight is rounded, with one factor for each output channel; products are those of the
activations' dtype. The backward pass differentiates with respect to the input alone, and reads the
rounded weight again instead of keeping a wide copy.

I input channels, O output channels.
"""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from stripedhyena2.model import StripedHyena2

E4M3 = torch.float8_e4m3fn
_LARGEST = torch.finfo(E4M3).max

Forward = Callable[[Tensor], Tensor]
Dense = Callable[[torch.dtype], Tensor]


class FrozenLinear(nn.Module):
    """x W^T + b with W rounded to e4m3; it cannot be trained.

    Attributes:
        weight: Rounded weights [O, I].
        factor_O1: What they are multiplied by.
        bias: The bias of the layer that it replaces; may be None.
    """

    factor_O1: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight_OI = linear.weight.detach().float()
        largest_O1 = weight_OI.abs().amax(dim=1, keepdim=True).clamp_min(1e-12)
        # Powers of two change no digit of a weight in any dtype.
        factor_O1 = torch.exp2(torch.ceil(torch.log2(largest_O1 / _LARGEST)))
        self.weight = nn.Parameter((weight_OI / factor_O1).to(E4M3), requires_grad=False)
        self.bias: nn.Parameter | None
        self.register_parameter("bias", linear.bias)
        self.register_buffer("factor_O1", factor_O1)

    def dense(self, dtype: torch.dtype) -> Tensor:
        """The weight that it multiplies by."""
        return self.weight.to(dtype).mul_(self.factor_O1.to(dtype))

    def forward(self, x: Tensor) -> Tensor:
        """Compute x W^T + b; the result has the dtype of autocast if it is on, else that of `x`."""
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        y = straight_through(x, lambda x: F.linear(x, self.dense(x.dtype)), self.dense)
        return y if self.bias is None else y + self.bias.to(y.dtype)


def straight_through(x: Tensor, forward: Forward, dense: Dense) -> Tensor:
    """`forward(x)`, a product with a frozen weight whose rounding has no derivative.

    Args:
        x: The input.
        forward: The product.
        dense: The weight [O, I] in a dtype: the gradient of x is that of x W^T.
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


def freeze_float8(model: "StripedHyena2", names: Iterable[str]) -> None:
    """Round the weights of projections to FP8, those that are not rounded already."""
    for name in names:
        linear = model.get_submodule(name)
        if isinstance(linear, nn.Linear):
            model.set_submodule(name, FrozenLinear(linear))
