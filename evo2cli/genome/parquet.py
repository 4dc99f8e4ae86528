"""Read and write Parquet tables with pyarrow (the extra `parquet`), a batch of rows at a time."""

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
    """The columns of a table with their types (int, float, or str for all others), and its rows.

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
    """Yield a function that takes rows in batches; the file appears whole or not at all.

    Raises:
        UserError: The file cannot be written, or pyarrow is not installed.
    """
    arrow = import_pyarrow(path)
    stored = {str: arrow.string(), int: arrow.int64(), float: arrow.float64()}
    schema = arrow.schema([(name, stored[kind]) for name, kind in types.items()])
    waiting: list[Mapping[str, Any]] = []

    texts = [name for name, kind in types.items() if kind is str]

    def put(rows: Sequence[Mapping[str, Any]]) -> None:
        for row in rows:  # a column of JSON lines may have numbers among its text
            as_text = {name: str(row[name]) for name in texts if row[name] is not None}
            waiting.append({**row, **as_text})
        if len(waiting) >= BATCH:
            flush()

    def flush() -> None:
        with _one_line_errors(path, arrow):
            writer.write_table(arrow.Table.from_pylist(waiting, schema=schema))
        waiting.clear()

    with _open_writer(path, arrow, schema) as writer:
        yield put
        flush()


def write_columns(path: Path, batches: Iterable[Columns], about: Mapping[str, str]) -> None:
    """Write a table from batches of its columns; the file appears whole or not at all.

    Args:
        path: The file.
        batches: At least one. A matrix becomes a column with a list, its row, in each cell.
        about: Metadata, stored in the schema under `evo2` as JSON.

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
        return arrow.table(cells, metadata={"evo2": json.dumps(about)})

    tables = map(table, batches)
    first = next(tables)
    with _open_writer(path, arrow, first.schema) as writer, _one_line_errors(path, arrow):
        for found in chain([first], tables):
            writer.write_table(found)


@contextmanager
def _open_writer(path: Path, arrow: ModuleType, schema: Any) -> Iterator[Any]:
    """A writer of Arrow tables to a file that appears whole or not at all."""
    with atomic_path(path) as part:
        with _one_line_errors(path, arrow):
            writer = arrow.parquet.ParquetWriter(part, schema, compression="zstd")
        try:
            yield writer
            with _one_line_errors(path, arrow):
                writer.close()
        finally:
            with suppress(OSError, arrow.ArrowException):  # of a full disk, which has been reported
                writer.close()


def _value(value: Any, kind: type) -> Any:
    """The value of a cell; None for numbers that are not finite, JSON for a list."""
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
    """The module pyarrow.

    Raises:
        UserError: It is not installed, or cannot take the path.
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
    """Turn errors of pyarrow into one line."""
    try:
        yield
    except UserError:
        raise
    except (OSError, OverflowError, ValueError, arrow.ArrowException) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path}: Parquet cannot be read or written ({reason})") from None
