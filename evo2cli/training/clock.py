"""Time a step, and the part of it in which this rank did not wait for others."""

import contextlib
import time
from collections.abc import Iterator

import torch


class Clock:
    """A stopwatch, running from its construction.

    Args:
        device: The device to time; on a GPU by CUDA events, which do not synchronize.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._started = time.perf_counter()
        self._busy_seconds = 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """Count the time in the context as busy, i.e. not spent waiting for other ranks.

        Under ZeRO 3 that is not quite so: forward passes gather weights from other ranks.
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
        self._busy_seconds += time.perf_counter() - started

    def read(self) -> tuple[float, float]:
        """Seconds since construction, and busy seconds; call it when the device has finished."""
        seconds = time.perf_counter() - self._started
        for start, stop in self._events:
            stop.synchronize()
            self._busy_seconds += start.elapsed_time(stop) / 1000
        return seconds, self._busy_seconds
