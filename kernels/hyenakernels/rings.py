"""Pasts that are updated in place while decoding: ring buffers of K rows.

Row t mod K of a ring holds the sample of position t, so a new sample overwrites the one that a
filter of K taps no longer reaches.

B sequences, K rows of a ring, D channels, P = K - 1 past samples.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from hyenakernels.filters import HyenaPast


@dataclass(frozen=True)
class HyenaSlots:
    """The pasts of a Hyena operator for sequences of different lengths, updated in place.

    Attributes:
        featurizer_BFC: A ring of the last F rows of the projections.
        inner: The past of the inner convolution: a ring [B, K, D] of the last K rows of u, or the
            modal states [B, D, S], contiguous when transposed to [B, S, D].
        lengths_B: The number of tokens seen, int64; the owner of the slots increments it.
    """

    featurizer_BFC: Tensor
    inner: Tensor
    lengths_B: Tensor

    def put(self, row: int, past: HyenaPast, length: int) -> None:
        """Copy the past of a single sequence of `length` tokens into row `row` of the batch."""
        fill(self.featurizer_BFC[row], length, past.featurizer_BPC[0])
        if past.inner.shape[1:] == self.inner.shape[1:]:  # a state
            self.inner[row] = past.inner[0]
        else:
            fill(self.inner[row], length, past.inner[0])


def check(op: str, x_B1D: Tensor, taps_GK: Tensor, ring_BKD: Tensor) -> None:
    """Check the shapes of one new row per sequence, of the taps and of the ring.

    Raises:
        ValueError: They do not match; the message gives them.
    """
    (batch, length, width), (groups, num_taps) = x_B1D.shape, taps_GK.shape
    if length != 1 or width % groups or ring_BKD.shape != (batch, num_taps, width):
        raise ValueError(
            f"{op}: rows {tuple(x_B1D.shape)} and taps {tuple(taps_GK.shape)} do not match a ring "
            f"{tuple(ring_BKD.shape)}; rows are [batch, 1, channels], rings [batch, taps, channels]"
        )


def past_of(ring_BKD: Tensor, lengths_B: Tensor) -> Tensor:
    """The P samples before position `lengths` of each sequence, oldest first."""
    return ring_BKD[_sequences(lengths_B)[:, None], _ring_rows(ring_BKD, lengths_B)[:, :-1]]


def put(ring_BKD: Tensor, lengths_B: Tensor, x_BD: Tensor) -> None:
    """Store the sample of position `lengths` of each sequence."""
    row_B = lengths_B % ring_BKD.shape[1]
    ring_BKD[_sequences(lengths_B), row_B] = x_BD.to(ring_BKD.dtype)


def fill(ring_KD: Tensor, length: int, past_PD: Tensor) -> None:
    """Store the P samples before position `length` of one sequence."""
    lengths_1 = torch.tensor([length], device=ring_KD.device)
    ring_KD[_ring_rows(ring_KD[None], lengths_1)[0, :-1]] = past_PD.to(ring_KD.dtype)


def _sequences(lengths_B: Tensor) -> Tensor:
    return torch.arange(len(lengths_B), device=lengths_B.device)


def _ring_rows(ring_BKD: Tensor, lengths_B: Tensor) -> Tensor:
    """The rows that hold the positions length - P ... length, [B, K]."""
    size = ring_BKD.shape[1]
    ages_K = torch.arange(size - 1, -1, -1, device=lengths_B.device)
    return (lengths_B[:, None] - ages_K) % size
