"""What every source of training data looks like: documents back to back, a byte a token.

The documents of a source make one stream: each is followed by one byte END_OF_DOCUMENT. Places are
0-based positions in that stream. Empty documents are left out, so every one holds a base or more.
"""

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
Integers = npt.NDArray[np.int64]

END_OF_DOCUMENT = 0
PAD = 1


class Documents(ABC):
    """The documents of one source.

    Attributes:
        name: What the user calls it: its path, as given.
        offsets: Where each document starts in the stream, and last the stream's length,
            [num_documents + 1]; usually memory-mapped.
        facts: What a provenance record says of it, as JSON values.
    """

    def __init__(self, name: str, offsets: Integers, facts: dict[str, Any] | None = None) -> None:
        self.name, self.offsets = name, offsets
        counts = {"documents": self.num_documents, "tokens": self.num_tokens}
        self.facts: dict[str, Any] = {"path": name, **(facts or {}), **counts}

    @property
    def num_documents(self) -> int:
        """How many documents there are."""
        return len(self.offsets) - 1

    @property
    def num_tokens(self) -> int:
        """Length of the stream: the bytes of all documents, and one for the end of each."""
        return int(self.offsets[-1])

    @abstractmethod
    def read(self, start: int, count: int) -> Bytes:
        """`count` bytes of the stream from `start` on, [count]; not to be written to.

        Raises:
            ValueError: The stream does not have them all.
            UserError: The file holds something else than tokens.
        """

    def _check(self, start: int, count: int) -> None:
        if not 0 <= start <= start + count <= self.num_tokens:
            raise ValueError(
                f"{self.name}: bytes {start:,} to {start + count:,} of a stream of "
                f"{self.num_tokens:,}"
            )


class ArrayDocuments(Documents):
    """A stream that lies in memory, or in a mapped file, just as it is.

    Args:
        name: What the user calls it.
        tokens: The stream, [num_tokens].
        offsets: Of its documents, [num_documents + 1].
        facts: For the provenance record.
    """

    def __init__(
        self, name: str, tokens: Bytes, offsets: Integers, facts: dict[str, Any] | None = None
    ) -> None:
        super().__init__(name, offsets, facts)
        self._tokens = np.asarray(tokens)

    def read(self, start: int, count: int) -> Bytes:
        """`count` bytes of the stream from `start` on, [count]."""
        self._check(start, count)
        return self._tokens[start : start + count]


class IndexedDocuments(Documents):
    """A stream that is put together from documents lying anywhere in a file."""

    def read(self, start: int, count: int) -> Bytes:
        """`count` bytes of the stream from `start` on, [count]."""
        self._check(start, count)
        stream = np.full(count, END_OF_DOCUMENT, np.uint8)
        document = int(np.searchsorted(self.offsets, start, side="right")) - 1
        place, stop = start, start + count
        while place < stop:
            begin, end = int(self.offsets[document]), int(self.offsets[document + 1]) - 1
            size = min(end, stop) - place
            if size > 0:
                text = self.read_document(document, place - begin, size)
                stream[place - start : place - start + size] = text
            place, document = end + 1, document + 1
        return stream

    @abstractmethod
    def read_document(self, document: int, start: int, count: int) -> Bytes:
        """`count` bytes of one document from its own `start` on, its end not among them.

        Raises:
            UserError: The file holds something else than tokens.
        """
