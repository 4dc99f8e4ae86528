"""Host memory for tensors that do not fit a GPU, copied so that neither side waits for the other.

Asynchronous transfers need pinned memory and dense slices: a tensor that grows with the tokens has
the token dimension outermost in memory.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor


def put(room: Tensor, x: Tensor) -> None:
    """Copy `x` into `room`, which may be on the same device or in host memory, asynchronously.

    Work on the current stream and `prefetch` see the copy; code on the host has to synchronize
    before it reads `room`.
    """
    if room.device != x.device:  # a transfer that also permutes would go through pageable memory
        x = torch.empty_like(room, device=x.device).copy_(x)
    room.copy_(x, non_blocking=True)


def prefetch(
    parts: Sequence[tuple[Any, ...]], device: torch.device
) -> Iterator[tuple[Tensor, ...]]:
    """Bring parts to `device` in turn; each is copied from the host while the one before is used.

    Args:
        parts: Tuples of tensors, or of objects with their `device` and `to`, all on one device. The
            largest part must be at least as large as every other in every dimension.
        device: The device to bring them to.

    Yields:
        Each tuple on `device`, valid until the next one is requested.
    """
    if device.type == "cpu" or parts[0][0].device == device:
        for part in parts:
            yield tuple(x.to(device) for x in part)
        return
    largest = max(parts, key=lambda part: part[0].numel())
    slots = [tuple(torch.empty_like(x, device=device) for x in largest) for _ in parts[:2]]
    main, side = torch.cuda.current_stream(device), torch.cuda.Stream(device)

    def start_copy(index: int) -> tuple[tuple[Tensor, ...], torch.cuda.Event]:
        # The main stream has finished reading the slot, and writing the part by `put`.
        side.wait_stream(main)
        copies = []
        with torch.cuda.stream(side):
            for slot, x in zip(slots[index % 2], parts[index], strict=True):
                copies.append(slot[tuple(slice(size) for size in x.shape)])
                copies[-1].copy_(x, non_blocking=True)
        return tuple(copies), side.record_event()

    try:
        pending = start_copy(0)
        for index in range(len(parts)):
            part, arrived = pending
            if index + 1 < len(parts):
                pending = start_copy(index + 1)
            main.wait_event(arrived)
            yield part
    finally:
        # The allocator may reuse the slots on the main stream as soon as they are freed.
        main.wait_stream(side)
