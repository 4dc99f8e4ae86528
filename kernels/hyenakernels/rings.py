"""Pasts that grow in place: of K places, that at t mod K holds the sample of position t.

A new sample takes the place of the one that no filter of K taps meets any more.

B sequences, K places, D channels, P = K - 1 past samples.
"""

import torch
from torch import Tensor


def check(op: str, x_B1D: Tensor, taps_GK: Tensor, ring_BKD: Tensor) -> None:
    """Refuse more than a row a sequence, and a ring that is not one of K samples like these.

    Raises:
        ValueError: Says which.
    """
    (batch, length, width), (groups, num_taps) = x_B1D.shape, taps_GK.shape
    if length != 1 or width % groups or ring_BKD.shape != (batch, num_taps, width):
        raise ValueError(
            f"{op}: rows {tuple(x_B1D.shape)}, taps {tuple(taps_GK.shape)} and a ring of "
            f"{tuple(ring_BKD.shape)}"
        )


def past_of(ring_BKD: Tensor, lengths_B: Tensor) -> Tensor:
    """The P samples before position `lengths` of each sequence, oldest first."""
    return ring_BKD[_sequences(lengths_B)[:, None], _places(ring_BKD, lengths_B)[:, :-1]]


def put(ring_BKD: Tensor, lengths_B: Tensor, x_BD: Tensor) -> None:
    """Store the sample of position `lengths` of each sequence."""
    place_B = lengths_B % ring_BKD.shape[1]
    ring_BKD[_sequences(lengths_B), place_B] = x_BD.to(ring_BKD.dtype)


def fill(ring_KD: Tensor, length: int, past_PD: Tensor) -> None:
    """Store the P samples before position `length` of a sequence."""
    lengths_1 = torch.tensor([length], device=ring_KD.device)
    ring_KD[_places(ring_KD[None], lengths_1)[0, :-1]] = past_PD.to(ring_KD.dtype)


def _sequences(lengths_B: Tensor) -> Tensor:
    return torch.arange(len(lengths_B), device=lengths_B.device)


def _places(ring_BKD: Tensor, lengths_B: Tensor) -> Tensor:
    """Of the positions length - P ... length, [B, K]."""
    size = ring_BKD.shape[1]
    ages_K = torch.arange(size - 1, -1, -1, device=lengths_B.device)
    return (lengths_B[:, None] - ages_K) % size
