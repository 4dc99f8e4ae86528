"""Variants and what is known of them, read into memory; they may be scored or not.

`evo2cli.genome.vcf` reads VCFs that will be written again, and refuses those that were scored.
"""

import re
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from evo2cli.errors import UserError
from evo2cli.genome.formats import recognised
from evo2cli.genome.source import first_bytes
from evo2cli.genome.variant_table import is_table, read_table
from evo2cli.genome.vcf import is_variants, read_vcf_lines

_COLUMNS = 8  # CHROM POS ID REF ALT QUAL FILTER INFO
_DECLARED = re.compile(r'##INFO=<ID=([^,>]+),Number=([^,>]+),.*?Description="(.*)"')


@dataclass(frozen=True, slots=True)
class Declaration:
    """Number and Description of an INFO key, as the header declares them."""

    number: str
    description: str


@dataclass(frozen=True, slots=True)
class Annotated:
    """A record and its INFO values.

    Attributes:
        contig: CHROM.
        start: 0-based position of the first base of REF.
        reference: REF.
        alternates: Alleles of ALT.
        info: Values by INFO key, or by column of a table, as text; "" for a flag.
    """

    contig: str
    start: int
    reference: str
    alternates: tuple[str, ...]
    info: dict[str, str]

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


@dataclass
class AnnotatedFile:
    """A VCF or a table in memory.

    Attributes:
        place: Where the values of a record stand: INFO, or the table.
        meta: Values of `##key=value` lines; the last one of each key.
        declared: Declarations of INFO keys.
        records: Records in the order of the file.
    """

    place: str = "INFO"
    meta: dict[str, str] = field(default_factory=dict)
    declared: dict[str, Declaration] = field(default_factory=dict)
    records: list[Annotated] = field(default_factory=list)

    def has(self, key: str) -> bool:
        """Whether any record has a value for the key."""
        return any(key in record.info for record in self.records)

    def keys(self) -> list[str]:
        """Keys of the records, in order of appearance."""
        return list(dict.fromkeys(key for record in self.records for key in record.info))


def read_annotated(path: Path, *, shift: int = 0) -> AnnotatedFile:
    """Read a VCF, BCF or table, each as `evo2 score` reads it; `-` is stdin.

    Args:
        path: The file.
        shift: What to add to every position of a table.

    Raises:
        UserError: The file cannot be read, or is none of these.
    """
    if is_table(path):
        return _read_table(path, shift)
    if not is_variants(path):
        verdict = recognised(first_bytes(path).lstrip())
        raise UserError(f"{path}: {verdict or 'is neither a VCF nor a table of variants'}")
    file, in_body = AnnotatedFile(), False
    with closing(read_vcf_lines(path)) as lines:
        for number, line in enumerate(lines, start=1):
            text = line.decode(errors="replace").rstrip("\r\n")
            if in_body:
                if text.strip():
                    file.records.append(_parse_record(path, number, text))
            elif text.startswith("#CHROM\t"):
                in_body = True
            elif text.lstrip("\ufeff").startswith("##"):
                _parse_header_line(file, text)
            else:
                raise UserError(f"{path}: line {number} is neither a ## line nor #CHROM; not a VCF")
    if not in_body:
        raise UserError(f"{path}: has no #CHROM line, so this is not a complete VCF")
    return file


def _read_table(path: Path, shift: int) -> AnnotatedFile:
    """All rows of a table; a cell holds one value, which all alleles of the row share."""
    table = read_table(path, shift=shift)
    file = AnnotatedFile("the table", declared=dict.fromkeys(table.others, Declaration("1", "")))
    for record in table.records:
        cells = zip(table.others, record.others, strict=True)
        info = {name: str(cell) for name, cell in cells if cell not in (None, "")}
        reference, *alternates = (
            allele.decode(errors="replace") for allele in (record.reference, *record.alternates)
        )
        file.records.append(
            Annotated(record.contig, record.start, reference, tuple(alternates), info)
        )
    return file


def _parse_header_line(file: AnnotatedFile, line: str) -> None:
    if declared := _DECLARED.match(line):
        file.declared[declared[1]] = Declaration(declared[2], declared[3])
        return
    key, _, value = line[2:].partition("=")
    if not value.startswith("<"):
        file.meta[key] = value


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
    return Annotated(columns[0], int(columns[1]) - 1, columns[3], alternates, info)
