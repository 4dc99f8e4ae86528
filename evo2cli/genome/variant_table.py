"""Variants from a table: TSV, CSV or Parquet with the columns chrom, pos, ref and alt.

Their order and case are free, `#` may stand before the first, `id` is known too, and all other
columns ride along. Positions are 1-based and alleles anchored, as in a VCF; several alternates of
a site stand with commas.
"""

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from evo2cli.errors import UserError
from evo2cli.genome.parquet import PARQUET_MAGIC, read_parquet
from evo2cli.genome.source import first_bytes, read_lines
from evo2cli.genome.vcf import BYTE_ORDER_MARK, Value, VariantRecord

KEYS = ("chrom", "pos", "ref", "alt")
IDENTIFIER = "id"
_OF_A_VCF = {"filter", "info"}  # a table with these beside ours has lost its ## lines
_ENOUGH = 2  # of the four names, and what is meant is a table


@dataclass(frozen=True)
class VariantTable:
    """A table that is being read.

    Attributes:
        others: The columns that ride along, and what their cells are: str, int or float.
        records: A record for each row, as they come.
    """

    others: Mapping[str, type]
    records: Iterator[VariantRecord]


def is_table(path: Path) -> bool:
    """Whether a file is a table of variants, by its first bytes; stdin is not consumed.

    Raises:
        UserError: It cannot be read.
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


def read_table(path: Path) -> VariantTable:
    """Open a table (text may be packed; `-` is stdin) and read its header.

    Raises:
        UserError: Here or while records are read: a column is missing, or a row makes no variant.
    """
    if first_bytes(path).startswith(PARQUET_MAGIC):
        types, stored = read_parquet(path)
        columns = _Columns(path, list(types))
        return VariantTable(
            {name: types[name] for name in columns.others},
            _read_records(path, columns, enumerate(stored, start=1), "row"),
        )
    lines = enumerate(map(_decoded, read_lines(path)), start=1)
    for number, line in lines:
        if line.strip() and not line.startswith("##"):
            columns = _Columns(path, _names(line))
            rows = _split((text for _, text in lines), _delimiter(line), first=number + 1)
            return VariantTable(
                dict.fromkeys(columns.others, str), _read_records(path, columns, rows, "line")
            )
    raise UserError(f"{path}: has no line that names columns")


class _Columns:
    """Where in a row things stand."""

    def __init__(self, path: Path, names: Sequence[str]) -> None:
        lower = [name.lower() for name in names]
        for key in KEYS:
            if lower.count(key) != 1:
                trouble = "no column" if key not in lower else "more than one column"
                raise UserError(f"{path}: has {trouble} {key!r}; its columns: {', '.join(names)}")
        self.keys = [lower.index(key) for key in KEYS]
        self.identifier = lower.index(IDENTIFIER) if IDENTIFIER in lower else None
        taken = {*self.keys, self.identifier}
        self.others = {name: i for i, name in enumerate(names) if i not in taken}
        self.num = len(names)
        if len(self.others) + len(taken - {None}) != self.num:
            raise UserError(f"{path}: two columns have one name: {', '.join(names)}")

    def record(self, row: Sequence[Value]) -> VariantRecord:
        """Read a row.

        Raises:
            ValueError: It makes no variant.
        """
        if len(row) != self.num:
            raise ValueError(f"{len(row)} columns, but the first line names {self.num}")
        contig, position, reference, alternates = (_text(row[place]) for place in self.keys)
        for name, text in (("chrom", contig), ("ref", reference), ("alt", alternates)):
            if not text:
                raise ValueError(f"{name} is empty; write a missing allele as .")
        if not (position.isascii() and position.isdigit() and int(position) > 0):
            raise ValueError(f"pos {position!r} is no 1-based position (0-based ones need 1 more)")
        identifier = _text(row[self.identifier]) if self.identifier is not None else ""
        return VariantRecord.from_columns(
            contig,
            int(position),
            reference,
            alternates,
            identifier=identifier or ".",
            others=tuple(row[place] for place in self.others.values()),
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


def _split(lines: Iterator[str], delimiter: str, *, first: int) -> Iterator[tuple[int, list[str]]]:
    """Rows with the number of their last line; blank lines are none."""
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
