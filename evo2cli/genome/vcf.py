"""VCF as text: records pass through byte for byte, and only INFO fields are added.

Lines are never serialised again, so floats, genotypes, samples, line ends and unusual headers stay
as written. Lines are bytes. POS is 1-based only in a line; `VariantRecord.start` is 0-based. A BCF
is read as the VCF text that htslib writes for it.
"""

import re
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Self

from evo2cli.errors import UserError, counted
from evo2cli.genome.alphabet import ACGT, LETTERS, RNA_LETTERS
from evo2cli.genome.formats import VCF, Wanted, refuse_other
from evo2cli.genome.htslib import BCF_MAGIC, read_bcf, read_bcf_spans, read_vcf_spans
from evo2cli.genome.interval import Interval
from evo2cli.genome.regions import Regions
from evo2cli.genome.source import (
    BYTE_ORDER_MARK,
    closed_at_error,
    first_bytes,
    read_lines,
    then_close,
)

OUR_PREFIX = b"EVO2_"  # of every INFO field that we add
_SCORED_BEFORE = "has EVO2_ fields of an earlier run; score the original file"
FIRST_COLUMNS = 8  # CHROM POS ID REF ALT QUAL FILTER INFO; FORMAT and samples may follow
_CONTIG_NAME, _CONTIG_LENGTH = re.compile(rb"[<,]ID=([^,>]+)"), re.compile(rb"[<,]length=(\d+)")
_POSITION_DIGITS = 18
_BASES = re.compile(rb"[Uu%b]+" % LETTERS)

Value = str | int | float | None  # a cell of a table


class Status(StrEnum):
    """The values of EVO2_STATUS; several values of a scored allele are joined by `&`.

    Attributes:
        meaning: Explanation; empty for OK.
        is_scored: Whether the allele has a score.
    """

    meaning: str
    is_scored: bool

    OK = "OK", "", True
    EDGE = "EDGE", "the end of a contig moved or shortened the windows", True
    NONACGT = "NONACGT", "the windows hold letters other than ACGT", True
    SWAPPED = "SWAPPED", "the reference has ALT, and REF was scored as the change", True
    NOISE = "NOISE", "EVO2_DELTA is smaller than the measured rounding noise", True
    NO_ALT = "NO_ALT", "no alternate allele (.)", False
    STAR = "STAR", "allele deleted by another record (*)", False
    SYMBOLIC = "SYMBOLIC", "symbolic allele, e.g. <DEL>", False
    BREAKEND = "BREAKEND", "breakend, which joins two positions", False
    INVALID_ALLELE = "INVALID_ALLELE", "REF or ALT is not written in bases", False
    AMBIGUOUS_ALLELE = "AMBIGUOUS_ALLELE", "REF or ALT has a letter other than ACGT", False
    CONTIG_MISSING = "CONTIG_MISSING", "the reference has no such contig", False
    OUT_OF_RANGE = "OUT_OF_RANGE", "outside its contig", False
    REF_MISMATCH = "REF_MISMATCH", "REF is not what the reference has there", False
    NOT_SNV = "NOT_SNV", "not one base for another, which --score next-base needs", False
    NO_CONTEXT = "NO_CONTEXT", "no base before it, which --score next-base needs", False
    TOO_LONG = "TOO_LONG", "an allele is longer than half a window", False

    def __new__(cls, word: str, meaning: str, is_scored: bool) -> Self:
        """Create a member with its two attributes."""
        status = str.__new__(cls, word)
        status._value_ = word
        status.meaning, status.is_scored = meaning, is_scored
        return status


def split_status(text: str) -> list[Status]:
    """The values in an EVO2_STATUS."""
    return [Status[word] for word in text.split("&")]


def is_scored(text: str) -> bool:
    """Whether an allele with this EVO2_STATUS has a score."""
    return all(status.is_scored for status in split_status(text))


def add_status(text: str, added: Status) -> str:
    """Add a value to the EVO2_STATUS of a scored allele; it replaces OK."""
    return "&".join([*(each for each in split_status(text) if each is not Status.OK), added])


