"""Read and write Parquet tables in batches of rows, with pyarrow (the extra `parquet`)."""

import json
import math
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evo2cli.errors import UserError
from evo2cli.files import atomic_path, require_utf8
from evo2cli.genome.source import STDIN

PARQUET_MAGIC = b"PAR1"
BATCH = 4096  # rows

Columns = dict[str, list[str] | NDArray[Any]]


def read_parquet(path: Path) -> tuple[dict[str, type], Generator[list[Any], None, None]]:
    """Open a table: its columns with their types, and an iterator over its rows.

    Types are int, float, or str for all others. A list becomes JSON text; NaN and infinity become
    None.

    Raises:
        UserError: The file cannot be read, or pyarrow is not installed.
    """
    if path == STDIN:
        raise UserError(
            "-: Parquet ends with its index, so it cannot be read from stdin; give a file"
        )
    arrow = import_pyarrow(path)
    with _one_line_errors(path, arrow):
        file = arrow.parquet.ParquetFile(path)
    names = file.schema_arrow.names
    if len(set(names)) < len(names):
        file.close()
        raise UserError(f"{path}: two columns have the same name: {', '.join(names)}")
    types = {field.name: _type(arrow, field.type) for field in file.schema_arrow}

    def rows() -> Generator[list[Any], None, None]:
        with file, _one_line_errors(path, arrow):
            for batch in file.iter_batches(BATCH):
                columns = (column.to_pylist() for column in batch.columns)
                for row in zip(*columns, strict=True):
                    yield [_value(*cell) for cell in zip(row, types.values(), strict=True)]

    return types, rows()


@contextmanager
def open_parquet(
    path: Path, types: Mapping[str, type]
) -> Iterator[Callable[[Sequence[Mapping[str, Any]]], None]]:
    """Yield a function that writes rows, as mappings; the file is written atomically.

    Args:
        path: The file.
        types: Names and types (str, int or float) of the columns.

    Raises:
        UserError: The file cannot be written, or pyarrow is not installed.
    """
    arrow = import_pyarrow(path)
    stored = {str: arrow.string(), int: arrow.int64(), float: arrow.float64()}
    schema = arrow.schema([(name, stored[kind]) for name, kind in types.items()])
    buffer: list[Mapping[str, Any]] = []
    texts = [name for name, kind in types.items() if kind is str]

    def write(rows: Sequence[Mapping[str, Any]]) -> None:
        for row in rows:  # a text column that comes from JSON lines may hold numbers
            as_text = {name: str(row[name]) for name in texts if row[name] is not None}
            buffer.append({**row, **as_text})
        if len(buffer) >= BATCH:
            flush()

    def flush() -> None:
        with _one_line_errors(path, arrow):
            writer.write_table(arrow.Table.from_pylist(buffer, schema=schema))
        buffer.clear()

    with _open_writer(path, arrow, schema) as writer:
        yield write
        flush()


def write_columns(path: Path, batches: Iterable[Columns], metadata: Mapping[str, str]) -> None:
    """Write a table from batches of its columns, atomically.

    Args:
        path: The file.
        batches: At least one. A matrix becomes a column of lists, one row per cell.
        metadata: Stored as JSON in the metadata of the schema, under the key `evo2`.

    Raises:
        UserError: The file cannot be written, or pyarrow is not installed.
    """
    arrow = import_pyarrow(path)

    def table(columns: Columns) -> Any:
        cells = {
            name: arrow.FixedSizeListArray.from_arrays(values.reshape(-1), values.shape[1])
            if isinstance(values, np.ndarray) and values.ndim > 1
            else arrow.array(values)
            for name, values in columns.items()
        }
        return arrow.table(cells, metadata={"evo2": json.dumps(metadata)})

    tables = map(table, batches)
    first = next(tables)
    with _open_writer(path, arrow, first.schema) as writer, _one_line_errors(path, arrow):
        for each in chain([first], tables):
            writer.write_table(each)


@contextmanager
def _open_writer(path: Path, arrow: ModuleType, schema: Any) -> Iterator[Any]:
    """Yield a writer of Arrow tables to a file, which is written atomically."""
    with atomic_path(path) as part:
        with _one_line_errors(path, arrow):
            writer = arrow.parquet.ParquetWriter(part, schema, compression="zstd")
        try:
            yield writer
            with _one_line_errors(path, arrow):
                writer.close()
        finally:
            with suppress(OSError, arrow.ArrowException):  # e.g. a full disk, reported before
                writer.close()


def _value(value: Any, kind: type) -> Any:
    """The value of a cell as `read_parquet` returns it."""
    if value is None or (kind is float and not math.isfinite(value)):
        return None
    if isinstance(value, list):
        return json.dumps(value, default=str)
    return value if kind is not str else str(value)


def _type(arrow: ModuleType, stored: Any) -> type:
    if arrow.types.is_integer(stored):
        return int
    return float if arrow.types.is_floating(stored) else str


def import_pyarrow(path: Path) -> ModuleType:
    """Import pyarrow.

    Args:
        path: The file to read or write, for messages.

    Raises:
        UserError: It is not installed, or the path is not UTF-8.
    """
    require_utf8(path, "Parquet")
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UserError(f"{path}: Parquet needs pyarrow: pip install 'evo2cli[parquet]'") from None
    module: ModuleType = pyarrow
    return module


@contextmanager
def _one_line_errors(path: Path, arrow: ModuleType) -> Iterator[None]:
    """Convert errors of pyarrow to `UserError`."""
    try:
        yield
    except UserError:
        raise
    except (OSError, OverflowError, ValueError, arrow.ArrowException) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path}: Parquet cannot be read or written ({reason})") from None
