"""Projections and MLPs in FP8 while training, on GPUs with FP8 tensor cores (Hopper and newer).

Both operands of every product are rounded to FP8 with one scale per tensor, which maps its largest
magnitude at this step to the largest FP8 number: inputs and weights as e4m3, gradients as e5m2.
Sums, results and the weights themselves keep the wider dtype. Source: Micikevicius et al., FP8
Formats for Deep Learning, arXiv:2209.05433.

M rows (tokens), P the same padded to a multiple of 16, I input channels, O output channels.
"""

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.functional import ScalingType

from hyenakernels.float8.op import quantize
from hyenakernels.float8.reference import MULTIPLE

if TYPE_CHECKING:
    from stripedhyena2.model import StripedHyena2

FORWARD, BACKWARD = torch.float8_e4m3fn, torch.float8_e5m2


class Float8Linear(nn.Linear):
    """A linear layer whose three products (output and both gradients) are computed in FP8."""

    def forward(self, x: Tensor) -> Tensor:
        """Compute x W^T + b; the result has the dtype of autocast if it is on, else that of `x`."""
        kind = x.device.type
        if torch.is_autocast_enabled(kind):
            x = x.to(torch.get_autocast_dtype(kind))
        weight = self.weight.to(x.dtype)
        with torch.autocast(kind, enabled=False):
            product: Tensor = _Product.apply(x.flatten(0, -2), weight)  # type: ignore[no-untyped-call]
            y = product.view(*x.shape[:-1], self.out_features)
            bias: Tensor | None = self.bias
            return y if bias is None else y + bias.to(y.dtype)


class _Product(torch.autograd.Function):
    """x W^T; the operands that the backward pass needs are kept in FP8."""

    @staticmethod
    def forward(ctx: Any, x_MI: Tensor, weight_OI: Tensor) -> Tensor:
        x_PI, x_IP, x_scale = quantize(x_MI, FORWARD, rows=True, columns=ctx.needs_input_grad[1])
        weight_OI, weight_IO, weight_scale = quantize(
            weight_OI, FORWARD, rows=True, columns=ctx.needs_input_grad[0]
        )
        ctx.save_for_backward(x_IP, x_scale, weight_IO, weight_scale)
        y_PO = _multiply(x_PI, weight_OI, x_scale, weight_scale, x_MI.dtype, fast=True)
        return y_PO[: len(x_MI)]

    @staticmethod
    def backward(ctx: Any, dy_MO: Tensor) -> tuple[Tensor, Tensor]:
        x_IP, x_scale, weight_IO, weight_scale = ctx.saved_tensors
        dtype = dy_MO.dtype
        dy_PO, dy_OP, dy_scale = quantize(dy_MO, BACKWARD, rows=True, columns=True)
        dx_PI = _multiply(dy_PO, weight_IO, dy_scale, weight_scale, dtype)
        dweight_OI = _multiply(dy_OP, x_IP, dy_scale, x_scale, dtype)
        return dx_PI[: len(dy_MO)], dweight_OI


def _multiply(
    a: Tensor,
    b: Tensor,
    a_scale: Tensor,
    b_scale: Tensor,
    dtype: torch.dtype,
    *,
    fast: bool = False,
) -> Tensor:
    """A @ b^T; `fast` keeps sums in the tensor cores, else they go to fp32 every few products."""
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


def use_float8(model: "StripedHyena2") -> None:
    """Compute the projections and MLPs of every block in FP8; the parameters do not change.

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
