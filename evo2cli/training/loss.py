"""Inputs, targets and loss weights of windows, and the weighted loss.

B windows, T = L + 1 bytes per window, L predictions, V vocabulary.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from evo2cli.data.documents import END_OF_DOCUMENT, PAD
from evo2cli.genome.alphabet import ACGT, reverse_complement

_BYTES = bytes(range(256))
_UPPER = torch.tensor(list(_BYTES.upper()))
_COMPLEMENT = torch.tensor(list(reverse_complement(_BYTES)[::-1]))


def target_weights(lowercase: float, end_of_document: float) -> Tensor:
    """The loss weight of each byte as a target, [256].

    A, C, G and T have weight 1, soft-masked bases `lowercase`, and the end-of-document byte
    `end_of_document`. Everything else (N, ambiguity codes, the punctuation of tags, padding) has
    weight 0.
    """
    weight = torch.zeros(256)
    weight[list(ACGT)] = 1
    weight[list(ACGT.lower())] = lowercase
    weight[END_OF_DOCUMENT] = end_of_document
    return weight


def read_windows(
    bytes_BT: Tensor, reversed_B: Tensor, masked_BT: Tensor, weight_of_byte: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Convert stored windows to input ids, targets and loss weights.

    Args:
        bytes_BT: uint8 windows as stored, case kept.
        reversed_B: Windows to reverse complement; padding stays at the end.
        masked_BT: Bytes that have weight 0 as targets, in stored order.
        weight_of_byte: From `target_weights`.

    Returns:
        Input ids [B, L] and targets [B, L], upper case, and the weights of the targets [B, L].
    """
    device = bytes_BT.device
    stored_BT = bytes_BT.long()
    index_T = torch.arange(stored_BT.shape[1], device=device)
    end_B1 = ((stored_BT != PAD) * (index_T + 1)).amax(1, keepdim=True)
    from_BT = torch.where(reversed_B[:, None] & (index_T < end_B1), end_B1 - 1 - index_T, index_T)
    read_BT = stored_BT.gather(1, from_BT)
    read_BT = torch.where(reversed_B[:, None], _COMPLEMENT.to(device)[read_BT], read_BT)
    ids_BT = _UPPER.to(device)[read_BT]
    weights_BT = weight_of_byte.to(device)[read_BT].masked_fill(masked_BT.gather(1, from_BT), 0)
    return ids_BT[:, :-1], ids_BT[:, 1:], weights_BT[:, 1:]


def weighted_loss(logits_BLV: Tensor, targets_BL: Tensor, weights_BL: Tensor) -> Tensor:
    """Weighted sum of cross-entropies in nats; the caller divides by the total weight of a step."""
    losses = F.cross_entropy(logits_BLV.flatten(0, 1), targets_BL.flatten(), reduction="none")
    return (losses * weights_BL.flatten()).sum()
