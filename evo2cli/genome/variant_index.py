"""The index of a bgzipped VCF (`.tbi`, `.csi`) or BCF (`.csi`): where records of a region begin.

Only beginnings are looked up. A file that has an index is sorted, so reading goes on from there
until a record starts behind the region. Source: the tabix and CSI specifications of hts-specs.
"""

import gzip
import io
import struct
import zlib
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

from evo2cli.errors import UserError
from evo2cli.genome.interval import Interval
from evo2cli.genome.regions import Regions

_SUFFIXES = (".tbi", ".csi")
_TBI_SHIFT, _TBI_DEPTH = 14, 5  # bins of .tbi are those of a .csi with these
_NAMES_AT = 28  # bytes before the names of contigs in what tabix keeps of a format
_NEAR = 1 << _TBI_SHIFT  # bases; regions that are closer are read in one go


@dataclass(frozen=True)
class Contig:
    """Where the records of a contig are.

    Attributes:
        first: Virtual offset of its first record.
        starts: Positions, 0-based and ascending,
        offsets: and virtual offsets before which no record reaches them.
    """

    first: int
    starts: Sequence[int]
    offsets: Sequence[int]

    def offset(self, start: int) -> int:
        """A virtual offset behind which all records lie that reach `start` or start later."""
        return self.offsets[bisect_right(self.starts, start) - 1] if self.starts else self.first


def find_index(path: Path) -> Path | None:
    """The index beside a file, if there is one."""
    beside = (path.with_name(path.name + suffix) for suffix in _SUFFIXES)
    return next((index for index in beside if index.is_file()), None)


def read_index(path: Path, names: Iterable[str] = ()) -> dict[str, Contig]:
    """The contigs that have records, as they come in the file.

    Args:
        path: The index.
        names: Contigs of the header, for the index of a BCF, which names none.

    Raises:
        UserError: It cannot be read, or is no index.
    """
    try:
        with gzip.open(path) as file:
            found = _parse(io.BytesIO(file.read()), list(names))
    except (OSError, EOFError, ValueError, zlib.error, struct.error) as error:
        raise UserError(f"{path}: no index that can be read ({error}); make it anew") from None
    return dict(sorted(found.items(), key=lambda item: item[1].first))


def _parse(file: io.BytesIO, names: list[str]) -> dict[str, Contig]:
    magic = file.read(4)
    if magic == b"TBI\1":
        (count,) = _numbers(file, "i")
        names = _names(file.read(_NAMES_AT), file)
        shift, depth = _TBI_SHIFT, _TBI_DEPTH
    elif magic == b"CSI\1":
        shift, depth, length = _numbers(file, "3i")
        if length:
            format_and_names = io.BytesIO(file.read(length))
            names = _names(format_and_names.read(_NAMES_AT), format_and_names)
        (count,) = _numbers(file, "i")
    else:
        raise ValueError("it begins like none")
    has_windows = magic == b"TBI\1"
    contigs = {}
    for name in names[:count]:
        contig = _contig(file, shift, depth, has_windows=has_windows)
        if contig is not None:
            contigs[name] = contig
    return contigs


def _contig(file: io.BytesIO, shift: int, depth: int, *, has_windows: bool) -> Contig | None:
    """One contig: a .tbi tells an offset for each window of positions, a .csi for each bin."""
    (count,) = _numbers(file, "i")
    chunks: list[int] = []
    bins: list[tuple[int, int]] = []
    for _ in range(count):
        number, *loffset, size = _numbers(file, "Ii" if has_windows else "IQi")
        pairs = _numbers(file, f"{2 * size}Q")
        start = _bin_start(number, shift, depth)
        if start is not None:
            chunks += pairs[::2]
            bins += [(start, offset) for offset in loffset]
    if has_windows:
        (count,) = _numbers(file, "i")
        bins = [(place << shift, o) for place, o in enumerate(_numbers(file, f"{count}Q"))]
    if not chunks:
        return None
    bins.sort()
    first = min(chunks)
    # Old indexes say 0 for windows that nothing reaches.
    offsets = list(accumulate((offset for _, offset in bins), max, initial=first))[1:]
    return Contig(first, [start for start, _ in bins], offsets)


def _bin_start(number: int, shift: int, depth: int) -> int | None:
    """The first position of a bin; None for the one that holds statistics."""
    for level in range(depth, -1, -1):
        first = ((1 << 3 * level) - 1) // 7
        if number >= first:
            place = number - first
            return None if place >= 1 << 3 * level else place << (shift + 3 * (depth - level))
    return None


def _names(before: bytes, file: io.BytesIO) -> list[str]:
    (length,) = struct.unpack("<i", before[-4:])
    return file.read(length).decode(errors="surrogateescape").split("\0")[:-1]


def _numbers(file: io.BytesIO, kinds: str) -> tuple[int, ...]:
    return struct.unpack(f"<{kinds}", file.read(struct.calcsize(f"<{kinds}")))


def near_spans(regions: Regions, names: Iterable[str]) -> Iterator[Interval]:
    """What to read for `regions`, contig by contig; regions close to one another are joined."""
    for name in names:
        spans: list[tuple[int, int]] = []
        for start, end in regions.spans(name):
            if spans and start <= spans[-1][1] + _NEAR:
                start = spans.pop()[0]
            spans.append((start, end))
        for start, end in spans:
            yield Interval(name, start, end)
