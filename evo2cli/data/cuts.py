"""How the stream of a source is cut into windows of L predictions, L + 1 bytes."""

from typing import Protocol

import numpy as np

from evo2cli.data.documents import Documents, Integers

_BLOCK = 1 << 12  # documents


class Cut(Protocol):
    """A way to cut.

    Attributes:
        count: How many windows there are.
        num_phases: In how many ways the first border can be moved.
    """

    count: int
    num_phases: int

    def span(self, window: int, phase: int) -> tuple[int, int]:
        """First byte and size of a window; phase is below `num_phases`."""


class StreamCut:
    """Windows one after the other, across documents; neighbours share one byte.

    Args:
        documents: To be cut.
        length: Predictions a window.
        shifted: Leave as much room as it takes to begin anywhere in the first window.
    """

    def __init__(self, documents: Documents, length: int, *, shifted: bool) -> None:
        self._length, tokens = length, documents.num_tokens
        self.count = max(0, tokens - 1) // length
        if shifted and self.count:
            # One fewer than would fit, so that every phase fits, but never none.
            self.count = max(1, tokens // length - 1)
        self.num_phases = min(tokens - self.count * length, length) if shifted else 1

    def span(self, window: int, phase: int) -> tuple[int, int]:
        """First byte and size of a window."""
        return phase + window * self._length, self._length + 1


class DocumentCut:
    """Windows from the beginning of each document on; the last one of each is as short as may be.

    Every byte but the first of each document is predicted once, its end included.

    Args:
        documents: To be cut.
        length: Predictions a window.
    """

    num_phases = 1

    def __init__(self, documents: Documents, length: int) -> None:
        self._length, self._offsets = length, documents.offsets
        starts = range(0, documents.num_documents, _BLOCK)
        # Windows before each block of documents: a number for each document would not be small.
        self._before = np.cumsum([0, *(self._counts(start).sum() for start in starts)])
        self.count = int(self._before[-1])

    def span(self, window: int, phase: int) -> tuple[int, int]:
        """First byte and size (L + 1 at most) of a window."""
        assert phase == 0
        block = int(np.searchsorted(self._before, window, side="right")) - 1
        ends = np.cumsum(self._counts(block * _BLOCK)) + self._before[block]
        within = int(np.searchsorted(ends, window, side="right"))
        first = int(ends[within - 1]) if within else int(self._before[block])
        document = block * _BLOCK + within
        start = int(self._offsets[document]) + (window - first) * self._length
        return start, min(self._length + 1, int(self._offsets[document + 1]) - start)

    def _counts(self, start: int) -> Integers:
        """Windows of each document of the block from `start` on."""
        sizes = np.diff(self._offsets[start : start + _BLOCK + 1])
        return -(-(sizes - 1) // self._length)
