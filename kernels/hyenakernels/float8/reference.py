"""What quantizing to FP8 means, in plain PyTorch.

M rows, N columns; P, M padded to a multiple of 16.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

MULTIPLE = 16  # the tensor cores take sizes in steps of it
SMALLEST = torch.finfo(torch.float32).tiny


def largest(x: Tensor) -> Tensor:
    """The largest magnitude, in fp32; NaN if there is one."""
    found: Tensor = torch.linalg.vector_norm(x, float("inf"))
    return found.float()


def quantize(x_MN: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Give x / scale in FP8, where scale puts the largest magnitude at the end of the range.

    Returns:
        By rows [P, N], by columns [N, P] (both with zeros for the rows that x lacks), and the scale
        in fp32, []. A NaN makes all of them NaN.
    """
    limit = torch.finfo(dtype).max
    scale = (largest(x_MN) / limit).clamp_min(SMALLEST)
    values_MN = (x_MN.float() * (1 / scale)).clamp(-limit, limit).to(dtype)
    lacking = -x_MN.shape[0] % MULTIPLE
    # FP8 itself cannot be padded, its bytes can.
    rows_PN = F.pad(values_MN.view(torch.uint8), (0, 0, 0, lacking)).view(dtype)
    return rows_PN, rows_PN.T.contiguous(), scale
