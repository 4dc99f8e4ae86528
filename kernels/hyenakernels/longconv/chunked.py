"""The long convolution in bounded memory: chunk by chunk of channels, forward and backward.

B batch, L new samples, P past samples, T = P + L, D channels, C channels of a chunk, G filter
groups, E channels of a group, K filter length, N points of an FFT, F = N // 2 + 1 frequencies.
"""

from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad

from hyenakernels.precision import accumulation_dtype, full_precision

SPECTRUM_BYTES = 256 * 2**20  # per chunk; a call needs a few tensors of this size, whatever D is


def long_conv(u_BLD: Tensor, filter_GK: Tensor, past_BPD: Tensor) -> tuple[Tensor, Tensor]:
    """Compute `longconv.reference.long_conv`, differentiable once.

    A chunk has at least one channel, so its spectrum is larger than `SPECTRUM_BYTES` if that of one
    channel for the whole batch is.
    """
    length, filter_length = u_BLD.shape[1], filter_GK.shape[1]
    past_BPD = past_BPD.to(u_BLD.dtype)
    past_length = past_BPD.shape[1]
    start = max(past_length + length - filter_length + 1, 0)
    following_BPD = torch.cat([past_BPD[:, start:], u_BLD[:, max(start - past_length, 0) :]], dim=1)
    if length == 0:
        return u_BLD, following_BPD
    past_BPD = past_BPD[:, max(past_length - filter_length + 1, 0) :]
    used_GK = filter_GK[:, : past_BPD.shape[1] + length]
    y_BLD: Tensor = ChunkedConvolution.apply(u_BLD, used_GK, past_BPD)
    return y_BLD, following_BPD


class ChunkedConvolution(torch.autograd.Function):
    """y of `long_conv`, for a past of at most K - 1 samples and a filter of at most T.

    Saves only its inputs; the backward pass recomputes the spectra of each chunk.
    """

    @staticmethod
    def forward(ctx: Any, u_BLD: Tensor, filter_GK: Tensor, past_BPD: Tensor) -> Tensor:
        """Fill y = irfft(rfft(x) * rfft(h)), x the past and the new samples."""
        ctx.save_for_backward(u_BLD, filter_GK, past_BPD)
        past_length, points = past_BPD.shape[1], _points(u_BLD, filter_GK)
        y_BLD = torch.empty_like(u_BLD)
        with full_precision(u_BLD):
            for channels, groups in _chunks(u_BLD, filter_GK, points):
                x_BTC = torch.cat([past_BPD[:, :, channels], u_BLD[:, :, channels]], dim=1)
                h_GK = filter_GK[groups].to(accumulation_dtype(u_BLD))
                y_BGEF = _spectrum(x_BTC, h_GK.shape[0], points)
                y_BGEF *= torch.fft.rfft(h_GK, points)[:, None]
                y_BLD[:, :, channels] = _samples(y_BGEF, points, x_BTC.shape[1])[:, past_length:]
        return y_BLD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_BLD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Fill dx = irfft(rfft(dy) * conj rfft(h)) and dh = irfft(sum rfft(dy) * conj rfft(x)).

        The sum is over the batch and the group's channels.
        """
        u_BLD, filter_GK, past_BPD = ctx.saved_tensors
        past_length, points = past_BPD.shape[1], _points(u_BLD, filter_GK)
        du_BLD, dpast_BPD = torch.empty_like(u_BLD), torch.empty_like(past_BPD)
        dfilter_GK = torch.zeros_like(filter_GK, dtype=accumulation_dtype(u_BLD))
        with full_precision(u_BLD):
            for channels, groups in _chunks(u_BLD, filter_GK, points):
                h_GK = filter_GK[groups].to(dfilter_GK.dtype)
                dy_BTC = pad(dy_BLD[:, :, channels], (0, 0, past_length, 0))
                dy_BGEF = _spectrum(dy_BTC, h_GK.shape[0], points)

                x_BTC = torch.cat([past_BPD[:, :, channels], u_BLD[:, :, channels]], dim=1)
                product_BGEF = _spectrum(x_BTC, h_GK.shape[0], points).conj_physical_()
                product_BGEF *= dy_BGEF
                dh_GN = torch.fft.irfft(product_BGEF.sum((0, 2)), points)
                dfilter_GK[groups] += dh_GN[:, : h_GK.shape[1]]
                del product_BGEF

                dy_BGEF *= torch.fft.rfft(h_GK, points).conj()[:, None]
                dx_BTC = _samples(dy_BGEF, points, x_BTC.shape[1])
                dpast_BPD[:, :, channels] = dx_BTC[:, :past_length]
                du_BLD[:, :, channels] = dx_BTC[:, past_length:]
        return du_BLD, dfilter_GK.to(filter_GK.dtype), dpast_BPD


def _spectrum(x_BTC: Tensor, num_groups: int, points: int) -> Tensor:
    """The spectrum of every channel, [B, G, E, F], in fp32 or better."""
    x_BCT = x_BTC.transpose(1, 2).to(accumulation_dtype(x_BTC))
    x_BCF: Tensor = torch.fft.rfft(x_BCT, points)
    batch, channels, frequencies = x_BCF.shape
    return x_BCF.reshape(batch, num_groups, channels // num_groups, frequencies)


def _samples(x_BGEF: Tensor, points: int, total: int) -> Tensor:
    """The first `total` samples of every spectrum, [B, T, C]."""
    x_BGEN: Tensor = torch.fft.irfft(x_BGEF, points)
    return x_BGEN.flatten(1, 2)[:, :, :total].transpose(1, 2)


def _points(u_BLD: Tensor, filter_GK: Tensor) -> int:
    """The number of points of an FFT.

    With L + K - 1 points, circular convolutions wrap around only into entries that are not read: y
    is read at the new samples, dx at all T <= L + K - 1, dh at the K taps.
    """
    return smooth_length(u_BLD.shape[1] + filter_GK.shape[1] - 1)


@cache
def smooth_length(least: int) -> int:
    """The smallest 2^a 3^b 5^c >= `least`; FFTs are slow for lengths with large prime factors."""
    powers = range(least.bit_length())
    odd_parts: list[int] = [3**b * 5**c for b in powers for c in powers]
    return min(odd << (-(-least // odd) - 1).bit_length() for odd in odd_parts)


def _chunks(u_BLD: Tensor, filter_GK: Tensor, points: int) -> Iterator[tuple[slice, slice]]:
    """Cut the channels into chunks: a part of one group each, or several whole groups.

    Yields:
        The channels of a chunk, and their groups.
    """
    batch, _, channels = u_BLD.shape
    groups = filter_GK.shape[0]
    spectrum_bytes = batch * (points // 2 + 1) * 2 * accumulation_dtype(u_BLD).itemsize
    max_channels = max(SPECTRUM_BYTES // max(spectrum_bytes, 1), 1)
    group_size = channels // groups
    whole_groups = max(max_channels // group_size, 1)
    for first in range(0, groups, whole_groups):
        last = min(first + whole_groups, groups)
        for start in range(first * group_size, last * group_size, max_channels):
            yield slice(start, min(start + max_channels, last * group_size)), slice(first, last)
