"""Lay out the report of a run for the terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from evo2cli import console
from evo2cli.errors import counted
from evo2cli.finetune.metrics import F1

MAX_METRICS = 6


def report_page(report: Mapping[str, Any]) -> RenderableType:
    """A table of metrics of the model and the baselines, with 95 % intervals.

    The F1 of each class has its own table.
    """
    results, best, base = report["results"], report["best"], report["base"]
    names = [name for name in results["model"] if report["task"] == "lm" or " " not in name]
    what = "held-out documents"
    if report["task"] != "lm":
        what = counted(report["examples"][report["part"]], f"{report['part']} example")
    parts: list[RenderableType] = [_table(f"on {what}", results, names)]
    if of_classes := [name for name in results["model"] if name.startswith(F1)]:
        parts += [Text(), _table("F1 of each class", results, of_classes)]
        if len(of_classes) > MAX_METRICS:
            more = counted(len(of_classes) - MAX_METRICS, "more class", "more classes")
            parts.append(Text(f"{more}: report.json"))
    memory = f", {report['memory_gib']:.1f} GiB" if report["memory_gib"] else ""
    layer = f", layer {base['layer']}" if "layer" in base else ""
    line = (
        f"{report['task']} by {report['method']} on {base['model']}{layer}: "
        f"{report['parameters']:,} parameters, {counted(report['steps'], 'step')} in "
        f"{report['seconds']:,.0f} s{memory}; the weights after step {best['step']:,} are kept in "
        f"{report['output']}/final"
    )
    return Group(*parts, Text(line))


def _table(title: str, results: Mapping[str, Any], names: Sequence[str]) -> Table:
    """A table of some metrics, with a row for each baseline and for the model."""
    heads = [name.removeprefix(F1) for name in names[:MAX_METRICS]]
    table = console.number_table(title, *heads)
    for row, metrics in results.items():
        table.add_row(row, *(_estimate(metrics.get(name)) for name in names[:MAX_METRICS]))
    return table


def _estimate(value: Any) -> str:
    if value is None:
        return "."
    middle, low, high = value
    return f"{middle:.3f}" if low == high else f"{middle:.3f} [{low:.3f}, {high:.3f}]"
