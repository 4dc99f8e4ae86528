"""`evo2 eval`: what the evaluations share; each has a file of its own, `eval_<name>.py`."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from evo2cli.files import check_file, open_output
from evo2cli.tables import Row, table_line

TABLES = (".tsv", ".json")


def mean_and_error(values: Sequence[float]) -> tuple[float, float | None]:
    """The mean, and its standard error; None for that of a single value."""
    error = stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    return fmean(values), error


def check_output(path: Path | None) -> None:
    """Refuse what `write_table` cannot write.

    Raises:
        UserError: The suffix is none of `TABLES`, or the folder is missing.
    """
    if path is not None:
        check_file(path, "--output", TABLES)


def write_table(path: Path | None, result: Mapping[str, Any], rows: Sequence[Row]) -> None:
    """Write what was found, for None nothing: `rows` as TSV, or the whole `result` as JSON.

    Raises:
        UserError: The file cannot be written.
    """
    if path is None:
        return
    with open_output(path) as write:
        if path.suffix == ".json":
            write(json.dumps(result, allow_nan=False, indent=1).encode() + b"\n")
            return
        write(table_line(rows[0]))
        for row in rows:
            write(table_line(row.values()))


def length_label(length: int) -> str:
    """A length as it may be given: 8192 is 8k."""
    for unit, size in (("M", 2**20), ("k", 2**10)):
        if length % size == 0:
            return f"{length // size}{unit}"
    return str(length)


def shown(value: float, error: float | None, digits: int) -> str:
    """A mean and its standard error, as a page shows them."""
    text = f"{value:z.{digits}f}"
    return text if error is None else f"{text} ± {error:.{digits}f}"
