"""Loading a model in FP8: with the scales that it was trained with, or with dynamic ones.

The Hyena input projections of the published models were trained in FP8 with fixed scales, and some
models need them. Any model can compute all projections and MLPs in FP8, with a scale per output
channel of a weight and per token. Weights are quantized once, at loading, and inputs at every
product. The weights cannot be trained, but gradients pass straight through to the inputs.

I input channels, O output channels.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hyenakernels.float8.op import (
    quantize_weight,
    round_gated,
    round_rows,
    runs_float8,
    scaled_product,
)
from hyenakernels.float8.reference import MULTIPLE
from stripedhyena2.errors import InputError
from stripedhyena2.float8.frozen import (
    FrozenLinear,
    RoundedLinear,
    freeze_float8,
    straight_through,
)
from stripedhyena2.model import GatedMLP, StripedHyena2


@dataclass(frozen=True)
class Scales:
    """The factors that multiply the operands of a projection before rounding to e4m3."""

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
        y = straight_through(x.flatten(0, -2), self._product, self.dense)
        return y.view(*x.shape[:-1], -1)

    def _product(self, x_MI: Tensor) -> Tensor:
        return scaled_product(x_MI, self.weight, self.scales.input, self.scales.weight)

    def dense(self, dtype: torch.dtype) -> Tensor:
        """The dequantized weight."""
        return self.weight.to(dtype) / self.scales.weight


def use_scales(model: StripedHyena2, scales: Mapping[str, Scales]) -> None:
    """Replace projections by FP8 ones; the caller loads their weights, from `scaled_weight`.

    Args:
        model: A model on the meta device.
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


class RoundedMLP(GatedMLP):
    """A gated MLP of `RoundedLinear` layers, which quantizes each input once."""

    def _mix(self, x_BLD: Tensor) -> Tensor:
        layers: Any = (self.gate, self.up, self.down)
        # Gradients and adapters need the inputs in their original precision.
        if torch.is_grad_enabled() or any(layer.operand is None for layer in layers):
            return super()._mix(x_BLD)
        rows = round_rows(x_BLD)
        gate_BLM, up_BLM = self.gate(rows), self.up(rows)
        rows = round_gated(gate_BLM, up_BLM, gelu=self.activation is F.gelu)
        y_BLD: Tensor = self.down(rows)
        return y_BLD


def round_products(model: StripedHyena2, names: Iterable[str]) -> list[str]:
    """Switch projections and MLPs to FP8 products, except those that already use FP8.

    Args:
        model: The model; it may be on the meta device, to load quantized weights later.
        names: Names of projections, including the MLPs of all blocks.

    Returns:
        The names of the projections that were switched.
    """
    rounded = freeze_float8(model, names, RoundedLinear)
    for module in model.blocks.modules():
        if type(module) is GatedMLP:
            module.__class__ = RoundedMLP
    return rounded


def require_float8(model: StripedHyena2, names: Iterable[str], device: torch.device) -> None:
    """Refuse FP8 products that a GPU does not support; on a CPU the reference computes any.

    Raises:
        InputError: The GPU has no FP8 products, or a width is not a multiple of 16.
    """
    if device.type != "cuda":
        return
    if not runs_float8(device):
        raise InputError(
            f"fp8: {torch.cuda.get_device_name(device)} does not multiply FP8, which needs compute "
            "capability 8.9 (Ada, Hopper or newer); use bf16"
        )
    for name in names:
        outputs, inputs = model.get_parameter(f"{name}.weight").shape
        if inputs % MULTIPLE or outputs % MULTIPLE:
            raise InputError(
                f"fp8: GPUs multiply widths that are multiples of {MULTIPLE}, but {name} has "
                f"{inputs} and {outputs} channels; use bf16"
            )


PRODUCTS, PROJECTIONS, WEIGHTS = "FP8 products", "FP8 projections", "FP8 weights"


def float8_parts(model: nn.Module) -> str | None:
    """What a model computes in FP8: all products, the projections that were trained so, or nothing.

    Returns:
        `PRODUCTS`, `PROJECTIONS`, `WEIGHTS` if only its weights are in FP8, or None.
    """
    modules = [*model.modules()]
    if any(isinstance(module, RoundedLinear) for module in modules):
        return PRODUCTS
    if any(isinstance(module, ScaledLinear) for module in modules):
        return PROJECTIONS
    return WEIGHTS if any(isinstance(module, FrozenLinear) for module in modules) else None


def scaled_weight(weight_OI: Tensor, scales: Scales, device: torch.device) -> Tensor:
    """The weight of a `ScaledLinear` on `device`.

    It is rounded to bf16 first, as the reference implementation does with the fp32 projections of
    the 20B model; those of the other models are stored in bf16.
    """
    return quantize_weight(weight_OI.to(torch.bfloat16), scales.weight, device)