class Kind(StrEnum):
    """The kinds of variants."""

    SNV = "SNV"
    MNV = "MNV"
    INSERTION = "insertion"
    DELETION = "deletion"


def kind_of(reference: str | bytes, alternate: str | bytes) -> Kind:
    """The kind of an allele, from the lengths of REF and ALT."""
    growth = len(alternate) - len(reference)
    if growth:
        return Kind.INSERTION if growth > 0 else Kind.DELETION
    return Kind.SNV if len(reference) == 1 else Kind.MNV


def is_bases(allele: bytes) -> bool:
    """Whether an allele is written in bases, IUPAC codes included, in any case."""
    return _BASES.fullmatch(allele) is not None


def is_ambiguous(allele: bytes) -> bool:
    """Whether an allele that is written in bases has letters other than A, C, G, T and U."""
    return bool(allele.upper().translate(None, ACGT + RNA_LETTERS))


def allele_status(allele: bytes) -> Status:
    """The status of an ALT allele: OK if it is written in A, C, G, T and U, otherwise why not."""
    if is_bases(allele):
        return Status.AMBIGUOUS_ALLELE if is_ambiguous(allele) else Status.OK
    if allele == b".":
        return Status.NO_ALT
    if allele == b"*":
        return Status.STAR
    if allele.startswith(b"<") and allele.endswith(b">"):
        return Status.SYMBOLIC
    # A mate in brackets; or a single breakend, with a dot on its open side.
    if b"[" in allele or b"]" in allele or is_bases(allele.strip(b".")):
        return Status.BREAKEND
    return Status.INVALID_ALLELE


@dataclass(frozen=True, slots=True)
class VariantRecord:
    """A record: a line after the header of a VCF, or a row of a table.

    Attributes:
        line: The whole line with its line end.
        contig: CHROM.
        start: 0-based position of the first base of REF; -1 for POS 0, a telomere.
        identifier: ID.
        reference: REF as written.
        alternates: ALT split at commas; empty for a blank line, which is only passed through.
        others: Cells of the further columns of a table; empty for a VCF.
        sequences: The sequences with REF and with ALT, if a table has them.
    """

    line: bytes = field(repr=False)
    contig: str
    start: int
    identifier: str
    reference: bytes
    alternates: tuple[bytes, ...]
    others: tuple[Value, ...] = ()
    sequences: tuple[bytes, bytes] | None = None

    @classmethod
    def from_columns(
        cls,
        contig: str,
        position: int,
        reference: str,
        alternates: str,
        *,
        identifier: str = ".",
        others: tuple[Value, ...] = (),
        sequences: tuple[bytes, bytes] | None = None,
    ) -> "VariantRecord":
        """Create a record; `position` is 1-based, and commas separate `alternates`."""
        text = f"{contig}\t{position}\t{identifier}\t{reference}\t{alternates}\t.\t.\t.\n"
        return cls(
            text.encode(errors="surrogateescape"),
            contig,
            position - 1,
            identifier,
            reference.encode(errors="surrogateescape"),
            tuple(alternates.encode(errors="surrogateescape").split(b",")),
            others,
            sequences,
        )

    def __str__(self) -> str:
        alleles = self.reference + b">" + b",".join(self.alternates)
        return f"{self.contig}:{self.start + 1} {alleles.decode(errors='replace')}"

    @property
    def end(self) -> int:
        """Position after the last base of REF, 0-based."""
        return self.start + len(self.reference)

    @property
    def quality(self) -> float | None:
        """QUAL; None if it is missing.

        Raises:
            ValueError: It is not a number.
        """
        text = self.line.split(b"\t", FIRST_COLUMNS)[5]
        return None if text == b"." else float(text)

    @property
    def passes(self) -> bool:
        """Whether FILTER is PASS."""
        return self.line.split(b"\t", FIRST_COLUMNS)[6] == b"PASS"

    def with_info(self, info: str) -> bytes:
        """The line with `info` appended to INFO and otherwise unchanged."""
        text = self.line.rstrip(b"\r\n")
        columns = text.split(b"\t", FIRST_COLUMNS)
        kept = b"" if columns[7] == b"." else columns[7] + b";"
        columns[7] = kept + info.encode()
        return b"\t".join(columns) + self.line[len(text) :]


