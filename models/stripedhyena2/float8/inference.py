"""The Hyena input projections in FP8 with fixed scales, as the published models were trained.

Weights are rounded once, at loading, and inputs at every product. The weights cannot be trained,
but gradients pass through the product to what comes before it, as if nothing were rounded.

I input channels, O output channels.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from hyenakernels.float8.op import quantize_weight, scaled_product
from hyenakernels.float8.reference import MULTIPLE
from stripedhyena2.float8.frozen import straight_through

if TYPE_CHECKING:
    from stripedhyena2.model import StripedHyena2


@dataclass(frozen=True)
class Scales:
    """Factors by which the operands of one projection are multiplied before rounding to e4m3."""

    input: float
    weight: float


class ScaledLinear(nn.Module):
    """x W^T with both operands in e4m3; it cannot be trained.

    Attributes:
        weight: The result of `quantize_weight`, in any dtype that can represent e4m3.
    """

    def __init__(self, weight_OI: Tensor, scales: Scales) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight_OI, requires_grad=False)
        self.scales = scales

    def forward(self, x: Tensor) -> Tensor:
        """Compute (e4m3(x s) . e4m3(W t)^T) / (s t); the result has the dtype of `x`."""
        y = straight_through(x.flatten(0, -2), self._product, self._dense)
        return y.view(*x.shape[:-1], -1)

    def _product(self, x_MI: Tensor) -> Tensor:
        return scaled_product(x_MI, self.weight, self.scales.input, self.scales.weight)

    def _dense(self, dtype: torch.dtype) -> Tensor:
        return self.weight.to(dtype) / self.scales.weight


def use_scales(model: "StripedHyena2", scales: Mapping[str, Scales]) -> None:
    """Replace projections by FP8 ones, whose weights `scaled_weight` makes and the caller loads.

    Args:
        model: On the meta device.
        scales: Scales by the name of the projection's weight.

    Raises:
        ValueError: A width is not a multiple of 16.
    """
    for name, pair in scales.items():
        path = name.removesuffix(".weight")
        linear = model.get_submodule(path)
        assert isinstance(linear, nn.Linear)
        if linear.in_features % MULTIPLE:
            raise ValueError(
                f"FP8 needs widths that are multiples of {MULTIPLE}, but {path} has "
                f"{linear.in_features} channels"
            )
        model.set_submodule(path, ScaledLinear(linear.weight.detach(), pair))


def has_scales(model: nn.Module) -> bool:
    """Whether projections of `model` are computed in FP8 with fixed scales."""
    return any(isinstance(module, ScaledLinear) for module in model.modules())


def scaled_weight(weight_OI: Tensor, scales: Scales, device: torch.device) -> Tensor:
    """The weight of a `ScaledLinear` on `device`.

    It is rounded to bf16 first, as the reference implementation does with the fp32 projections of
    the 20B model; those of the other models are stored in bf16.
    """
    return quantize_weight(weight_OI.to(torch.bfloat16), scales.weight, device)
