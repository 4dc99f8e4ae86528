"""The terminal page of `evo2 doctor`."""

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from evo2cli.doctor.losses import TOLERANCE
from evo2cli.doctor.machine import OPTIONAL
from evo2cli.errors import counted
from evo2cli.training.plan.calibration import GIB

_COLOURS = {"yes": "green", "unproven": "yellow", "no": "red"}


def doctor_page(result: Mapping[str, Any]) -> RenderableType:
    """Lay out the result of `examine`."""
    parts: list[RenderableType] = [
        _machine(result["machine"], result["device"]),
        _checks(result["checks"]),
        _models(result["models"]),
    ]
    if "losses" in result:
        parts.append(_losses(result["losses"], result["model"]["name"]))
    return Group(*parts)


def _machine(machine: Mapping[str, Any], device: str) -> Table:
    grid = Table.grid(padding=(0, 2))
    available = machine["available_bytes"]
    free = "" if available is None else f", {available / GIB:,.1f} free"
    cuda = machine["cuda"] or "none"
    packages = machine["packages"]
    rows = {
        "evo2": f"{machine['evo2cli']}, Python {machine['python']}, {machine['system']}",
        "torch": f"{machine['torch']}, CUDA {cuda}, driver {machine['driver'] or 'none'}",
        "processor": f"{counted(machine['cpus'], 'core')}, "
        f"{machine['memory_bytes'] / GIB:,.1f} GiB{free}",
    }
    for index, gpu in enumerate(machine["gpus"]):
        rows[f"GPU {index}"] = (
            f"{gpu['name']}, capability {gpu['capability']}, {gpu['memory_bytes'] / GIB:,.1f} GiB, "
            f"{gpu['free_bytes'] / GIB:,.1f} free, FP8 {gpu['fp8']}"
        )
    if not machine["gpus"]:
        rows["GPU"] = "none; FP8 is simulated"
    rows["disk"] = f"{machine['cache_free_bytes'] / GIB:,.1f} GiB free at {machine['cache']}"
    rows["optional"] = ", ".join(
        f"{name} {packages[name] or 'not installed'} ({use})" for name, use in OPTIONAL.items()
    )
    rows["used"] = device
    for label, value in rows.items():
        grid.add_row(label, value)
    return grid


def _checks(checks: list[Mapping[str, Any]]) -> Table:
    table = _table("Self-tests against fp64; each must also detect a deliberate mistake")
    table.add_column("test")
    for column in ("error", "with mistake", "limit"):
        table.add_column(column, justify="right")
    table.add_column("mistake")
    table.add_column("")
    for check in checks:
        passed = check["passed"]
        table.add_row(
            check["name"],
            _number(check["error"]),
            _number(check["error_of_wrong"]),
            f"{check['tolerance']:.0e}",
            check["wrong"],
            Text("passed", style="green") if passed else Text("FAILED", style="bold red"),
        )
    return table


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.1e}"


def _models(models: list[Mapping[str, Any]]) -> Table:
    table = _table("Published models on this machine")
    for column in ("model", "trusted", "why", "fits", "GB", "cached"):
        table.add_column(column, justify="right" if column == "GB" else "left")
    for model in models:
        table.add_row(
            model["name"],
            Text(model["trusted"], style=_COLOURS[model["trusted"]]),
            model["why"],
            "yes" if model["fits"] else f"no: {model['obstacle']}",
            f"{model['needed_bytes'] / 1e9:,.0f}",
            "yes" if model["cached"] else "no",
        )
    return table


def _losses(losses: Mapping[str, Any], name: str) -> Text:
    measured = f"{losses['loss']:.4f} nats per token, {losses['loss_as_published']:.4f} in bf16"
    line = Text(f"{name}: loss on {counted(losses['prompts'], 'prompt')} {measured}; ")
    if losses["published"] is None:
        return line.append("no published loss to compare")
    within = f"published {losses['published']:.4f}, allowed difference {TOLERANCE:g}: "
    passed = losses["passed"]
    verdict = Text("passed", style="green") if passed else Text("FAILED", style="bold red")
    return line.append(within).append(verdict)


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", title_style="bold")
