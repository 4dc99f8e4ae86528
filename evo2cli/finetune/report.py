"""The results of a run, for people."""

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

MAX_METRICS = 6


def report_page(report: Mapping[str, Any]) -> RenderableType:
    """The metrics of the model beside those of the baselines, with their 95 % intervals."""
    results, best, base = report["results"], report["best"], report["base"]
    names = [name for name in results["model"] if report["task"] == "lm" or " " not in name]
    table = Table(box=None, pad_edge=False)
    what = "held-out documents"
    if report["task"] != "lm":
        what = f"{report['examples'][report['part']]:,} {report['part']} examples"
    table.add_column(f"on {what}")
    for name in names[:MAX_METRICS]:
        table.add_column(name, justify="right")
    for row, metrics in results.items():
        table.add_row(row, *(_estimate(metrics.get(name)) for name in names[:MAX_METRICS]))
    memory = f", {report['memory_gib']:.1f} GiB" if report["memory_gib"] else ""
    layer = f", layer {base['layer']}" if "layer" in base else ""
    line = (
        f"{report['task']} by {report['method']} on {base['model']}{layer}: "
        f"{report['parameters']:,} parameters, {report['steps']:,} steps in "
        f"{report['seconds']:,.0f} s{memory}; the weights after step {best['step']:,} are kept in "
        f"{report['output']}/final"
    )
    return Group(table, Text(line))


def _estimate(value: Any) -> str:
    if value is None:
        return "."
    middle, low, high = value
    return f"{middle:.3f}" if low == high else f"{middle:.3f} [{low:.3f}, {high:.3f}]"
