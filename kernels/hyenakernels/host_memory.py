"""The host's memory as room for what a GPU has no room for; neither waits for the other.

Transfers need it pinned, and parts of it that are dense: what grows with the tokens has them as its
outermost dimension in memory.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor


def put(room: Tensor, x: Tensor) -> None:
    """Copy `x` into a room on its device, or into the host's when the current stream comes there.

    What reads it later on that stream, or by `ahead`, finds it; the host itself must wait first.
    """
    if room.device != x.device:  # a transfer that also permutes would go through pageable memory
        x = torch.empty_like(room, device=x.device).copy_(x)
    room.copy_(x, non_blocking=True)


def ahead(parts: Sequence[tuple[Any, ...]], device: torch.device) -> Iterator[tuple[Tensor, ...]]:
    """Parts that lie anywhere, on `device`: from the host each comes while the one before is used.

    Args:
        parts: Tuples of tensors, or of what has their `device` and `to`, all in the same place. The
            largest is as large as any other in every dimension.
        device: Where they are wanted.

    Yields:
        Each tuple there, good until the next is asked for.
    """
    if device.type == "cpu" or parts[0][0].device == device:
        for part in parts:
            yield tuple(x.to(device) for x in part)
        return
    largest = max(parts, key=lambda part: part[0].numel())
    slots = [tuple(torch.empty_like(x, device=device) for x in largest) for _ in parts[:2]]
    main, side = torch.cuda.current_stream(device), torch.cuda.Stream(device)

    def bring(number: int) -> tuple[tuple[Tensor, ...], torch.cuda.Event]:
        side.wait_stream(main)  # what was in the slot has been used, what is to come was put
        found = []
        with torch.cuda.stream(side):
            for slot, x in zip(slots[number % 2], parts[number], strict=True):
                found.append(slot[tuple(slice(size) for size in x.shape)])
                found[-1].copy_(x, non_blocking=True)
        return tuple(found), side.record_event()

    try:
        coming = bring(0)
        for number in range(len(parts)):
            part, arrived = coming
            if number + 1 < len(parts):
                coming = bring(number + 1)
            main.wait_event(arrived)
            yield part
    finally:
        main.wait_stream(side)  # the slots are main's memory, to be given away again
