"""What a window teaches: inputs, targets, the weight of each target, and the loss they give.

B windows, T = L + 1 bytes of a window, L predictions, V vocabulary.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from evo2cli.genome.alphabet import ACGT, reverse_complement

END_OF_DOCUMENT = 0
_BYTES = bytes(range(256))
_UPPER = torch.tensor(list(_BYTES.upper()))
_COMPLEMENT = torch.tensor(list(reverse_complement(_BYTES)[::-1]))


def target_weights(lowercase_weight: float) -> Tensor:
    """The loss weight of each byte as a target, [256].

    A, C, G, T and the end of a document count 1, soft-masked bases count `lowercase_weight`, and
    everything else (N, ambiguity codes, padding) counts 0: it says nothing that could be learned.
    """
    weight = torch.zeros(256)
    weight[list(ACGT)] = 1
    weight[list(ACGT.lower())] = lowercase_weight
    weight[END_OF_DOCUMENT] = 1
    return weight


def read_windows(
    bytes_BT: Tensor, reversed_B: Tensor, weight_of_byte: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Turn stored bytes into what the model sees.

    Args:
        bytes_BT: uint8 windows as stored, case kept.
        reversed_B: Which windows are read as their reverse complement.
        weight_of_byte: From `target_weights`.

    Returns:
        Input ids [B, L] and targets [B, L], upper case, and the targets' weights [B, L].
    """
    device = bytes_BT.device
    stored = bytes_BT.long()
    turned = _COMPLEMENT.to(device)[stored].flip(1)
    stored = torch.where(reversed_B[:, None], turned, stored)
    ids = _UPPER.to(device)[stored]
    return ids[:, :-1], ids[:, 1:], weight_of_byte.to(device)[stored[:, 1:]]


def weighted_loss(logits_BLV: Tensor, targets_BL: Tensor, weights_BL: Tensor) -> Tensor:
    """The weighted sum of the cross-entropies, in nats; the caller divides by the step's weight."""
    losses = F.cross_entropy(logits_BLV.flatten(0, 1), targets_BL.flatten(), reduction="none")
    return (losses * weights_BL.flatten()).sum()
