"""The Hyena input projections in FP8 by fixed scales, as the published models were trained.

It wraps a model from outside, for inference: weights are rounded once, inputs at every product.
I input channels, O output channels.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hyenakernels.float8.op import quantize_weight, scaled_product
from hyenakernels.float8.reference import MULTIPLE
from stripedhyena2.model import StripedHyena2


@dataclass(frozen=True)
class Scales:
    """What the numbers of one projection are multiplied by before they are rounded to e4m3."""

    input: float
    weight: float


class ScaledLinear(nn.Module):
    """x W^T with both operands in e4m3; nothing in it trains.

    Attributes:
        weight: The result of `quantize_weight`; its values in any dtype that holds those of e4m3.
        scales: Plain numbers, so that no change of the model's dtype rounds them.
    """

    def __init__(self, weight_OI: Tensor, scales: Scales) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight_OI, requires_grad=False)
        self.scales = scales

    def forward(self, x: Tensor) -> Tensor:
        """Compute (e4m3(x s) . e4m3(W t)^T) / (s t), in the dtype of `x`."""
        y = scaled_product(x.flatten(0, -2), self.weight, self.scales.input, self.scales.weight)
        return y.view(*x.shape[:-1], -1)


def use_scales(model: StripedHyena2, scales: Mapping[str, Scales]) -> None:
    """Let projections compute in FP8; their weights are left to be loaded, as `scaled_weight`s.

    Args:
        model: On the meta device.
        scales: By the names of the projections' weights.

    Raises:
        ValueError: A width is not a multiple of 16.
    """
    for name, pair in scales.items():
        path = name.removesuffix(".weight")
        linear = model.get_submodule(path)
        assert isinstance(linear, nn.Linear)
        if linear.in_features % MULTIPLE:
            raise ValueError(
                f"fp8 needs widths in steps of {MULTIPLE}, but {path} has {linear.in_features} "
                "channels"
            )
        model.set_submodule(path, ScaledLinear(linear.weight.detach(), pair))


def has_scales(model: nn.Module) -> bool:
    """Whether projections of `model` compute in FP8 by fixed scales."""
    return any(isinstance(module, ScaledLinear) for module in model.modules())


def scaled_weight(weight_OI: Tensor, scales: Scales, device: torch.device) -> Tensor:
    """A weight as `ScaledLinear` keeps it on `device`.

    It is rounded to bf16 first, as the reference implementation does with the fp32 projections of
    the 20B model; the others are stored in bf16.
    """
    return quantize_weight(weight_OI.to(torch.bfloat16), scales.weight, device)
