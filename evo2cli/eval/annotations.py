"""Read variants with their INFO values from a VCF, BCF or table, scored or not.

`evo2cli.genome.vcf`, in contrast, reads VCFs to be rewritten and refuses those that have scores.
"""

import math
import re
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from evo2cli.errors import UserError, listed
from evo2cli.genome.formats import VCF, Wanted, refuse_other
from evo2cli.genome.source import first_bytes
from evo2cli.genome.variant_table import VariantTable, is_table, read_table
from evo2cli.genome.vcf import is_variants, read_vcf_lines
from evo2cli.tables import LARGEST

_COLUMNS = 8  # CHROM POS ID REF ALT QUAL FILTER INFO
_DECLARED = re.compile(r'##INFO=<ID=([^,>]+),Number=([^,>]+),.*?Description="(.*)"')


@dataclass(frozen=True, slots=True)
class Declaration:
    """Number and Description of an INFO key, as the header declares them."""

    number: str
    description: str


@dataclass(frozen=True, slots=True)
class Annotated:
    """A variant record and its INFO values.

    Attributes:
        contig: CHROM.
        start: 0-based position of the first base of REF.
        reference: REF.
        alternates: Alleles of ALT.
        info: Values by INFO key, or by column of a table, as text; "" for a flag.
        identifier: ID; "." if there is none.
    """

    contig: str
    start: int
    reference: str
    alternates: tuple[str, ...]
    info: dict[str, str]
    identifier: str = "."

    def values(self, key: str, declared: Declaration | None) -> list[str | None]:
        """The value of each alternate allele; None where it is missing or a dot.

        If there is not one value per allele, all alleles share the whole value.
        """
        text = self.info.get(key)
        if text is None or text == ".":
            return [None] * len(self.alternates)
        parts: list[str | None] = list(text.split(","))
        if declared is not None and declared.number == "R":
            parts = parts[1:]
        elif declared is not None and declared.number not in ("A", "."):
            parts = [text]
        if len(parts) != len(self.alternates):
            parts = [text] * len(self.alternates)
        return [None if part == "." else part for part in parts]

    def number(self, key: str, text: str | None) -> float:
        """Convert one of the `values` to a number; None is NaN.

        Raises:
            UserError: It is not a number between -`LARGEST` and `LARGEST`.
        """
        if text is None:
            return math.nan
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not abs(value) <= LARGEST:
            raise UserError(
                f"{self.contig}:{self.start + 1}: {key}={text[:40]} is not a finite number of at "
                f"most {LARGEST:g}; score the variants again (evo2 score)"
            )
        return value


@dataclass
class AnnotatedHeader:
    """The header of a VCF or table.

    Attributes:
        place: What holds the values of a record, for error messages: "INFO" or "the table".
        meta: Values of `##key=value` lines; the last one of each key.
        declared: Declarations of INFO keys, or of the columns of a table.
    """

    place: str = "INFO"
    meta: dict[str, str] = field(default_factory=dict)
    declared: dict[str, Declaration] = field(default_factory=dict)


@dataclass
class AnnotatedFile(AnnotatedHeader):
    """A VCF or a table in memory.

    Attributes:
        records: Records in the order of the file.
    """

    records: list[Annotated] = field(default_factory=list)

    def has(self, key: str) -> bool:
        """Whether any record has the key."""
        return any(key in record.info for record in self.records)

    def keys(self) -> list[str]:
        """Keys of the records, in order of appearance."""
        return list(dict.fromkeys(key for record in self.records for key in record.info))


def missing_key(source: Path, place: str, key: str, known: Iterable[str], option: str) -> UserError:
    """Create the error for a key that no record has.

    Args:
        source: The file.
        place: As in `AnnotatedHeader`.
        key: The missing key.
        known: Existing keys.
        option: The option that selects the key.
    """
    return UserError(
        f"{source}: no record has {key} in {place}, which holds {listed(known, 12)}; choose "
        f"another with {option}"
    )


def read_annotated(path: Path, *, shift: int = 0) -> AnnotatedFile:
    """Read a VCF, BCF or table in the formats of `evo2 score`; `-` is stdin.

    Args:
        path: The file.
        shift: Number to add to every position of a table.

    Raises:
        UserError: The file cannot be read, or is none of these.
    """
    with open_annotated(path, shift=shift) as (header, records):
        return AnnotatedFile(header.place, header.meta, header.declared, list(records))


@contextmanager
def open_annotated(
    path: Path, *, shift: int = 0
) -> Iterator[tuple[AnnotatedHeader, Iterator[Annotated]]]:
    """As `read_annotated`, but yield the header and an iterator over the records.

    Raises:
        UserError: As in `read_annotated`, here or while the records are read.
    """
    if is_table(path):
        table = read_table(path, shift=shift)
        declared = dict.fromkeys(table.others, Declaration("1", ""))
        yield AnnotatedHeader("the table", declared=declared), _read_rows(table)
        return
    if not is_variants(path):
        refuse_other(path, first_bytes(path).lstrip(), Wanted.VARIANTS)
        raise UserError(f"{path}: is neither a VCF nor a table of variants")
    with closing(read_vcf_lines(path)) as lines:
        numbered = enumerate((line.decode(errors="replace").rstrip("\r\n") for line in lines), 1)
        header = _read_header(path, numbered)
        yield header, (_parse_record(path, *line) for line in numbered if line[1].strip())


def _read_header(path: Path, lines: Iterator[tuple[int, str]]) -> AnnotatedHeader:
    """Read up to the line of column names."""
    header = AnnotatedHeader()
    for number, text in lines:
        if text.startswith("#CHROM\t"):
            return header
        if not text.lstrip("\ufeff").startswith("##"):
            refuse_other(path, text.encode(), Wanted.VARIANTS, VCF)
            raise UserError(f"{path}: line {number} is neither a ## line nor #CHROM; not a VCF")
        _parse_header_line(header, text)
    raise UserError(f"{path}: has no #CHROM line, so this is not a complete VCF")


def _read_rows(table: VariantTable) -> Generator[Annotated, None, None]:
    """Yield the rows of a table; all alleles of a row share the value of a cell."""
    for record in table.records:
        cells = zip(table.others, record.others, strict=True)
        info = {name: str(cell) for name, cell in cells if cell not in (None, "")}
        reference, *alternates = (
            allele.decode(errors="replace") for allele in (record.reference, *record.alternates)
        )
        yield Annotated(
            record.contig, record.start, reference, tuple(alternates), info, record.identifier
        )


def _parse_header_line(header: AnnotatedHeader, line: str) -> None:
    if declared := _DECLARED.match(line):
        header.declared[declared[1]] = Declaration(declared[2], declared[3])
        return
    key, _, value = line[2:].partition("=")
    if not value.startswith("<"):
        header.meta[key] = value


def _parse_record(path: Path, number: int, line: str) -> Annotated:
    columns = line.split("\t", _COLUMNS)
    if len(columns) < _COLUMNS or not columns[1].isdigit():
        raise UserError(
            f"{path}: line {number}: not a record of {_COLUMNS} columns with a whole number as POS"
        )
    info = {}
    for entry in columns[7].split(";"):
        key, _, value = entry.partition("=")
        if key not in ("", "."):
            info[key] = value
    alternates = tuple(columns[4].split(","))
    return Annotated(columns[0], int(columns[1]) - 1, columns[3], alternates, info, columns[2])
