"""The common interface of all sources of training data: a token stream of documents, one byte each.

In the stream, each document is followed by one byte END_OF_DOCUMENT. Offsets into it are 0-based.
Empty documents are left out, so every document has at least one base.
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
        name: Path of the source, as the user gave it.
        offsets: Start of each document in the stream, then the length of the stream,
            [num_documents + 1]; usually memory-mapped.
        facts: Metadata for the provenance of a run, as JSON values.
    """

    def __init__(self, name: str, offsets: Integers, facts: dict[str, Any] | None = None) -> None:
        self.name, self.offsets = name, offsets
        counts = {"documents": self.num_documents, "tokens": self.num_tokens}
        self.facts: dict[str, Any] = {"path": name, **(facts or {}), **counts}

    @property
    def num_documents(self) -> int:
        """Number of documents."""
        return len(self.offsets) - 1

    @property
    def num_tokens(self) -> int:
        """Length of the stream: the bytes of all documents plus one end-of-document byte each."""
        return int(self.offsets[-1])

    @abstractmethod
    def read(self, start: int, count: int) -> Bytes:
        """`count` bytes of the stream from offset `start`, [count]; read-only.

        Raises:
            ValueError: The stream is shorter.
            UserError: The file contains something other than byte tokens.
        """

    def _check(self, start: int, count: int) -> None:
        if not 0 <= start <= start + count <= self.num_tokens:
            raise ValueError(
                f"{self.name}: bytes {start:,} to {start + count:,} of a stream of "
                f"{self.num_tokens:,}"
            )


class ArrayDocuments(Documents):
    """A stream that is stored as such, in memory or in a memory-mapped file.

    Args:
        name: Path of the source, as the user gave it.
        tokens: The stream, [num_tokens].
        offsets: As `Documents.offsets`.
        facts: As `Documents.facts`.
    """

    def __init__(
        self, name: str, tokens: Bytes, offsets: Integers, facts: dict[str, Any] | None = None
    ) -> None:
        super().__init__(name, offsets, facts)
        self._tokens = np.asarray(tokens)

    def read(self, start: int, count: int) -> Bytes:
        """`count` bytes of the stream from offset `start`, [count]."""
        self._check(start, count)
        return self._tokens[start : start + count]


class IndexedDocuments(Documents):
    """A stream assembled on the fly from documents stored anywhere in a file."""

    def read(self, start: int, count: int) -> Bytes:
        """`count` bytes of the stream from offset `start`, [count]."""
        self._check(start, count)
        stream = np.full(count, END_OF_DOCUMENT, np.uint8)
        document = int(np.searchsorted(self.offsets, start, side="right")) - 1
        offset, stop = start, start + count
        while offset < stop:
            begin, end = int(self.offsets[document]), int(self.offsets[document + 1]) - 1
            size = min(end, stop) - offset
            if size > 0:
                text = self.read_document(document, offset - begin, size)
                stream[offset - start : offset - start + size] = text
            offset, document = end + 1, document + 1
        return stream

    @abstractmethod
    def read_document(self, document: int, start: int, count: int) -> Bytes:
        """`count` bytes of one document from its byte `start`, without the end-of-document byte.

        Raises:
            UserError: The file contains something other than byte tokens.
        """
