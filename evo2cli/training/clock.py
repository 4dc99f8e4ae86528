"""How long a step takes, and how much of that is a rank's own work."""

import contextlib
import time
from collections.abc import Iterator

import torch


class Clock:
    """Runs from its making on.

    Args:
        device: Whose work is timed; on a GPU by events, which do not make it wait.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._started = time.perf_counter()
        self._own_seconds = 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @contextlib.contextmanager
    def own(self) -> Iterator[None]:
        """What runs inside waits for no other rank (but for weights in pieces, under ZeRO 3)."""
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
        """Seconds since the start, and seconds of own work; the device has to be done."""
        seconds = time.perf_counter() - self._started
        for start, stop in self._events:
            stop.synchronize()
            self._own_seconds += start.elapsed_time(stop) / 1000
        return seconds, self._own_seconds
