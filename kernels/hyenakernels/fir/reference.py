"""Reference of the causal FIR in plain PyTorch: any float dtype, differentiable.

B batch, L length, D channels, G filter groups, K taps, P = K - 1 past samples.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from hyenakernels.precision import accumulation_dtype, full_precision


def causal_fir(x_BLD: Tensor, taps_GK: Tensor, past_BPD: Tensor) -> tuple[Tensor, Tensor]:
    """Convolve every channel with the taps of its group.

    y[b, t, d] = sum_j taps[d // (D / G), j] * x[b, t - j, d]: tap 0 multiplies the newest sample,
    and samples before the first come from `past`.

    Args:
        x_BLD: The new samples; L may be 0.
        taps_GK: One filter per group of D / G neighbouring channels; G divides D.
        past_BPD: The K - 1 samples before `x`, oldest first.

    Returns:
        y in the shape and dtype of `x`, and the past for the samples that follow: the last K - 1.

    Sums are accumulated in fp32 or better. Source: arXiv:2503.01868, section 3 (grouped filters).
    """
    channels, length = x_BLD.shape[2], x_BLD.shape[1]
    (groups, num_taps), dtype = taps_GK.shape, accumulation_dtype(x_BLD)
    extended = torch.cat([past_BPD.to(x_BLD.dtype), x_BLD], dim=1)
    if length == 0:
        return x_BLD, extended
    with full_precision(x_BLD):
        # PyTorch's conv1d correlates; flipping the taps makes it a convolution.
        taps_DK = taps_GK.to(dtype).flip(1).repeat_interleave(channels // groups, dim=0)
        samples_BDT = extended.to(dtype).transpose(1, 2)
        if length == 1:  # the setup of conv1d takes ten times as long as the sum
            y_BDL = (samples_BDT * taps_DK).sum(2, keepdim=True)
        else:
            y_BDL = F.conv1d(samples_BDT, taps_DK[:, None], groups=channels)
    return y_BDL.transpose(1, 2).to(x_BLD.dtype), extended[:, extended.shape[1] - num_taps + 1 :]
