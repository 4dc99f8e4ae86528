"""Check that an index (`.tbi` or `.csi`) belongs to its VCF or BCF.

htslib trusts an index. With that of another file, or of an earlier version of the file, it silently
leaves out records, and some damaged indexes crash the process. So an index is first checked here.

Every record is in a chunk of the index, so the chunks cover the file from its first record to its
end, one contig after the other. An added or removed record, or another compression, changes these
offsets. Of the file, only the header and the last block are read. Damage within an index is found
by the checksums of its compression.

Offsets are virtual offsets of BGZF: offset of a block in the file << 16 | offset in its text.

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

_TBI, _CSI = b"TBI\1", b"CSI\1"
_BCF = b"BCF\2"
_VCF_COLUMNS = (2, 1, 2, 0, ord("#"), 0)  # preset, contig, start, end, comments, lines to skip
_TBI_LEVELS = 5
_MAX_POSITION_BITS = 63  # of a CSI
_OFFSETS = np.dtype("<u8")


def find_index(path: Path) -> Path | None:
    """The index (`.tbi` or `.csi`) beside a file, if there is one."""
    beside = (path.with_name(path.name + suffix) for suffix in (".tbi", ".csi"))
    return next((index for index in beside if index.is_file()), None)


def index_matches(index: Path, path: Path) -> bool:
    """Whether an index is complete and its chunks are those of a file.

    Args:
        index: The index.
        path: VCF compressed with bgzip, or a BCF.
    """
    try:
        with BgzipText(index) as stored:
            reader = _IndexReader(stored.readall())
        with BgzfReader(str(path), "rb") as text:  # type: ignore[no-untyped-call]
            is_bcf, first = _first_record(text)
            end = _end_of_chunks(list(_contigs(reader, is_bcf=is_bcf)), first)
            text.seek(end)
            return end >> 16 < path.stat().st_size and not text.read(1)
    except (OSError, EOFError, ValueError, RuntimeError, struct.error, zlib.error):
        return False  # not an index, or damaged; damage of the file is reported when it is read


def _first_record(text: Any) -> tuple[bool, int]:
    """Whether a file is a BCF, and the virtual offset of its first record."""
    if text.read(len(_BCF)) == _BCF:
        _, size = struct.unpack("<BI", text.read(5))
        text.read(size)
        return True, text.tell()
    text.seek(0)
    offset = 0
    while text.readline().startswith(b"#"):
        offset = text.tell()
    return False, offset


class _IndexReader:
    """Reads the numbers of an index in order.

    Reading beyond the end raises ValueError or struct.error.
    """

    def __init__(self, data: bytes) -> None:
        self._data, self._position = data, 0

    def read(self, layout: str) -> tuple[Any, ...]:
        """The next numbers; the layout has the letters of `struct`."""
        numbers = struct.unpack_from(f"<{layout}", self._data, self._position)
        self._position += struct.calcsize(f"<{layout}")
        return numbers

    def read_offsets(self, count: int) -> NDArray[np.uint64]:
        """The next `count` virtual offsets."""
        offsets = np.frombuffer(self._data, _OFFSETS, count, self._position)
        self._position += offsets.nbytes
        return offsets

    def skip(self, size: int) -> None:
        """Skip bytes."""
        self._position += size

    @property
    def num_left(self) -> int:
        """Number of bytes left."""
        return len(self._data) - self._position


def _contigs(reader: _IndexReader, *, is_bcf: bool) -> Iterator[NDArray[np.uint64]]:
    """Yield the chunks of each contig: the virtual offsets of their starts and ends, [C, 2].

    Raises:
        ValueError, struct.error: This is not the index of a VCF (or of a BCF).
    """
    (magic,) = reader.read("4s")
    columns: tuple[int, ...] = _VCF_COLUMNS
    levels = _TBI_LEVELS
    if magic == _TBI:
        num_contigs, *numbers, size = reader.read("8I")
        columns = tuple(numbers)
        reader.skip(size)  # names of contigs
    elif magic == _CSI:
        shift, levels, size = reader.read("3I")
        if shift + 3 * levels > _MAX_POSITION_BITS:
            raise ValueError(f"{levels} levels of bins above {shift} bits")
        if not is_bcf:
            columns = reader.read("6I")
            size -= struct.calcsize("6I")
        reader.skip(size)
        (num_contigs,) = reader.read("I")
    if magic not in (_TBI, _CSI) or columns != _VCF_COLUMNS:
        raise ValueError("another format, or an index of a table with other columns")
    num_bins = ((1 << 3 * (levels + 1)) - 1) // 7
    for _ in range(num_contigs):
        chunks = [np.empty((0, 2), _OFFSETS)]
        (num_used,) = reader.read("I")
        for _ in range(num_used):
            number, *_, count = reader.read("2I" if magic == _TBI else "IQI")
            offsets = reader.read_offsets(2 * count)
            if number < num_bins:  # the number after the last bin is that of statistics
                chunks.append(offsets.reshape(-1, 2))
        if magic == _TBI:
            reader.read_offsets(*reader.read("I"))  # the linear index
        yield np.concatenate(chunks)
    if reader.num_left not in (0, 8):  # the number of records without a contig may follow
        raise ValueError("wrong length")


def _end_of_chunks(contigs: list[NDArray[np.uint64]], first: int) -> int:
    """The end of the last chunk, if the chunks cover the file from the first record on.

    Raises:
        ValueError: There is a gap, or the chunks of two contigs overlap.
    """
    end = first
    for chunks in sorted(filter(len, contigs), key=lambda chunks: int(chunks.min())):
        starts, ends = chunks[np.argsort(chunks[:, 0])].T
        max_ends = np.maximum.accumulate(ends)
        if starts[0] != end or (starts > ends).any() or (starts[1:] > max_ends[:-1]).any():
            raise ValueError("a gap between chunks, or an overlap")
        end = int(max_ends[-1])
    return end
