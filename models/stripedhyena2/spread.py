"""A model too large for one GPU: neighbouring blocks on one device, the next ones on the next.

The residual stream goes from device to device; embedding, final norm and head, which share a
tensor, stay on the first. Each device waits while the others compute: this is for models that do
not fit, not for speed.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from stripedhyena2.model import StripedHyena2

USABLE = 0.8  # of a device's free memory may be weights; the rest is for what is computed


def fewest(num_bytes: int, free: Sequence[int]) -> list[int]:
    """Which devices, by their free bytes, are to hold the weights: the first that alone does.

    Where none does, as few as do together, those with most room, in their order.

    Raises:
        MemoryError: All together do not.
    """
    roomy = sorted(range(len(free)), key=lambda index: -free[index])
    alone = [[index] for index in range(len(free))]
    together = [roomy[:count] for count in range(2, len(free) + 1)]
    for chosen in (*alone, *together):
        if num_bytes <= USABLE * len(chosen) * min(free[index] for index in chosen):
            return sorted(chosen)
    raise MemoryError(
        f"{num_bytes / 1e9:.0f} GB of weights and what is computed need more than "
        f"{len(free)} devices with {min(free) / 1e9:.0f} GB free each"
    )


def homes(sizes: Sequence[int], devices: Sequence[torch.device]) -> list[torch.device]:
    """A device for each block: neighbours together, about as many bytes on each device.

    Args:
        sizes: Bytes of each block.
        devices: In the order of the blocks.
    """
    total, before, found = sum(sizes), 0, []
    for size in sizes:
        middle = (before + size / 2) / max(total, 1)
        found.append(devices[min(int(middle * len(devices)), len(devices) - 1)])
        before += size
    return found


def home_of(name: str, blocks: Sequence[torch.device]) -> torch.device:
    """Where a tensor of the model goes, by its name."""
    part, _, rest = name.partition(".")
    return blocks[int(rest.partition(".")[0])] if part == "blocks" else blocks[0]


def block_sizes(tensors: Mapping[str, Tensor], depth: int, element: int) -> list[int]:
    """Bytes of each block, at so many an element."""
    sizes = [0] * depth
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".")
        if part == "blocks":
            sizes[int(rest.partition(".")[0])] += tensor.numel() * element
    return sizes


def carry(model: StripedHyena2) -> None:
    """Let the residual stream follow the blocks to their devices, and back for the final norm."""
    for part in (*model.blocks, model.norm):
        part.register_forward_pre_hook(_to_home)


def _to_home(part: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    x_BLD, *others = inputs
    return (x_BLD.to(next(part.parameters()).device), *others)
