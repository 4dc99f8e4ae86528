"""The time of a step, and how much of it a rank worked instead of waiting for other ranks."""

import contextlib
import time
from collections.abc import Iterator

import torch


class Clock:
    """A stopwatch, running from its construction.

    Args:
        device: The device whose work is timed; on a GPU by events, which do not synchronize.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._started = time.perf_counter()
        self._own_seconds = 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @contextlib.contextmanager
    def own(self) -> Iterator[None]:
        """Count what runs in the context as this rank's own work, which waits for no other rank.

        The exception is ZeRO 3, which gathers weights from other ranks in a forward pass.
        """
        if self._on_gpu:
            start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            yield
            stop.record()
            self._events.append((start, stop))
            return
        started = time.perf_counter()
        yield
        self._own_seconds += time.perf_counter() - started

    def read(self) -> tuple[float, float]:
        """Seconds since the start, and seconds of own work, of a device that has finished."""
        seconds = time.perf_counter() - self._started
        for start, stop in self._events:
            stop.synchronize()
            self._own_seconds += start.elapsed_time(stop) / 1000
        return seconds, self._own_seconds
