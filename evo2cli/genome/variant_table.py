"""Variants from a table: TSV, CSV or Parquet with the columns chrom, pos, ref and alt.

Columns may come in any order and case, and the header may begin with `#`. A column `id` is read,
too; all others are carried through. In the file positions are 1-based, alleles are anchored and
alternates are separated by commas, as in a VCF.
"""

import csv
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evo2cli.errors import UserError
from evo2cli.genome.parquet import PARQUET_MAGIC, read_parquet
from evo2cli.genome.source import first_bytes, read_lines
from evo2cli.genome.vcf import BYTE_ORDER_MARK, Value, VariantRecord

KEYS = ("chrom", "pos", "ref", "alt")
IDENTIFIER = "id"
_OF_A_VCF = {"filter", "info"}  # with these too, it is a VCF that has lost its ## lines
_ENOUGH = 2  # of the four names make a file a table


@dataclass(frozen=True)
class VariantTable:
    """A table that is being read.

    Attributes:
        others: Names of the columns that are carried through, and the types of their cells.
        records: A record for each row, read as they are needed.
    """

    others: Mapping[str, type]
    records: Iterator[VariantRecord]


def is_table(path: Path) -> bool:
    """Whether a file is a table of variants, by its first bytes; stdin is not consumed.

    Raises:
        UserError: The file cannot be read.
    """
    start = first_bytes(path).removeprefix(BYTE_ORDER_MARK)
    if start.startswith(PARQUET_MAGIC):
        return True
    if start.startswith(b"##fileformat=VCF"):
        return False
    for line in start.splitlines():
        if line.strip() and not line.startswith(b"##"):
            names = {name.lower() for name in _names(_decoded(line))}
            return len(names.intersection(KEYS)) >= _ENOUGH and not names >= _OF_A_VCF
    return False


def read_table(path: Path | str) -> VariantTable:
    """Open a table (text may be compressed; `-` is stdin) and read its header.

    Raises:
        UserError: Here or while records are read: a column is missing, or a row is not a variant.
    """
    path = Path(path)
    if first_bytes(path).startswith(PARQUET_MAGIC):
        types, stored = read_parquet(path)
        columns = _Columns(path, list(types))
        return VariantTable(
            {name: types[name] for name in columns.others},
            _then_close(stored, _read_records(path, columns, enumerate(stored, start=1), "row")),
        )
    source = read_lines(path)
    lines = enumerate(map(_decoded, source), start=1)
    for number, line in lines:
        if line.strip() and not line.startswith("##"):
            columns = _Columns(path, _names(line))
            rows = _split((text for _, text in lines), _delimiter(line), first=number + 1)
            return VariantTable(
                dict.fromkeys(columns.others, str),
                _then_close(source, _read_records(path, columns, rows, "line")),
            )
    raise UserError(f"{path}: has no line with the names of columns")


class _Columns:
    """The index of each column in a row."""

    def __init__(self, path: Path, names: Sequence[str]) -> None:
        lower = [name.lower() for name in names]
        for key in KEYS:
            if lower.count(key) != 1:
                count = "no column" if key not in lower else "more than one column"
                raise UserError(f"{path}: has {count} {key!r}; its columns: {', '.join(names)}")
        self.keys = [lower.index(key) for key in KEYS]
        self.identifier = lower.index(IDENTIFIER) if IDENTIFIER in lower else None
        taken = {*self.keys, self.identifier}
        self.others = {name: i for i, name in enumerate(names) if i not in taken}
        self.num = len(names)
        if len(self.others) + len(taken - {None}) != self.num:
            raise UserError(f"{path}: two columns have the same name: {', '.join(names)}")

    def record(self, row: Sequence[Value]) -> VariantRecord:
        """Read a row.

        Raises:
            ValueError: It is not a variant.
        """
        if len(row) != self.num:
            raise ValueError(f"{len(row)} columns, but the first line names {self.num}")
        contig, position, reference, alternates = (_text(row[index]) for index in self.keys)
        for name, text in (("chrom", contig), ("ref", reference), ("alt", alternates)):
            if not text:
                raise ValueError(f"{name} is empty; write a missing allele as .")
        if not (position.isascii() and position.isdigit() and int(position) > 0):
            raise ValueError(f"pos {position!r} is not a 1-based position (add 1 to 0-based ones)")
        identifier = _text(row[self.identifier]) if self.identifier is not None else ""
        return VariantRecord.from_columns(
            contig,
            int(position),
            reference,
            alternates,
            identifier=identifier or ".",
            others=tuple(row[index] for index in self.others.values()),
        )


def _read_records(
    path: Path, columns: _Columns, rows: Iterator[tuple[int, Sequence[Value]]], unit: str
) -> Iterator[VariantRecord]:
    try:
        for number, row in rows:
            try:
                record = columns.record(row)
            except ValueError as error:
                raise UserError(f"{path}: {unit} {number}: {error}") from None
            yield record
    except csv.Error as error:
        raise UserError(f"{path}: {error}") from None


def _then_close(
    source: Generator[Any, None, None], records: Iterator[VariantRecord]
) -> Iterator[VariantRecord]:
    """The records; the file is closed at their end, and at once if one of them is not valid."""
    with closing(source):
        yield from records


def _split(lines: Iterator[str], delimiter: str, *, first: int) -> Iterator[tuple[int, list[str]]]:
    """Rows with the number of their last line; blank lines are skipped."""
    if delimiter == "\t":
        reader = csv.reader(lines, delimiter=delimiter, quoting=csv.QUOTE_NONE)
    else:
        reader = csv.reader(lines, delimiter=delimiter)
    for row in reader:
        if row:
            yield reader.line_num + first - 1, row


def _names(line: str) -> list[str]:
    text = line.strip("\r\n").removeprefix("#")
    return [name.strip().strip('"') for name in text.split(_delimiter(text))]


def _delimiter(line: str) -> str:
    return "\t" if "\t" in line else ","


def _decoded(line: bytes) -> str:
    return line.removeprefix(BYTE_ORDER_MARK).decode(errors="surrogateescape")


def _text(value: Value) -> str:
    return "" if value is None else str(value).strip()