@dataclass(frozen=True)
class Header:
    """The header lines; `#CHROM` is the last one."""

    lines: tuple[bytes, ...]

    @property
    def num_columns(self) -> int:
        """Number of columns in the `#CHROM` line."""
        return self.lines[-1].rstrip().count(b"\t") + 1

    def value(self, key: str) -> str | None:
        """The value of the first `##key=` line; None without one."""
        start = f"##{key}=".encode()
        for line in self.lines:
            if line.startswith(start):
                return line[len(start) :].decode(errors="surrogateescape").strip()
        return None

    def contig_lengths(self) -> dict[str, int]:
        """Lengths of contigs by name, from the `##contig` lines that have a length."""
        lengths = {}
        for line in self.lines:
            name, length = _CONTIG_NAME.search(line), _CONTIG_LENGTH.search(line)
            if line.startswith(b"##contig=<") and name and length:
                lengths[name[1].decode(errors="surrogateescape")] = int(length[1])
        return lengths

    def with_lines(self, added: Iterable[str]) -> bytes:
        """The header with further lines before `#CHROM`, with the same line ends."""
        end = b"\r\n" if self.lines[-1].endswith(b"\r\n") else b"\n"
        ours = [line.encode(errors="surrogateescape") + end for line in added]
        return b"".join([*self.lines[:-1], *ours, self.lines[-1]])


@dataclass(frozen=True)
class VariantFile:
    """An open VCF: its header, and an iterator over its records."""

    header: Header
    records: Iterator[VariantRecord]


def is_variants(path: Path) -> bool:
    """Whether a file is a VCF or BCF, by its first bytes; stdin is not consumed.

    Raises:
        UserError: The file cannot be read, or is empty.
    """
    start = first_bytes(path).removeprefix(BYTE_ORDER_MARK)
    if not start:
        raise UserError(f"{path}: is empty")
    return start.startswith((BCF_MAGIC, b"##", b"#CHROM")) and not start.startswith(b"##gff")


def read_vcf_lines(path: Path) -> Generator[bytes, None, None]:
    """Stream the lines of a VCF, or the lines that htslib writes for a BCF.

    Raises:
        UserError: The file cannot be read, is damaged or incomplete.
    """
    return read_bcf(path) if first_bytes(path).startswith(BCF_MAGIC) else read_lines(path)


def read_vcf(path: Path | str, *, scored: bool = False) -> VariantFile:
    """Open a VCF (plain, gzip, bgzip or bzip2; `-` is stdin) or BCF and read its header.

    Args:
        path: The file.
        scored: Whether it may have been scored before.

    Raises:
        UserError: Here or while records are read: the file or one of its lines is not VCF, or has
            EVO2_ fields although `scored` is false.
    """
    path = Path(path)
    source = read_vcf_lines(path)
    lines = enumerate(source, start=1)
    with closed_at_error(source):
        header = _read_header(path, lines, scored=scored)
    records = _read_records(path, header.num_columns, lines, scored=scored)
    return VariantFile(header, then_close(source, records))


def read_vcf_by_index(path: Path, index: Path, regions: Regions) -> VariantFile:
    """As `read_vcf`, but read only the records in or near regions, in the order of the file.

    Lines have the bytes of the file, except that all have the line end of the header.

    Args:
        path: Sorted VCF compressed with bgzip, or a BCF.
        index: Its index.
        regions: All records that overlap them are read, and some others close to them.

    Raises:
        UserError: As `read_vcf`; or the index cannot be read.
    """
    header = read_vcf(path).header
    if first_bytes(path).startswith(BCF_MAGIC):
        lines = read_bcf_spans(path, index, regions)
    else:
        line_end = b"\r\n" if header.lines[-1].endswith(b"\r\n") else b"\n"
        lines = read_vcf_spans(path, index, regions, line_end)
    return VariantFile(header, then_close(lines, _read_spans(path, header.num_columns, lines)))


