"""Tables: TSV, CSV, Parquet or JSON lines, recognised by their first bytes; text may be compressed.

The first line of a TSV or CSV names the columns; a `#` before it and lines of `##` or `#!` above
it are ignored. JSON lines are objects with at least the keys of the first one. A list becomes JSON
text.
"""

import csv
import json
import math
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from evo2cli.errors import UserError, counted, listed
from evo2cli.genome.formats import BED, FASTA, GFF, Wanted, recognise
from evo2cli.genome.parquet import PARQUET_MAGIC, read_parquet
from evo2cli.genome.source import BYTE_ORDER_MARK, closed_at_error, first_bytes, read_lines
from evo2cli.genome.vcf import Value

Rows = Generator[tuple[int, Sequence[Value]], None, None]
_TRUE, _FALSE = {"true", "1", "1.0"}, {"false", "0", "0.0"}
_MAX_CELL = (1 << 31) - 1  # characters; the default limit of the module csv is 131,072


@dataclass(frozen=True)
class Table:
    """An open table.

    Attributes:
        path: Its file.
        types: The type of the cells of each column, by name.
        rows: Yields the 1-based number of each row and its cells. Closing it closes the file.
        unit: What the numbers of rows count: "line" or "row".
    """

    path: Path
    types: Mapping[str, type]
    rows: Rows
    unit: str

    @property
    def names(self) -> list[str]:
        """Names of the columns."""
        return list(self.types)

    def origin(self, number: int) -> str:
        """The file and a row by its number, to begin a message."""
        return f"{self.path}: {self.unit} {number}"

    def column(self, name: str, way_out: str = "") -> int:
        """The index of a column.

        Args:
            name: The name of the column.
            way_out: How to choose another column, for the message, e.g. "name it by --label".

        Raises:
            UserError: The table has no such column; the message lists those that it has.
        """
        if name not in self.types:
            hint = f"; {way_out}" if way_out else ""
            raise UserError(
                f"{self.path}: has no column {name!r}; its columns: {listed(self.types, 12)}{hint}"
            )
        return self.names.index(name)


def open_table(path: Path) -> Table:
    """Open a table (`-` is stdin) and read its header.

    Raises:
        UserError: Here or while rows are read: the file cannot be read or is not a table, two
            columns have the same name, or a row has another number of columns than the header.
    """
    start = first_bytes(path).removeprefix(BYTE_ORDER_MARK)
    if start.startswith(PARQUET_MAGIC):
        types, stored = read_parquet(path)
        return Table(path, types, _numbered(stored), "row")
    source = read_lines(path)
    with closed_at_error(source):
        lines: Iterator[tuple[int, str]] = enumerate(map(decoded, source), start=1)
        for number, line in lines:
            if line.lstrip().startswith("{"):
                types = dict.fromkeys(_parsed(path, number, line), str)
                lines = chain([(number, line)], lines)
                return Table(path, types, _json_rows(path, list(types), lines, source), "line")
            found = recognise(line.encode(errors="surrogateescape"))
            if found in (BED, FASTA, GFF):
                raise UserError(f"{path}: {found.refusal(Wanted.TABLE)}")
            if not line.strip() or line.startswith(("##", "#!")):
                continue
            names = split_names(line)
            if len(set(names)) < len(names):
                raise UserError(f"{path}: two columns have the same name: {', '.join(names)}")
            rows = _split((text for _, text in lines), delimiter_of(line), first=number + 1)
            checked = _checked_rows(path, len(names), rows, source)
            return Table(path, dict.fromkeys(names, str), checked, "line")
        raise UserError(f"{path}: has no line with the names of columns")


def _numbered(stored: Generator[list[Any], None, None]) -> Rows:
    with closing(stored):
        yield from enumerate(stored, start=1)


def _checked_rows(
    path: Path,
    num_columns: int,
    rows: Iterator[tuple[int, list[str]]],
    source: Generator[bytes, None, None],
) -> Rows:
    """Rows of text, after a check of their number of columns."""
    with closing(source):
        try:
            for number, row in rows:
                if len(row) != num_columns:
                    raise UserError(
                        f"{path}: line {number}: {counted(len(row), 'column')}, but the first line "
                        f"names {num_columns}"
                    )
                yield number, row
        except csv.Error as error:
            raise UserError(f"{path}: {error}") from None


def _json_rows(
    path: Path,
    names: list[str],
    lines: Iterable[tuple[int, str]],
    source: Generator[bytes, None, None],
) -> Rows:
    with closing(source):
        for number, line in lines:
            if not line.strip():
                continue
            record = _parsed(path, number, line)
            for name in names:
                if name not in record:
                    raise UserError(f"{path}: line {number}: has no {name!r}, as the first has")
            yield number, [_json_cell(record[name]) for name in names]


def _parsed(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise UserError(f"{path}: line {number}: broken JSON ({error})") from None
    if not isinstance(record, dict):
        raise UserError(f"{path}: line {number}: not a JSON object")
    return record


def _json_cell(value: Any) -> Value:
    if value is None or (isinstance(value, str | int | float) and not isinstance(value, bool)):
        return value
    return json.dumps(value) if isinstance(value, list) else str(value)


def _split(lines: Iterator[str], delimiter: str, *, first: int) -> Iterator[tuple[int, list[str]]]:
    """Yield rows with the number of their last line; blank lines are skipped."""
    csv.field_size_limit(_MAX_CELL)  # for the whole process: a cell may hold a long sequence
    if delimiter == "\t":
        reader = csv.reader(lines, delimiter=delimiter, quoting=csv.QUOTE_NONE)
    else:
        reader = csv.reader(lines, delimiter=delimiter)
    for row in reader:
        if row:
            yield reader.line_num + first - 1, row


def split_names(line: str) -> list[str]:
    """The names of the columns in the header of a TSV or CSV."""
    text = line.strip("\r\n").removeprefix("#")
    return [name.strip().strip('"') for name in text.split(delimiter_of(text))]


def delimiter_of(line: str) -> str:
    """The delimiter of a header: a tab if there is one, otherwise a comma."""
    return "\t" if "\t" in line else ","


def decoded(line: bytes) -> str:
    """A line as text, without a byte order mark."""
    return line.removeprefix(BYTE_ORDER_MARK).decode(errors="surrogateescape")


def cell_text(value: Value) -> str:
    """A cell as stripped text; empty for a missing value."""
    return "" if value is None else str(value).strip()


def cell_flag(where: str, name: str, value: Value) -> bool:
    """A cell as a boolean: true or false, or 1 or 0.

    Args:
        where: File and row, to begin a message.
        name: The column.
        value: The cell.

    Raises:
        UserError: It is neither.
    """
    text = cell_text(value).lower()
    if text not in _TRUE | _FALSE:
        raise UserError(f"{where}: {name} {text[:40]!r} is not a label: true or false, or 1 or 0")
    return text in _TRUE


def cell_number(where: str, name: str, value: Value) -> float:
    """A cell as a number; NaN if it is missing. The arguments are those of `cell_flag`.

    Raises:
        UserError: It is not a number.
    """
    text = cell_text(value)
    if text in ("", "."):
        return math.nan
    try:
        return float(text)
    except ValueError:
        raise UserError(f"{where}: {name} {text[:40]!r} is not a number") from None
