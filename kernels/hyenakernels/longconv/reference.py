"""Reference of the long convolution in plain PyTorch: any float dtype, differentiable.

B batch, L length, D channels, G filter groups, K filter length, P past samples (any number).
"""

import torch
from torch import Tensor

from hyenakernels.precision import accumulation_dtype, full_precision


def long_conv(u_BLD: Tensor, filter_GK: Tensor, past_BPD: Tensor) -> tuple[Tensor, Tensor]:
    """Convolve every channel with the explicit filter of its group, of any length.

    y[b, t, d] = sum_j filter[d // (D / G), j] * u[b, t - j, d], by a real FFT that is long enough
    for a linear convolution.

    Args:
        u_BLD: The new samples; L may be 0.
        filter_GK: One filter per group of D / G neighbouring channels; G divides D.
        past_BPD: The samples before `u`, oldest first; those before them are zero.

    Returns:
        y in the shape and dtype of `u`, and the past for the samples that follow: the last K - 1
        samples, or all of them when there are fewer.

    Source: the convolution theorem; sums in fp32 or better.
    """
    length, dtype = u_BLD.shape[1], accumulation_dtype(u_BLD)
    groups, filter_length = filter_GK.shape
    extended_BTD = torch.cat([past_BPD.to(u_BLD.dtype), u_BLD], dim=1)
    total = extended_BTD.shape[1]
    following_BPD = extended_BTD[:, max(total - filter_length + 1, 0) :]
    if length == 0:
        return u_BLD, following_BPD
    fft_length = total + min(filter_length, total) - 1
    with full_precision(u_BLD):
        u_BFGC = torch.fft.rfft(extended_BTD.to(dtype), fft_length, dim=1).unflatten(
            2, (groups, -1)
        )
        filter_GF = torch.fft.rfft(filter_GK[:, :total].to(dtype), fft_length, dim=1)
        y_BFD = (u_BFGC * filter_GF.T[:, :, None]).flatten(2)
        y_BTD = torch.fft.irfft(y_BFD, fft_length, dim=1)
    return y_BTD[:, total - length : total].to(u_BLD.dtype), following_BPD
