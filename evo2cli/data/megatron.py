"""Documents of a Megatron or Savanna data set: tokens in a .bin file, their index in an .idx file.

Savanna and current Megatron-core write the same index, little endian: 9 bytes of magic, u64
version 1, u8 dtype code, u64 S, u64 D + 1; int32 [S] tokens of each sequence, int64 [S] its
first byte in the .bin, int64 [D + 1] the first sequence of each document. Megatron-core may add
int8 [S] modes. The two disagree only on dtype codes 6 and 7, which are floats.
"""

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np
import numpy.typing as npt

from evo2cli import console
from evo2cli.data.documents import END_OF_DOCUMENT, Bytes, IndexedDocuments, Integers
from evo2cli.data.index_cache import cached_index
from evo2cli.errors import UserError

MAGIC = b"MMIDIDX\0\0"
_OLD_MAGIC = b"TNTIDX\0\0"
_HEADER = struct.Struct("<9sQBQQ")
_DTYPES = {1: "<u1", 2: "<i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}
_BLOCK = 1 << 16  # documents

Numbers = npt.NDArray[np.integer]


class MegatronDocuments(IndexedDocuments):
    """The documents of a .bin; the END_OF_DOCUMENT that some data sets store is stripped.

    Args:
        name: Path of the data set, as the user gave it.
        prefix: The path without .bin and .idx.

    Raises:
        UserError: A file is missing, truncated or of another format, or the two do not match.
    """

    def __init__(self, name: str, prefix: Path) -> None:
        self._bin, idx = beside(prefix, ".bin"), beside(prefix, ".idx")
        for file in (idx, self._bin):
            if not file.is_file():
                raise UserError(f"{file}: no such file; a Megatron data set has a .bin and an .idx")
        header = _Header.read(idx)
        size = self._bin.stat().st_size
        whole = size // header.dtype.itemsize
        self._tokens: Numbers = np.empty(0, header.dtype)
        if whole:  # an empty file cannot be mapped
            self._tokens = np.asarray(np.memmap(self._bin, header.dtype, "r", shape=(whole,)))
        index = cached_index([idx, self._bin], rows=2, build=lambda: self._build_index(header))
        offsets, self._starts = index
        super().__init__(name, offsets, {"bytes": size})

    def read_document(self, document: int, start: int, count: int) -> Bytes:
        """`count` bytes of one document, from its byte `start`."""
        begin = int(self._starts[document]) + start
        tokens = self._tokens[begin : begin + count]
        invalid = _first_invalid(tokens)
        if invalid is not None:
            self._refuse(begin + invalid)
        return tokens.astype(np.uint8, copy=False)

    def _refuse(self, index: int) -> NoReturn:
        raise UserError(
            f"{self._bin}: token {index:,} is {self._tokens[index]}, which is not a byte; Evo 2 "
            "reads data sets made with CharLevelTokenizer"
        )

    def _build_index(self, header: "_Header") -> Integers:
        """Stream offsets, and the first token of each non-empty document, [2, D + 1]."""
        starts, stops = header.documents(self._bin)
        lengths = stops - starts
        name = self._bin.name
        with console.progress(f"index {name}", len(lengths), "documents") as bar:
            for block in range(0, len(lengths), _BLOCK):
                part = slice(block, block + _BLOCK)
                filled = np.flatnonzero(lengths[part]) + block
                last = self._tokens[stops[filled] - 1]
                invalid = _first_invalid(last)
                if invalid is not None:
                    self._refuse(int(stops[filled[invalid]]) - 1)
                lengths[filled] -= last == END_OF_DOCUMENT
                bar.advance(len(lengths[part]))
        kept = lengths > 0
        index = np.zeros((2, int(kept.sum()) + 1), np.int64)
        np.cumsum(lengths[kept] + 1, out=index[0, 1:])
        index[1, :-1] = starts[kept]
        return index


@dataclass(frozen=True)
class _Header:
    """The header of an .idx file.

    Attributes:
        idx: The file.
        dtype: Dtype of the tokens.
        num_sequences: Number of sequences, S.
        num_borders: Number of document borders, D + 1.
    """

    idx: Path
    dtype: np.dtype[np.integer]
    num_sequences: int
    num_borders: int

    @classmethod
    def read(cls, idx: Path) -> "_Header":
        """Read the header and check the file size against it.

        Raises:
            UserError: The file is truncated or of another format.
        """
        with idx.open("rb") as file:
            start = file.read(_HEADER.size)
        if start.startswith(_OLD_MAGIC):
            raise UserError(f"{idx}: has the old TNTIDX layout; preprocess the data again as mmap")
        if not start.startswith(MAGIC) or len(start) < _HEADER.size:
            raise UserError(
                f"{idx}: not a Megatron index (it does not begin with MMIDIDX), or truncated"
            )
        _, version, code, sequences, borders = _HEADER.unpack(start)
        if version != 1:
            raise UserError(f"{idx}: version {version} of the format; only version 1 is supported")
        if code not in _DTYPES:
            raise UserError(f"{idx}: its tokens have dtype code {code}, which is not an integer")
        expected, size = _HEADER.size + 12 * sequences + 8 * borders, idx.stat().st_size
        if size not in (expected, expected + sequences):
            raise UserError(
                f"{idx}: {size:,} bytes, but {sequences:,} sequences and {borders:,} document "
                f"borders take {expected:,}: truncated or damaged"
            )
        return cls(idx, np.dtype(_DTYPES[code]), sequences, borders)

    def documents(self, data: Path) -> tuple[Integers, Integers]:
        """First and one-past-last token of each document in `data`, [D] each.

        Raises:
            UserError: Tokens are missing, or a document is not contiguous.
        """
        sizes = self._array("<i4", self.num_sequences, 0)
        first_bytes = self._array("<i8", self.num_sequences, 4 * self.num_sequences)
        borders = self._array("<i8", self.num_borders, 12 * self.num_sequences)
        starts, rests = np.divmod(first_bytes, self.dtype.itemsize)
        stops = starts + sizes
        if (sizes < 0).any() or (starts < 0).any() or rests.any():
            raise UserError(f"{self.idx}: a sequence has a negative length or offset: damaged")
        end = int(stops.max(initial=0)) * self.dtype.itemsize
        if end != data.stat().st_size:
            raise UserError(
                f"{data}: {data.stat().st_size:,} bytes, but its index ends at byte {end:,}: "
                "truncated, or of another data set"
            )
        if self.num_borders and (
            borders[0] != 0 or borders[-1] != self.num_sequences or (np.diff(borders) < 0).any()
        ):
            raise UserError(
                f"{self.idx}: its document borders do not rise from 0 to {self.num_sequences:,} "
                "sequences: damaged"
            )
        is_first = np.zeros(self.num_sequences + 1, np.bool_)
        is_first[borders] = True
        if ((starts[1:] != stops[:-1]) & ~is_first[1:-1]).any():
            raise UserError(f"{self.idx}: the sequences of a document are not contiguous")
        filled = borders[:-1] < borders[1:]  # a document may have no sequences
        return starts[borders[:-1][filled]], stops[borders[1:][filled] - 1]

    def _array(self, dtype: str, count: int, offset: int) -> Integers:
        raw = np.fromfile(self.idx, dtype, count, offset=_HEADER.size + offset)
        return raw.astype(np.int64)


def _first_invalid(tokens: Numbers) -> int | None:
    """Index of the first token that is not a byte."""
    if tokens.dtype == np.uint8:
        return None
    invalid = (tokens < 0) | (tokens > 255)
    return int(invalid.argmax()) if invalid.any() else None


def beside(prefix: Path, suffix: str) -> Path:
    """The file of a data set with this suffix; unlike `with_suffix`, keeps dots in the prefix."""
    return prefix.with_name(prefix.name + suffix)
