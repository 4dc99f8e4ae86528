"""Output shared by all evaluations: files, and columns of means, estimates and their errors."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Any

from evo2cli.eval.options import Distractors, EvalOptions
from evo2cli.figures import check_plot
from evo2cli.files import check_file, check_output, open_output
from evo2cli.ranking import Estimate
from evo2cli.tables import Row, mean_and_error, rounded, table_line


def check_outputs(options: EvalOptions, *inputs: Path) -> None:
    """Refuse output files that could not be written, before the model runs.

    Raises:
        UserError: A suffix is unknown, a folder is missing, matplotlib is not installed, or the
            output would overwrite an input.
    """
    if options.output is not None:
        check_file(options.output, "--output", (".tsv", ".json"))
        check_output(options.output, *inputs)
    check_plot(options.plot)


def write_table(path: Path | None, result: Mapping[str, Any], rows: Sequence[Row]) -> None:
    """Write `rows` as TSV or the whole `result` as JSON; nothing if `path` is None.

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


def mean_columns(name: str, values: Sequence[float]) -> Row:
    """Two columns of a table: `name`, the mean of `values`, and `name`_se, its standard error."""
    mean, error = mean_and_error(values)
    return {name: rounded(mean), f"{name}_se": None if error is None else rounded(error)}


def estimate_columns(name: str, estimate: Estimate | None) -> Row:
    """Three columns: `name`, `name`_low and `name`_high, its 95 % interval; None without one."""
    names = (name, f"{name}_low", f"{name}_high")
    if estimate is None:
        return dict.fromkeys(names)
    return dict(zip(names, map(rounded, astuple(estimate)), strict=True))


def format_estimate(row: Mapping[str, Any], name: str) -> tuple[str, str]:
    """Format an estimate of a row and its interval; a dash if there is none."""
    value, low, high = (row[f"{name}{part}"] for part in ("", "_low", "_high"))
    if value is None:
        return "-", ""
    return f"{value:z.3f}", f"{low:z.3f}-{high:z.3f}"


def cells_by_distractors(
    cells: Sequence[dict[str, Any]],
) -> dict[Distractors, list[dict[str, Any]]]:
    """Group the cells of `evo2 eval needle` by distractors."""
    groups: dict[Distractors, list[dict[str, Any]]] = {}
    for cell in cells:
        distractors = Distractors(cell["distractors"], cell["distance"])
        groups.setdefault(distractors, []).append(cell)
    return groups


def format_length(length: int) -> str:
    """Format a length for `parse_length`: 8192 is 8k."""
    for unit, size in (("M", 2**20), ("k", 2**10)):
        if length % size == 0:
            return f"{length // size}{unit}"
    return str(length)
