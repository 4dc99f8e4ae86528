"""Packing: how the token stream of a source is divided into windows of L predictions.

A window of L predictions takes L + 1 bytes: its inputs, and its targets one byte further on.
"""

from typing import Literal, Protocol

import numpy as np

from evo2cli.data.documents import Documents, Integers

Packing = Literal["stream", "document"]  # whether windows run across documents

_BLOCK = 1 << 12  # documents


class WindowPacking(Protocol):
    """A division of a token stream into windows.

    Attributes:
        num_windows: Number of windows.
        num_phases: Number of offsets at which the first window can start.
    """

    num_windows: int
    num_phases: int

    def span(self, window: int, phase: int) -> tuple[int, int]:
        """First byte and size of a window; the first window starts at offset `phase`."""


class StreamPacking:
    """Consecutive windows that run across documents; neighbours share one byte.

    Args:
        documents: The source.
        length: Predictions per window.
        shifted: Leave room for the first window to start at any offset below `length`.
    """

    def __init__(self, documents: Documents, length: int, *, shifted: bool) -> None:
        self._length, tokens = length, documents.num_tokens
        self.num_windows = max(0, tokens - 1) // length
        if shifted and self.num_windows:
            # One window fewer than would fit, so that every phase fits; but at least one.
            self.num_windows = max(1, tokens // length - 1)
        self.num_phases = min(tokens - self.num_windows * length, length) if shifted else 1

    def span(self, window: int, phase: int) -> tuple[int, int]:
        """First byte and size of a window."""
        return phase + window * self._length, self._length + 1


class DocumentPacking:
    """Windows from the start of each document; the last window of a document can be shorter.

    Every byte of a document except the first is a target once, including its end-of-document byte.

    Args:
        documents: The source.
        length: Predictions per window.
    """

    num_phases = 1

    def __init__(self, documents: Documents, length: int) -> None:
        self._length, self._offsets = length, documents.offsets
        starts = range(0, documents.num_documents, _BLOCK)
        # Number of windows before each block of documents: an entry per document would take too
        # much memory.
        self._before = np.cumsum([0, *(self._counts(start).sum() for start in starts)])
        self.num_windows = int(self._before[-1])

    def span(self, window: int, phase: int) -> tuple[int, int]:
        """First byte and size (at most L + 1) of a window."""
        assert phase == 0
        block = int(np.searchsorted(self._before, window, side="right")) - 1
        ends = np.cumsum(self._counts(block * _BLOCK)) + self._before[block]
        within = int(np.searchsorted(ends, window, side="right"))
        first = int(ends[within - 1]) if within else int(self._before[block])
        document = block * _BLOCK + within
        start = int(self._offsets[document]) + (window - first) * self._length
        return start, min(self._length + 1, int(self._offsets[document + 1]) - start)

    def _counts(self, start: int) -> Integers:
        """Number of windows of each document in the block that begins at document `start`."""
        sizes = np.diff(self._offsets[start : start + _BLOCK + 1])
        return -(-(sizes - 1) // self._length)
