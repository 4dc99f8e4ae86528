"""Variants from a table: TSV, CSV or Parquet with the columns chrom, pos, ref and alt.

Columns may come in any order and case, and the header may begin with `#`. A column `id` is read,
too; all others are carried through. In the file positions are 1-based, alleles are anchored and
alternates are separated by commas, as in a VCF.
"""

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from evo2cli.errors import UserError
from evo2cli.genome.parquet import PARQUET_MAGIC, read_parquet
from evo2cli.genome.source import closed_at_error, first_bytes, read_lines, then_close
from evo2cli.genome.vcf import BYTE_ORDER_MARK, Value, VariantRecord, is_position

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


def read_table(path: Path | str, *, shift: int = 0) -> VariantTable:
    """Open a table (text may be compressed; `-` is stdin) and read its header.

    Args:
        path: The table.
        shift: What to add to every position.

    Raises:
        UserError: Here or while records are read: a column is missing, or a row is not a variant.
    """
    path = Path(path)
    if first_bytes(path).startswith(PARQUET_MAGIC):
        types, stored = read_parquet(path)
        with closed_at_error(stored):
            columns = _Columns(path, list(types), shift)
        return VariantTable(
            {name: types[name] for name in columns.others},
            then_close(stored, _read_records(path, columns, enumerate(stored, start=1), "row")),
        )
    source = read_lines(path)
    lines = enumerate(map(_decoded, source), start=1)
    with closed_at_error(source):
        for number, line in lines:
            if line.strip() and not line.startswith("##"):
                columns = _Columns(path, _names(line), shift)
                rows = _split((text for _, text in lines), _delimiter(line), first=number + 1)
                return VariantTable(
                    dict.fromkeys(columns.others, str),
                    then_close(source, _read_records(path, columns, rows, "line")),
                )
    raise UserError(f"{path}: has no line with the names of columns")


class _Columns:
    """The index of each column in a row, and what to add to every position."""

    def __init__(self, path: Path, names: Sequence[str], shift: int) -> None:
        self.shift = shift
        lower = [name.lower() for name in names]
        for key in KEYS:
            if lower.count(key) != 1:
                count = "no column" if key not in lower else "more than one column"
                raise UserError(
                    f"{path}: has {count} {key!r}; its columns: {', '.join(names)}; rename them to "
                    f"{', '.join(KEYS)}"
                )
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
        is_number = is_position(position.encode(errors="replace"))
        if not is_number or int(position) + self.shift < 1:
            raise ValueError(
                f"pos {position[:40]!r} is not a 1-based position (for 0-based ones: --shift 1)"
            )
        identifier = _text(row[self.identifier]) if self.identifier is not None else ""
        return VariantRecord.from_columns(
            contig,
            int(position) + self.shift,
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