def _read_spans(
    path: Path, num_columns: int, lines: Iterable[tuple[Interval, bytes]]
) -> Iterator[VariantRecord]:
    """The records of each span, without those that overlap the previous span as well."""
    previous = current = Interval("", 0, 0)
    for span, line in lines:
        if span is not current:
            previous, current = current, span
        try:
            record = read_line(line, num_columns)
        except ValueError as error:
            raise UserError(f"{path}: a line of {span.name}: {error}") from None
        if span.name == previous.name and record.start < previous.end:
            continue
        # For htslib a record ends at its END or SVLEN, here at the end of its REF.
        if record.end > span.start:
            yield record


def _read_header(path: Path, lines: Iterator[tuple[int, bytes]], *, scored: bool) -> Header:
    """Read the header from numbered lines.

    Raises:
        UserError: It is not a header of a VCF, or has EVO2_ fields although `scored` is false.
    """
    header: list[bytes] = []
    for number, line in lines:
        header.append(line)
        if b"ID=" + OUR_PREFIX in line and not scored:
            raise UserError(f"{path}: line {number}: {_SCORED_BEFORE}")
        if line.startswith(b"##") or (number == 1 and line.startswith(BYTE_ORDER_MARK)):
            continue
        if line.startswith(b"#CHROM\t") and line.count(b"\t") >= FIRST_COLUMNS - 1:
            return Header(tuple(header))
        refuse_other(path, b"".join(header), Wanted.VCF, VCF)
        raise UserError(
            f"{path}: line {number} is neither a ## line nor #CHROM with at least "
            f"{FIRST_COLUMNS} columns separated by tabs"
        )
    raise UserError(f"{path}: the header has no #CHROM line, so the VCF is incomplete")


def _read_records(
    path: Path, num_columns: int, lines: Iterator[tuple[int, bytes]], *, scored: bool
) -> Iterator[VariantRecord]:
    """Parse numbered lines; a blank line becomes a record without alleles."""
    for number, line in lines:
        try:
            record = read_line(line, num_columns, scored=scored)
        except ValueError as error:
            raise UserError(f"{path}: line {number}: {error}") from None
        yield record


def read_line(
    line: bytes, num_columns: int = FIRST_COLUMNS, *, scored: bool = False
) -> VariantRecord:
    """Parse one line after the header; a blank line becomes a record without alleles.

    Raises:
        ValueError: It is not a record with `num_columns` columns, or has EVO2_ fields although
            `scored` is false.
    """
    if line.isspace():
        return VariantRecord(line, "", 0, "", b"", ())
    columns = line.split(b"\t", FIRST_COLUMNS)
    count = len(columns) + (columns[-1].count(b"\t") if len(columns) > FIRST_COLUMNS else 0)
    if count < num_columns:
        raise ValueError(
            f"{counted(count, 'column')} separated by tabs, but #CHROM names {num_columns}"
        )
    contig, position, identifier, reference, alternates, _, _, info = columns[:FIRST_COLUMNS]
    if not is_position(position):
        raise ValueError(f"POS {position[:40].decode(errors='replace')!r} is not a whole number")
    has_prefix = OUR_PREFIX in info and not scored
    if has_prefix and any(field.startswith(OUR_PREFIX) for field in info.split(b";")):
        raise ValueError(_SCORED_BEFORE)
    return VariantRecord(
        line,
        contig.decode(errors="surrogateescape"),
        int(position) - 1,
        identifier.decode(errors="surrogateescape"),
        reference,
        tuple(alternates.split(b",")),
    )


def is_position(text: bytes) -> bool:
    """Whether a text is a natural number that fits into 64 bits."""
    return text.isdigit() and len(text) <= _POSITION_DIGITS
