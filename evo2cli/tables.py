"""Rows of results as text: numbers, TSV lines and JSON lines."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean, stdev

Row = dict[str, str | int | float | None]

# Largest number allowed in a table: far above any score, and means and squares stay finite.
LARGEST = 1e30


def rounded(nats: float) -> float:
    """Round to 6 decimals, which is finer than fp32 resolves; never -0."""
    return round(nats, 6) + 0.0


def cell(value: object) -> str:
    """Format a value for tables and INFO fields: six decimals for a float, a dot for None."""
    if value is None:
        return "."
    return f"{value:.6f}" if isinstance(value, float) else str(value)


def table_line(values: Iterable[object]) -> bytes:
    """A line of a TSV."""
    return ("\t".join(map(cell, values)) + "\n").encode(errors="surrogateescape")


def json_line(row: Mapping[str, object]) -> bytes:
    """A line of JSON."""
    return json.dumps(row, allow_nan=False).encode() + b"\n"


def mean_and_error(values: Sequence[float]) -> tuple[float, float | None]:
    """The mean and its standard error; the error of a single value is None."""
    error = stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    return fmean(values), error


def format_mean(value: float, error: float | None, digits: int) -> str:
    """Format a mean and its standard error: 1.34 ± 0.02."""
    text = f"{value:z.{digits}f}"
    return text if error is None else f"{text} ± {error:.{digits}f}"
