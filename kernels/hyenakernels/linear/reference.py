"""The definitions of a decoding step's linear layers in plain PyTorch: any dtype, differentiable.

They also compute the layers for more than one row.

B batch, L rows of a sequence, I input channels, O output channels.
"""

import torch.nn.functional as F
from torch import Tensor

from hyenakernels.norm.op import rms_norm


def normed_linear(x_BLI: Tensor, scale_I: Tensor, eps: float, weight_OI: Tensor) -> Tensor:
    """Compute norm(x) W^T."""
    return F.linear(rms_norm(x_BLI, scale_I, eps), weight_OI)


def gated_linear(
    x_BLI: Tensor, scale_I: Tensor, eps: float, gate_OI: Tensor, up_OI: Tensor, *, gelu: bool
) -> Tensor:
    """Compute act(norm(x) G^T) * (norm(x) U^T)."""
    normed_BLI = rms_norm(x_BLI, scale_I, eps)
    gate_BLO = F.linear(normed_BLI, gate_OI)
    return (F.gelu(gate_BLO) if gelu else gate_BLO) * F.linear(normed_BLI, up_OI)


def added_linear(
    x_BLI: Tensor, weight_OI: Tensor, bias_O: Tensor | None, added_BLO: Tensor
) -> Tensor:
    """Compute added + (x W^T + bias)."""
    return added_BLO + F.linear(x_BLI, weight_OI, bias_O)
