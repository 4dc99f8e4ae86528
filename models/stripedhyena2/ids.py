"""Validation of token ids before they reach a GPU, where an id out of range is fatal."""

import torch
from torch import Tensor

from stripedhyena2.errors import InputError


def check_batch(ids_BL: Tensor) -> None:
    """Check that `ids_BL` is a batch of token ids.

    Raises:
        InputError: The ids are not integers [B, L].
    """
    if not isinstance(ids_BL, Tensor):
        raise InputError(
            f"ids are {type(ids_BL).__name__}: must be a torch.int64 tensor [sequences, tokens], "
            "e.g. torch.tensor([list(b'ACGT')])"
        )
    if ids_BL.dim() != 2 or ids_BL.dtype not in (torch.int64, torch.int32):
        raise InputError(
            f"ids are {ids_BL.dtype} of the shape {tuple(ids_BL.shape)}: must be torch.int64, "
            "[sequences, tokens]; ids[None] makes a batch of a single sequence"
        )


def check_range(
    ids: Tensor, count: int, name: str = "token id", *, ignored: int | None = None
) -> None:
    """Refuse ids outside [0, `count`). For ids on a GPU this synchronizes.

    Args:
        ids: Integers of any shape.
        count: The size of the vocabulary, or the number of classes.
        name: What an id is called in the message.
        ignored: An additional allowed value.

    Raises:
        InputError: The message gives the first id out of range, its position and the range.
    """
    if not ids.numel() or ids.is_meta:
        return
    outside = (ids < 0) | (ids >= count)
    if ignored is not None:
        outside &= ids != ignored
    if not bool(outside.any()):
        return
    position = [int(index) for index in outside.nonzero()[0]]
    also = "" if ignored is None else f", or {ignored}"
    raise InputError(
        f"{name} {int(ids[tuple(position)])} at {position}: must be from 0 to {count - 1}{also}"
    )
