"""Parts of a genome: regions of a command line (1-based, end included) and BED files (0-based)."""

import re
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from evo2cli.errors import UserError
from evo2cli.genome.contig_names import KNOWN, ContigNames
from evo2cli.genome.formats import BED, TABLE, Wanted, refuse_other
from evo2cli.genome.interval import ENDLESS, Interval
from evo2cli.genome.source import numbered_lines

_RANGE = re.compile(r"(?P<start>[0-9][0-9,]{0,29})(?P<dash>-(?P<end>[0-9][0-9,]{0,29})?)?")


class Regions:
    """A set of intervals, to find out what overlaps them; chr1 and 1 are the same contig.

    Args:
        intervals: The intervals.
        names: Tells which names mean the same contig.
    """

    def __init__(self, intervals: Iterable[Interval], names: ContigNames = KNOWN) -> None:
        self._plain = names.plain
        by_contig: dict[str, list[tuple[int, int]]] = defaultdict(list)
        for interval in intervals:
            if len(interval):
                by_contig[names.plain(interval.name)].append((interval.start, interval.end))
        self._borders = {name: merged(spans) for name, spans in by_contig.items()}

    def spans(self, contigs: Iterable[str], *, join: int = 0) -> list[Interval]:
        """The parts of `contigs` that are covered, contig by contig, ascending and disjoint.

        Args:
            contigs: Names as the intervals returned shall have them.
            join: Intervals at most this many bases apart become one.
        """
        spans: list[Interval] = []
        for name in contigs:
            for start, end in zip(*self._borders.get(self._plain(name), ([], [])), strict=True):
                if spans and spans[-1].name == name and start <= spans[-1].end + join:
                    start = spans.pop().start
                spans.append(Interval(name, start, end))
        return spans

    def overlap(self, name: str, start: int, end: int) -> bool:
        """Whether bases `start` to `end` (0-based, half-open) of a contig overlap an interval."""
        starts, ends = self._borders.get(self._plain(name), ([], []))
        first = bisect_right(ends, start)
        return first < len(starts) and starts[first] < end


def read_region(text: str) -> Interval:
    """Read `chr`, `chr:from`, `chr:from-` or `chr:from-to`; commas may group the digits.

    As in bcftools, `chr:from` is one base, and `chr:from-` reaches to the end of the contig. As in
    samtools, a name with colons can be put in braces.

    Raises:
        UserError: The text is none of these.
    """
    if text.startswith("{"):
        name, closed, rest = text[1:].partition("}")
        span = rest[1:] if rest.startswith(":") else "1-" if closed and not rest else ""
    else:
        name, colon, span = text.rpartition(":")
        if not colon:
            name, span = text, "1-"
    found = _RANGE.fullmatch(span)
    if not name or found is None:
        raise UserError(
            f"--regions {text}: write chr, chr:from or chr:from-to, 1-based; a name with colons in "
            "braces, as {HLA-A*01:01}"
        )
    start = int(found["start"].replace(",", "") or 0)
    end = start if not found["dash"] else ENDLESS
    if found["end"]:
        end = int(found["end"].replace(",", "") or 0)
    if not 1 <= start <= end <= ENDLESS:
        raise UserError(f"--regions {text}: needs 1 <= from <= to <= 2**62")
    return Interval(name, start - 1, end)


def read_regions(texts: Iterable[str]) -> Iterator[Interval]:
    """The intervals of regions; `HLA-A*01:01` gives two, since it may also be the name of a contig.

    Raises:
        UserError: One of the texts is not a region.
    """
    for text in texts:
        yield read_region(text)
        if ":" in text:
            yield whole_contig(text)


def whole_contig(name: str) -> Interval:
    """All of a contig, whatever its length."""
    return Interval(name, 0, ENDLESS)


def read_bed(path: Path | str) -> Iterator[Interval]:
    """Stream the intervals of a BED file.

    Raises:
        UserError: The file cannot be read, or a line is not an interval.
    """
    return (line.interval for line in read_bed_lines(Path(path)))


class BedLine(NamedTuple):
    """A line of a BED file: its name is `chr:start-end` and its strand `.` where it has none."""

    interval: Interval
    name: str
    strand: str


def read_bed_lines(path: Path, wanted: Wanted = Wanted.BED) -> Iterator[BedLine]:
    """Stream the lines of a BED file.

    Args:
        path: The file.
        wanted: What to ask for if it is of another format.

    Raises:
        UserError: The file cannot be read, or a line is not an interval.
    """
    is_first = True
    with numbered_lines(path) as lines:
        for number, line in lines:
            text = line.decode(errors="surrogateescape").rstrip("\r\n")
            columns = text.split("\t") if "\t" in text else text.split()
            if not text.strip() or text.startswith("#") or text.split()[0] in ("track", "browser"):
                if number == 1:  # records of a VCF whose IDs are numbers would pass for intervals
                    refuse_other(path, line, wanted)
                continue
            try:
                contig, start, end = columns[:3]
                interval = Interval(contig, int(start), int(end))
            except ValueError:
                if is_first:
                    refuse_other(path, line, wanted, BED, TABLE)
                raise UserError(
                    f"{path}: line {number}: {' '.join(columns[:3])!r} is not a BED interval: "
                    "it needs contig, start (0-based) and end (not before start; at most 2**62)"
                ) from None
            is_first = False
            name = next((name for name in columns[3:4] if name not in ("", ".")), str(interval))
            strand = next((strand for strand in columns[5:6] if strand in ("+", "-")), ".")
            yield BedLine(interval, name, strand)


def merged(spans: list[tuple[int, int]]) -> tuple[list[int], list[int]]:
    """Starts and ends of the union of the spans [start, end), ascending."""
    starts: list[int] = []
    ends: list[int] = []
    for start, end in sorted(spans):
        if ends and start <= ends[-1]:
            ends[-1] = max(ends[-1], end)
        else:
            starts.append(start)
            ends.append(end)
    return starts, ends
