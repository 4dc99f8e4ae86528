"""Device maps: models that are too large for one GPU, spread over several by consecutive blocks.

The residual stream moves from device to device. Embedding, final norm and head stay on the first
device, since embedding and head share a tensor. Devices work one after the other, so this is for
models that do not fit one device; it is not faster.

A device map is a sequence with the device of each block.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from stripedhyena2.layers import block_index

if TYPE_CHECKING:
    from stripedhyena2.model import StripedHyena2

WEIGHT_FRACTION = 0.8  # of a device's free memory; activations and caches need the rest


def choose_devices(num_bytes: int, free: Sequence[int]) -> list[int]:
    """Indices of the smallest set of devices that fits the weights.

    If one device suffices, it is the first such device. Otherwise it is the smallest number of
    devices, those with the most free memory, in ascending order.

    Args:
        num_bytes: Bytes of all weights.
        free: Free bytes of each device.

    Raises:
        MemoryError: All devices together are too small.
    """
    most_free_first = sorted(range(len(free)), key=lambda index: -free[index])
    single = [[index] for index in range(len(free))]
    several = [most_free_first[:count] for count in range(2, len(free) + 1)]
    for chosen in (*single, *several):
        smallest = min(free[index] for index in chosen)
        if num_bytes <= WEIGHT_FRACTION * len(chosen) * smallest:
            return sorted(chosen)
    raise MemoryError(
        f"{num_bytes / 1e9:.0f} GB of weights, and the memory to compute with them, need more than "
        f"is free: {len(free)} x {min(free) / 1e9:.0f} GB"
    )


def device_map(sizes: Sequence[int], devices: Sequence[torch.device]) -> list[torch.device]:
    """The device of each block: consecutive blocks, about the same number of bytes per device.

    Args:
        sizes: Bytes of each block.
        devices: The devices, in the order in which the blocks fill them.
    """
    total, before, blocks = sum(sizes), 0, []
    for size in sizes:
        middle = (before + size / 2) / max(total, 1)
        blocks.append(devices[min(int(middle * len(devices)), len(devices) - 1)])
        before += size
    return blocks


def device_of(name: str, blocks: Sequence[torch.device]) -> torch.device:
    """The device of a tensor of the model, by its name and the device map."""
    return blocks[block_index(name) or 0]


def block_sizes(
    tensors: Mapping[str, Tensor], depth: int, element_size: int, float8: Collection[str] = ()
) -> list[int]:
    """Bytes of each block.

    Args:
        tensors: The model's tensors by name, on any device.
        depth: The number of blocks.
        element_size: Bytes of every element.
        float8: Names of weights with one byte per element.
    """
    sizes = [0] * depth
    for name, tensor in tensors.items():
        index = block_index(name)
        if index is not None:
            sizes[index] += tensor.numel() * (1 if name in float8 else element_size)
    return sizes


def move_activations(model: "StripedHyena2") -> None:
    """Add hooks that move the residual stream to the device of each block and the final norm."""
    for part in (*model.blocks, model.norm):
        part.register_forward_pre_hook(to_own_device)


def to_own_device(part: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """A forward pre-hook that moves the residual stream to the device of a part of the model."""
    x_BLD, *others = inputs
    return (x_BLD.to(next(part.parameters()).device), *others)
