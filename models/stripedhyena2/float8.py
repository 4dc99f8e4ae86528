"""Projections and MLPs in FP8 while training, on GPUs that multiply it (Hopper and newer).

Every product takes its operands in FP8 with one scale each, from the largest magnitude of the
moment: inputs and weights as e4m3, gradients as e5m2. Sums and results keep the wider dtype, and
so do the weights themselves. Source: Micikevicius et al., FP8 Formats for Deep Learning,
arXiv:2209.05433.

M rows (tokens), I input channels, O output channels.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stripedhyena2.model import StripedHyena2

FORWARD, BACKWARD = torch.float8_e4m3fn, torch.float8_e5m2
MULTIPLE = 16  # the tensor cores take sizes in steps of it


class Float8Linear(nn.Linear):
    """A linear layer whose three products (output and both gradients) run in FP8."""

    def forward(self, x: Tensor) -> Tensor:
        """Compute x W^T + b, in the dtype of autocast if it is on, else in that of `x`."""
        kind = x.device.type
        if torch.is_autocast_enabled(kind):
            x = x.to(torch.get_autocast_dtype(kind))
        with torch.autocast(kind, enabled=False):
            product: Tensor = _Product.apply(x.flatten(0, -2), self.weight)  # type: ignore[no-untyped-call]
            y = product.view(*x.shape[:-1], self.out_features)
            bias: Tensor | None = self.bias
            return y if bias is None else y + bias.to(y.dtype)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_MI: Tensor, weight_OI: Tensor) -> Tensor:
        ctx.save_for_backward(x_MI, weight_OI)
        return _multiply(x_MI, weight_OI.T, FORWARD, FORWARD, x_MI.dtype)

    @staticmethod
    def backward(ctx: Any, dy_MO: Tensor) -> tuple[Tensor, Tensor]:
        x_MI, weight_OI = ctx.saved_tensors
        dx_MI = _multiply(dy_MO, weight_OI, BACKWARD, FORWARD, x_MI.dtype)
        dweight_OI = _multiply(dy_MO.T, x_MI, BACKWARD, FORWARD, x_MI.dtype)
        return dx_MI, dweight_OI.to(weight_OI.dtype)


def _multiply(
    a: Tensor, b: Tensor, a_dtype: torch.dtype, b_dtype: torch.dtype, out_dtype: torch.dtype
) -> Tensor:
    """A @ b with both operands in FP8; rows of `a` are padded to what the tensor cores take."""
    a8, a_scale = _quantize(a, a_dtype)
    b8, b_scale = _quantize(b, b_dtype)
    rows, inner = a8.shape
    short, lacking = -rows % MULTIPLE, -inner % MULTIPLE
    if short or lacking:
        a8 = _pad(a8, short, lacking)
    if lacking:
        b8 = _pad(b8, lacking, 0)
    product: Tensor = torch._scaled_mm(  # the first operand by rows, the second by columns
        a8.contiguous(), b8.T.contiguous().T, scale_a=a_scale, scale_b=b_scale, out_dtype=out_dtype
    )
    return product[:rows]


def _pad(x: Tensor, rows: int, columns: int) -> Tensor:
    """Zeros below and to the right; FP8 itself cannot be padded, its bytes can."""
    return F.pad(x.view(torch.uint8), (0, columns, 0, rows)).view(x.dtype)


def _quantize(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Give x / scale in FP8, and the scale; a NaN stays one."""
    largest = torch.finfo(dtype).max
    scale = (x.abs().amax().float() / largest).clamp_min(torch.finfo(torch.float32).tiny)
    return (x.float() / scale).clamp(-largest, largest).to(dtype), scale


def use_float8(model: StripedHyena2) -> None:
    """Let the projections and MLPs of every block compute in FP8; parameters stay as they are.

    Raises:
        ValueError: A width is not a multiple of 16.
    """
    for name, linear in model.blocks.named_modules():
        if type(linear) is not nn.Linear:
            continue
        if linear.in_features % MULTIPLE or linear.out_features % MULTIPLE:
            raise ValueError(
                f"fp8 needs widths in steps of {MULTIPLE}, but blocks.{name} has "
                f"{linear.in_features} and {linear.out_features} channels"
            )
        linear.__class__ = Float8Linear


def runs_float8(device: torch.device) -> bool:
    """Whether the matrix units of `device` multiply FP8."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 9)
