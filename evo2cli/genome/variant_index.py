"""The index (`.tbi` or `.csi`) of a VCF or BCF, and whether it belongs to its file.

htslib believes an index: by that of another file, or of an earlier version of the file, it leaves
out records without a word, and some damaged ones end the process. So an index is first read here.

Every record lies in a chunk of the index, so the chunks cover the file from its first record to its
end, and those of a contig come after those of another. A record that was added or removed, or
another compression, moves these places. Of the file, only the header and the last block are read.
Damage within an index is found by the checksums of its compression.

Places are virtual offsets: where a block begins in the file << 16 | offset in its text.

C chunks. Source: the specifications of SAM ("The BGZF compression format"), tabix and CSI.
"""

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from Bio.bgzf import BgzfReader
from numpy.typing import NDArray

from evo2cli.genome.bgzip import BgzipText

_LINEAR, _BINNED = b"TBI\1", b"CSI\1"
_BCF = b"BCF\2"
_VCF_COLUMNS = (2, 1, 2, 0, ord("#"), 0)  # preset, contig, begin, end, comments, lines to skip
_TBI_LEVELS = 5
_POSITION_BITS = 63  # at most, in a CSI
_PLACES = np.dtype("<u8")


def find_index(path: Path) -> Path | None:
    """The index (`.tbi` or `.csi`) beside a file, if there is one."""
    beside = (path.with_name(path.name + suffix) for suffix in (".tbi", ".csi"))
    return next((index for index in beside if index.is_file()), None)


def belongs(index: Path, path: Path) -> bool:
    """Whether an index is whole and its chunks are those of a file.

    Args:
        index: The index.
        path: VCF compressed with bgzip, or a BCF.
    """
    try:
        with BgzipText(index) as stored:
            numbers = _Numbers(stored.readall())
        with BgzfReader(str(path), "rb") as text:  # type: ignore[no-untyped-call]
            is_bcf, first = _first_record(text)
            end = _covered(list(_contigs(numbers, is_bcf=is_bcf)), first)
            text.seek(end)
            return end >> 16 < path.stat().st_size and not text.read(1)
    except (OSError, EOFError, ValueError, RuntimeError, struct.error, zlib.error):
        return False  # no index, or damaged; if the file is, reading it tells


def _first_record(text: Any) -> tuple[bool, int]:
    """Whether a file is a BCF, and the place of its first record."""
    if text.read(len(_BCF)) == _BCF:
        _, size = struct.unpack("<BI", text.read(5))
        text.read(size)
        return True, text.tell()
    text.seek(0)
    place = 0
    while text.readline().startswith(b"#"):
        place = text.tell()
    return False, place


class _Numbers:
    """The numbers of an index, one after the other.

    Reading beyond the end raises ValueError or struct.error.
    """

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def take(self, layout: str) -> tuple[Any, ...]:
        """The next numbers, in the letters of `struct`."""
        found = struct.unpack_from(f"<{layout}", self._data, self._at)
        self._at += struct.calcsize(f"<{layout}")
        return found

    def places(self, count: int) -> NDArray[np.uint64]:
        """The next places, as many as `count`."""
        found = np.frombuffer(self._data, _PLACES, count, self._at)
        self._at += found.nbytes
        return found

    def skip(self, size: int) -> None:
        """Pass over bytes."""
        self._at += size

    @property
    def left(self) -> int:
        """Number of bytes that follow."""
        return len(self._data) - self._at


def _contigs(numbers: _Numbers, *, is_bcf: bool) -> Iterator[NDArray[np.uint64]]:
    """The chunks of each contig, where they begin and end: [C, 2] places.

    Raises:
        ValueError, struct.error: This is not the index of a VCF (or of a BCF).
    """
    (magic,) = numbers.take("4s")
    columns: tuple[int, ...] = _VCF_COLUMNS
    levels = _TBI_LEVELS
    if magic == _LINEAR:
        num_contigs, *found, names = numbers.take("8I")
        columns = tuple(found)
        numbers.skip(names)
    elif magic == _BINNED:
        shift, levels, size = numbers.take("3I")
        if shift + 3 * levels > _POSITION_BITS:
            raise ValueError(f"{levels} levels of bins above {shift} bits")
        if not is_bcf:
            columns = numbers.take("6I")
            size -= struct.calcsize("6I")
        numbers.skip(size)
        (num_contigs,) = numbers.take("I")
    if magic not in (_LINEAR, _BINNED) or columns != _VCF_COLUMNS:
        raise ValueError("of another kind, or of a table with other columns")
    num_bins = ((1 << 3 * (levels + 1)) - 1) // 7
    for _ in range(num_contigs):
        chunks = [np.empty((0, 2), _PLACES)]
        (used,) = numbers.take("I")
        for _ in range(used):
            number, *_, count = numbers.take("2I" if magic == _LINEAR else "IQI")
            places = numbers.places(2 * count)
            if number < num_bins:  # beyond them is one of statistics
                chunks.append(places.reshape(-1, 2))
        if magic == _LINEAR:
            numbers.places(*numbers.take("I"))
        yield np.concatenate(chunks)
    if numbers.left not in (0, 8):  # a number of records without a contig may follow
        raise ValueError("of another length")


def _covered(contigs: list[NDArray[np.uint64]], first: int) -> int:
    """Where the last chunk ends, if the chunks follow each other from the first record on.

    Raises:
        ValueError: There is a gap, or a contig lies within another.
    """
    end = first
    for chunks in sorted(filter(len, contigs), key=lambda chunks: int(chunks.min())):
        begins, ends = chunks[np.argsort(chunks[:, 0])].T
        reached = np.maximum.accumulate(ends)
        if begins[0] != end or (begins > ends).any() or (begins[1:] > reached[:-1]).any():
            raise ValueError("chunks do not follow each other")
        end = int(reached[-1])
    return end
