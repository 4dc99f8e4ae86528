"""References of a decoding step's linear layers in plain PyTorch: any dtype, differentiable.

They also run for more than one row. Products with a weight in FP8 are those of
`float8.op.rows_product`.

B batch, L rows of a sequence, I input channels, O output channels.
"""

import torch.nn.functional as F
from torch import Tensor

from hyenakernels.float8.op import Norm, round_rows, rows_product
from hyenakernels.float8.reference import Float8Weight, gated
from hyenakernels.norm.op import rms_norm

Weight = Tensor | Float8Weight


def normed_linear(x_BLI: Tensor, scale_I: Tensor, eps: float, weight: Weight) -> Tensor:
    """Compute norm(x) W^T."""
    return _products(x_BLI, weight, norm=(scale_I, eps))[0]


def gated_linear(
    x_BLI: Tensor, scale_I: Tensor, eps: float, gate: Weight, up: Weight, *, gelu: bool
) -> Tensor:
    """Compute act(norm(x) G^T) * (norm(x) U^T)."""
    gate_BLO, up_BLO = _products(x_BLI, gate, up, norm=(scale_I, eps))
    return gated(gate_BLO, up_BLO, gelu=gelu)


def added_linear(x_BLI: Tensor, weight: Weight, bias_O: Tensor | None, added_BLO: Tensor) -> Tensor:
    """Compute added + (x W^T + bias)."""
    return added_BLO + _products(x_BLI, weight, bias_O=bias_O)[0]


def _products(
    x_BLI: Tensor, *weights: Weight, bias_O: Tensor | None = None, norm: Norm | None = None
) -> list[Tensor]:
    """Compute norm(x) W^T + bias for each weight; either all of them are in FP8 or none."""
    float8 = [weight for weight in weights if isinstance(weight, Float8Weight)]
    if float8:
        rows = round_rows(x_BLI, norm)
        return [rows_product(rows, weight, bias_O) for weight in float8]
    x_BLI = x_BLI if norm is None else rms_norm(x_BLI, *norm)
    return [F.linear(x_BLI, weight, bias_O) for weight in weights if isinstance(weight, Tensor)]
