"""Parts of a genome: regions of a command line (1-based, end included) and BED files (0-based)."""

import re
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from evo2cli.errors import UserError
from evo2cli.genome.contig_names import DEFAULT_NAMES, ContigNames
from evo2cli.genome.formats import BED, TABLE, Wanted, refuse_other
from evo2cli.genome.interval import ENDLESS, Interval
from evo2cli.genome.source import numbered_lines

_RANGE = re.compile(r"(?P<start>[0-9][0-9,]{0,29})(?P<dash>-(?P<end>[0-9][0-9,]{0,29})?)?")


class Regions:
    """A set of intervals, for tests of overlap.

    Args:
        intervals: The intervals.
        names: Synonyms of contig names: chr1 and 1 are the same contig.
    """

    def __init__(self, intervals: Iterable[Interval], names: ContigNames = DEFAULT_NAMES) -> None:
        self._plain = names.plain
        by_contig: dict[str, list[tuple[int, int]]] = defaultdict(list)
        for interval in intervals:
            if len(interval):
                by_contig[names.plain(interval.name)].append((interval.start, interval.end))
        self._spans = {name: merge_spans(spans) for name, spans in by_contig.items()}

    def spans(self, contigs: Iterable[str], *, join: int = 0) -> list[Interval]:
        """The covered parts of some contigs, contig by contig, ascending and disjoint.

        Args:
            contigs: Names of the contigs, which the returned intervals have.
            join: Join intervals that are at most this many bases apart.
        """
        spans: list[Interval] = []
        for name in contigs:
            for start, end in self._spans.get(self._plain(name), ()):
                if spans and spans[-1].name == name and start <= spans[-1].end + join:
                    start = spans.pop().start
                spans.append(Interval(name, start, end))
        return spans

    def overlap(self, name: str, start: int, end: int) -> bool:
        """Whether bases `start` to `end` (0-based, half-open) of a contig overlap an interval."""
        spans = self._spans.get(self._plain(name), ())
        first = bisect_right(spans, start, key=lambda span: span[1])
        return first < len(spans) and spans[first][0] < end


def read_region(text: str) -> Interval:
    """Parse `chr`, `chr:from`, `chr:from-` or `chr:from-to`; commas may group the digits.

    As in bcftools, `chr:from` is one base, and `chr:from-` extends to the end of the contig. As in
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
    match = _RANGE.fullmatch(span)
    if not name or match is None:
        raise UserError(
            f"--regions {text}: write chr, chr:from or chr:from-to, 1-based; a name with colons in "
            "braces, as {HLA-A*01:01}"
        )
    start = int(match["start"].replace(",", ""))
    end = ENDLESS if match["dash"] else start
    if match["end"]:
        end = int(match["end"].replace(",", ""))
    if not 1 <= start <= end <= ENDLESS:
        raise UserError(f"--regions {text}: needs 1 <= from <= to <= 2**62")
    return Interval(name, start - 1, end)


def read_regions(texts: Iterable[str]) -> Iterator[Interval]:
    """Parse regions; `HLA-A*01:01` gives two intervals, since it may be the name of a contig.

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
    """A line of a BED file; the name defaults to `chr:start-end`, the strand to `.`."""

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


def merge_spans(spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """The union of spans [start, end), ascending and disjoint; spans that touch are joined."""
    union: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        if union and start <= union[-1][1]:
            union[-1] = (union[-1][0], max(union[-1][1], end))
        else:
            union.append((start, end))
    return union
