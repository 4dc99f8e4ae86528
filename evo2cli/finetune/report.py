"""The results of a run, for people."""

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

MAX_METRICS = 6


def report_page(report: Mapping[str, Any]) -> RenderableType:
    """The metrics of the model beside those of the baselines, with their 95 % intervals."""
    results = report["results"]
    names = [name for name in results["model"] if " " not in name][:MAX_METRICS]
    table = Table(box=None, pad_edge=False)
    table.add_column(f"on {report['examples'][report['part']]:,} {report['part']} examples")
    for name in names:
        table.add_column(name, justify="right")
    for row, metrics in results.items():
        cells = [_estimate(metrics.get(name)) for name in names]
        table.add_row(row, *cells)
    best, base = report["best"], report["base"]
    memory = f", {report['memory_gib']:.1f} GiB" if report["memory_gib"] else ""
    lines = [
        f"{report['task']} by {report['method']} on {base['model']}, layer {base['layer']}: "
        f"{report['parameters']:,} parameters, {report['steps']:,} steps in "
        f"{report['seconds']:,.0f} s{memory}; the weights after step {best['step']:,} are kept",
        f"{report['output']}/final; evo2 predict {report['output']} INPUT -O OUTPUT",
    ]
    return Group(table, *map(Text, lines))


def _estimate(value: Any) -> str:
    if value is None:
        return "."
    middle, low, high = value
    return f"{middle:.3f} [{low:.3f}, {high:.3f}]"
