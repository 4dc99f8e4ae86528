"""Asynchronous transfers for tensors that are kept in host memory because they do not fit a GPU.

They need pinned memory and dense slices: a tensor that grows with the tokens has the token
dimension outermost in memory.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor


class Chunks:
    """The chunks of a tensor in host memory (or on the device), read in turn and overwritten.

    A chunk is copied to the device while the one before is in use, and back while the next one is.

    Args:
        chunks: Views of the tensor; the largest is at least as large as every other in every
            dimension.
        device: The device to bring them to.
    """

    def __init__(self, chunks: Sequence[Tensor], device: torch.device) -> None:
        self.chunks, self.device = chunks, device
        transfers = device.type == "cuda" and chunks[0].device != device
        self._copy_stream = torch.cuda.Stream(device) if transfers else None
        self._outgoing: Tensor | None = None

    def __iter__(self) -> Iterator[Tensor]:
        """Each chunk on the device, valid until the next one is requested."""
        parts = [(chunk,) for chunk in self.chunks]
        return (x for (x,) in prefetch(parts, self.device, self._copy_stream))

    def put(self, index: int, x: Tensor) -> None:
        """Overwrite a chunk; the next round reads `x`."""
        chunk = self.chunks[index]
        if self._copy_stream is None:
            put(chunk, x)
            return
        main = torch.cuda.current_stream(self.device)
        # The previous copy to the host ends before its source is freed: at most one is in flight.
        main.wait_stream(self._copy_stream)
        self._outgoing = _with_strides_of(chunk, x)
        self._copy_stream.wait_stream(main)
        with torch.cuda.stream(self._copy_stream):
            chunk.copy_(self._outgoing, non_blocking=True)


def put(target: Tensor, x: Tensor) -> None:
    """Copy `x` into `target`, which may be on the same device or in host memory, asynchronously.

    Work on the current stream and `prefetch` see the copy; code on the host has to synchronize
    before it reads `target`.
    """
    target.copy_(_with_strides_of(target, x), non_blocking=True)


def _with_strides_of(target: Tensor, x: Tensor) -> Tensor:
    """`x`, in the memory layout of `target` if that is on another device.

    A transfer that also permutes would go through pageable memory.
    """
    if target.device == x.device:
        return x
    return torch.empty_like(target, device=x.device).copy_(x)


def prefetch(
    parts: Sequence[tuple[Any, ...]],
    device: torch.device,
    copy_stream: torch.cuda.Stream | None = None,
) -> Iterator[tuple[Tensor, ...]]:
    """Bring parts to `device` in turn; each is copied while the one before is in use.

    Args:
        parts: Tuples of tensors, or of objects with their `device` and `to`, all on one device. The
            largest part must be at least as large as every other in every dimension.
        device: The device to bring them to.
        copy_stream: The stream that copies; by default a new one.

    Yields:
        Each tuple on `device`, valid until the next one is requested.
    """
    if device.type == "cpu" or parts[0][0].device == device:
        for part in parts:
            yield tuple(x.to(device) for x in part)
        return
    largest = max(parts, key=lambda part: part[0].numel())
    slots = [tuple(torch.empty_like(x, device=device) for x in largest) for _ in parts[:2]]
    main, copying = torch.cuda.current_stream(device), copy_stream or torch.cuda.Stream(device)

    def start_copy(index: int) -> tuple[tuple[Tensor, ...], torch.cuda.Event]:
        # Wait until the main stream has read the slot, and has written the part (`put`).
        copying.wait_stream(main)
        copies = []
        with torch.cuda.stream(copying):
            for slot, x in zip(slots[index % 2], parts[index], strict=True):
                copies.append(slot[tuple(slice(size) for size in x.shape)])
                copies[-1].copy_(x, non_blocking=True)
        return tuple(copies), copying.record_event()

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
        main.wait_stream(copying)
