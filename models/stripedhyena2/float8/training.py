"""FP8 training of projections and MLPs, on GPUs with FP8 tensor cores (Hopper and newer).

Both operands of every product are quantized with one scale per tensor, which maps the amax of the
current step to the largest FP8 number (current scaling): inputs and weights to e4m3, gradients to
e5m2. Sums, outputs and the parameters themselves keep the wider dtype. Source: Micikevicius et al.,
FP8 Formats for Deep Learning, arXiv:2209.05433.

M rows (tokens), P the same padded to a multiple of 16, I input channels, O output channels.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.functional import ScalingType

from hyenakernels.float8.op import quantize
from hyenakernels.float8.reference import MULTIPLE
from stripedhyena2.model import GatedMLP, StripedHyena2

FORWARD, BACKWARD = torch.float8_e4m3fn, torch.float8_e5m2


class Float8Linear(nn.Linear):
    """A linear layer whose three products (output and both gradients) are computed in FP8."""

    def forward(self, x: Tensor) -> Tensor:
        """Compute x W^T + b; the result has the dtype of autocast if it is on, else that of `x`."""
        (y,) = _products(x, self)
        return y


class Float8GatedMLP(GatedMLP):
    """A gated MLP of `Float8Linear` layers; its input is quantized once for gate and up."""

    def _mix(self, x_BLD: Tensor) -> Tensor:
        gate: Any = self.gate
        up: Any = self.up
        gate_BLM, up_BLM = _products(x_BLD, gate, up)
        y_BLD: Tensor = self.down(self.activation(gate_BLM) * up_BLM)
        return y_BLD


def _products(x: Tensor, *layers: Float8Linear) -> list[Tensor]:
    """The outputs of layers that share an input."""
    kind = x.device.type
    if torch.is_autocast_enabled(kind):
        x = x.to(torch.get_autocast_dtype(kind))
    weights = [layer.weight.to(x.dtype) for layer in layers]
    with torch.autocast(kind, enabled=False):
        apply: Any = _Products.apply
        products: tuple[Tensor, ...] = apply(x.flatten(0, -2), *weights)
        outputs = []
        for layer, product_MO in zip(layers, products, strict=True):
            y = product_MO.view(*x.shape[:-1], -1)
            bias: Tensor | None = layer.bias
            outputs.append(y if bias is None else y + bias.to(y.dtype))
    return outputs


class _Products(torch.autograd.Function):
    """x W^T for each weight; the operands are saved for the backward pass in FP8."""

    @staticmethod
    def forward(ctx: Any, x_MI: Tensor, *weights_OI: Tensor) -> tuple[Tensor, ...]:
        needs_x, *need_weights = ctx.needs_input_grad
        x_PI, x_IP, x_scale = quantize(x_MI, FORWARD, rows=True, columns=any(need_weights))
        kept, products = [x_IP, x_scale], []
        for weight_OI in weights_OI:
            values_OI, values_IO, scale = quantize(weight_OI, FORWARD, rows=True, columns=needs_x)
            kept += [values_IO, scale]
            y_PO = _multiply(x_PI, values_OI, x_scale, scale, x_MI.dtype, fast=True)
            products.append(y_PO[: len(x_MI)])
        ctx.save_for_backward(*kept)
        return tuple(products)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients_MO: Tensor) -> tuple[Tensor | None, ...]:
        x_IP, x_scale, *weights = ctx.saved_tensors
        needs_x, *need_weights = ctx.needs_input_grad
        dx_MI: Tensor | None = None
        dweights: list[Tensor | None] = []
        for index, dy_MO in enumerate(gradients_MO):
            weight_IO, scale = weights[2 * index : 2 * index + 2]
            needs_weight = need_weights[index]
            dy_PO, dy_OP, dy_scale = quantize(dy_MO, BACKWARD, rows=needs_x, columns=needs_weight)
            if needs_x:
                term_MI = _multiply(dy_PO, weight_IO, dy_scale, scale, dy_MO.dtype)[: len(dy_MO)]
                dx_MI = term_MI if dx_MI is None else dx_MI + term_MI
            dweights.append(
                _multiply(dy_OP, x_IP, dy_scale, x_scale, dy_MO.dtype) if needs_weight else None
            )
        return dx_MI, *dweights


def _multiply(
    a: Tensor,
    b: Tensor,
    a_scale: Tensor,
    b_scale: Tensor,
    dtype: torch.dtype,
    *,
    fast: bool = False,
) -> Tensor:
    """A @ b^T; `fast` accumulation does not promote partial sums to fp32 every few products."""
    product: Tensor = F.scaled_mm(
        a,
        b.T,
        a_scale,
        ScalingType.TensorWise,
        b_scale,
        ScalingType.TensorWise,
        output_dtype=dtype,
        use_fast_accum=fast,
    )
    return product


def use_float8(model: StripedHyena2) -> None:
    """Switch the projections and MLPs of every block to FP8 products; parameters do not change.

    Raises:
        ValueError: A width is not a multiple of 16.
    """
    for name, linear in model.blocks.named_modules():
        if type(linear) is not nn.Linear:
            continue
        if linear.in_features % MULTIPLE or linear.out_features % MULTIPLE:
            raise ValueError(
                f"FP8 needs widths that are multiples of {MULTIPLE}, but blocks.{name} has "
                f"{linear.in_features} and {linear.out_features} channels"
            )
        linear.__class__ = Float8Linear
    for module in model.blocks.modules():
        if type(module) is GatedMLP and all(_is_bare(x) for x in (module.gate, module.up)):
            module.__class__ = Float8GatedMLP


def _is_bare(linear: nn.Module) -> bool:
    """Whether a layer is in FP8 and has no adapter, which would need its unquantized input."""
    return type(linear) is Float8Linear and not any(linear.children())
