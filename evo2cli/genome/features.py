"""Features of a genome, from BED, GFF3 or GTF files."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

from evo2cli.errors import UserError
from evo2cli.genome.formats import GFF, TABLE, Wanted, refuse_other
from evo2cli.genome.interval import Interval
from evo2cli.genome.reference import Reference
from evo2cli.genome.regions import merge_spans, read_bed_lines
from evo2cli.genome.source import numbered_lines

_GFF = (".gff", ".gff3", ".gtf")
_COLUMNS = 9
_NAMES = ("ID", "exon_id", "transcript_id", "gene_id", "Name")  # the first that is present
_GTF_ATTRIBUTE = re.compile(r'([^\s;]++)\s*+(?:"([^"]*+)"|([^;"]*+))\s*+(?:;|$)')


@dataclass(frozen=True)
class Feature:
    """A named part of a contig, e.g. an exon or a coding sequence.

    Attributes:
        name: Its name in the file, or `chr:start-end`.
        contig: Name of its contig.
        spans: Intervals [start, end) of its bases, 0-based, ascending and disjoint; a coding
            sequence may have several.
        kind: Its type, the third column of a GFF; empty for a BED file.
        strand: + or -; . if unknown.
    """

    name: str
    contig: str
    spans: tuple[tuple[int, int], ...]
    kind: str = ""
    strand: str = "."

    @property
    def start(self) -> int:
        """Position of its first base, 0-based."""
        return self.spans[0][0]

    @property
    def end(self) -> int:
        """Position after its last base, 0-based."""
        return self.spans[-1][1]


def is_gff(path: Path) -> bool:
    """Whether a file has a suffix of GFF3 or GTF, e.g. .gff3.gz."""
    return not {suffix.lower() for suffix in path.suffixes[-2:]}.isdisjoint(_GFF)


def read_features(path: Path | str, kind: str | None = None) -> list[Feature]:
    """Read a GFF3 or GTF file (recognised by its name) or else a BED file; .gz is read too.

    Args:
        path: The file. Lines of a GFF3 with the same ID and type are one feature.
        kind: Only return features of this type, the third column of a GFF.

    Raises:
        UserError: The file cannot be read, a line is not valid, or there is no feature.
    """
    path = Path(path)
    if is_gff(path):
        features = _read_gff(path, kind)
    elif kind is not None:
        raise UserError(f"--feature-type {kind}: {path} is a BED file, whose lines have no type")
    else:
        features = [
            Feature(name, interval.name, ((interval.start, interval.end),), strand=strand)
            for interval, name, strand in read_bed_lines(path, Wanted.FEATURES)
        ]
    for feature in features:
        if feature.start == feature.end:
            raise UserError(f"{path}: {feature.name!r} has no bases; remove it")
    if not features:
        raise UserError(f"{path}: has no feature" + (f" of type {kind}" if kind else ""))
    return features


def locate_features(
    path: Path, genome: Reference, kind: str | None = None
) -> Iterator[tuple[Feature, Interval]]:
    """Yield the features of a file, each with its interval of the genome from start to end.

    Raises:
        UserError: As `read_features`; or a feature is not in the genome.
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
        # Only lines with the same ID are joined; a line without an ID is a feature by itself.
        group = line.kind if "ID" in line.attributes else f"{line.kind} {line.number}"
        key = (name or str(line.interval), line.interval.name, group)
        grouped.setdefault(key, []).append(line)
    return [
        Feature(
            name,
            contig,
            tuple(merge_spans((line.interval.start, line.interval.end) for line in lines)),
            lines[0].kind,
            lines[0].strand,
        )
        for (name, contig, _), lines in grouped.items()
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
    """Parse `ID=x;Name=y` of GFF3, or `gene_id "x"; note "y; z"` of GTF."""
    if "=" in text.partition('"')[0]:
        pairs = (entry.strip().partition("=") for entry in text.split(";"))
        return {key: unquote(value) for key, _, value in pairs if key}
    return {key: quoted or plain.strip() for key, quoted, plain in _GTF_ATTRIBUTE.findall(text)}
