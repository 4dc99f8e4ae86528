"""Features of a genome, read from BED, GFF3 or GTF."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

from evo2cli.errors import UserError
from evo2cli.genome.formats import GFF, TABLE, Wanted, refuse_other
from evo2cli.genome.interval import Interval
from evo2cli.genome.reference import Reference
from evo2cli.genome.regions import merged, read_bed_lines
from evo2cli.genome.source import numbered_lines

_GFF = (".gff", ".gff3", ".gtf")
_COLUMNS = 9
_NAMES = ("ID", "exon_id", "transcript_id", "gene_id", "Name")  # the first one present


@dataclass(frozen=True)
class Feature:
    """A named part of a contig, e.g. an exon or a coding sequence.

    Attributes:
        name: Its name in the file, or `chr:start-end`.
        contig: The contig it is on.
        spans: Its bases [start, end), 0-based, ascending and disjoint; a coding sequence may have
            several spans.
        kind: Its type, the third column of a GFF; empty in a BED file.
        strand: + or -, or . if the file does not say.
    """

    name: str
    contig: str
    spans: tuple[tuple[int, int], ...]
    kind: str = ""
    strand: str = "."

    @property
    def start(self) -> int:
        """Its first base, 0-based."""
        return self.spans[0][0]

    @property
    def end(self) -> int:
        """One past its last base, 0-based."""
        return self.spans[-1][1]


def is_gff(path: Path) -> bool:
    """Whether the name of a file says GFF3 or GTF."""
    return not {suffix.lower() for suffix in path.suffixes[-2:]}.isdisjoint(_GFF)


def read_features(path: Path | str, kind: str | None = None) -> list[Feature]:
    """Read a GFF3 or GTF file (recognised by its name) or else a BED file; .gz is read too.

    Args:
        path: The file. Lines of a GFF3 with the same ID and type are one feature.
        kind: Only features of this type (the third column of a GFF).

    Raises:
        UserError: The file cannot be read, a line is not valid, or there is no feature.
    """
    path = Path(path)
    if is_gff(path):
        found = _read_gff(path, kind)
    elif kind is not None:
        raise UserError(f"--feature-type {kind}: {path} is a BED file, whose lines have no type")
    else:
        found = [
            Feature(name, interval.name, ((interval.start, interval.end),), strand=strand)
            for interval, name, strand in read_bed_lines(path, Wanted.FEATURES)
        ]
    for feature in found:
        if feature.start == feature.end:
            raise UserError(f"{path}: {feature.name!r} has no bases; remove it")
    if not found:
        raise UserError(f"{path}: has no feature" + (f" of type {kind}" if kind else ""))
    return found


def locate_features(
    path: Path, genome: Reference, kind: str | None = None
) -> Iterator[tuple[Feature, Interval]]:
    """The features of a file, each with the interval of the genome from its start to its end.

    Raises:
        UserError: As `read_features`, or the genome does not have one.
    """
    for feature in read_features(path, kind):
        given = Interval(feature.contig, feature.start, feature.end)
        yield feature, genome.resolve(given, f"{path}: {given}")


def _read_gff(path: Path, kind: str | None) -> list[Feature]:
    grouped: dict[tuple[str, ...], list[GffLine]] = {}
    for line in read_gff_lines(path, Wanted.FEATURES):
        if kind not in (None, line.kind):
            continue
        name = next((line.attributes[key] for key in _NAMES if key in line.attributes), None)
        # Lines are joined by their ID only; a line without one is a feature of its own.
        own = line.kind if "ID" in line.attributes else f"{line.kind} {line.number}"
        grouped.setdefault((name or str(line.interval), line.interval.name, own), []).append(line)
    return [
        Feature(
            name,
            contig,
            tuple(zip(*merged([(p.interval.start, p.interval.end) for p in parts]), strict=True)),
            parts[0].kind,
            parts[0].strand,
        )
        for (name, contig, _), parts in grouped.items()
    ]


class GffLine(NamedTuple):
    """A feature line of a GFF3 or GTF; `number` is 1-based."""

    number: int
    interval: Interval
    kind: str
    strand: str
    attributes: dict[str, str]


def read_gff_lines(path: Path, wanted: Wanted = Wanted.GFF) -> Iterator[GffLine]:
    """Stream the feature lines of a GFF3 or GTF file; .gz is read too.

    Args:
        path: The file.
        wanted: What to ask for if it is of another format.

    Raises:
        UserError: The file cannot be read, or a line is not valid.
    """
    is_first = True
    with numbered_lines(path) as lines:
        for number, line in lines:
            text = line.decode(errors="surrogateescape").rstrip("\r\n")
            if text.startswith("##FASTA") or (text.startswith(">") and not is_first):
                return
            if not text.strip() or text.startswith("#"):
                if number == 1:
                    refuse_other(path, line, wanted, GFF)
                continue
            columns = text.split("\t")
            try:
                if len(columns) != _COLUMNS:
                    raise ValueError
                interval = Interval(columns[0], int(columns[3]) - 1, int(columns[4]))
            except ValueError:
                if is_first:
                    refuse_other(path, line, wanted, GFF, TABLE)
                raise UserError(
                    f"{path}: line {number}: {text[:40]!r} is not a GFF line: it needs "
                    f"{_COLUMNS} columns separated by tabs; 4 and 5 are start (1-based) and end"
                ) from None
            is_first = False
            strand = columns[6] if columns[6] in ("+", "-") else "."
            yield GffLine(number, interval, columns[2], strand, _attributes(columns[8]))


def _attributes(text: str) -> dict[str, str]:
    """`ID=x;Name=y` of GFF3, or `gene_id "x"; transcript_id "y"` of GTF."""
    found = {}
    for entry in text.split(";"):
        word = entry.strip()
        separator = "=" if "=" in word.partition('"')[0] else " "
        key, _, value = word.partition(separator)
        if key:
            found[key] = unquote(value) if separator == "=" else value.strip().strip('"')
    return found
