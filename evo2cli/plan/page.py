"""Lay out a plan for the terminal."""

from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Any

from rich.console import Group, RenderableType
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from evo2cli.errors import counted
from evo2cli.training.plan.calibration import GIB

_MEMORY = {
    "weights": "weights",
    "copies": "bf16 copies of weights",
    "gradients": "gradients",
    "optimizer": "optimizer (fp32 masters, two moments)",
    "activations": "activations of a micro-batch",
    "communication": "communication buckets, gathered weights",
    "framework": "CUDA, NCCL, fragmentation",
}
_TIME = {
    "products": "projections and MLPs",
    "attention": "attention",
    "operators": "Hyena operators",
    "elementwise": "norms, residual sums, gates",
    "head": "head and loss",
    "parameters": "optimizer, gradient accumulation",
    "host": "hooks of ZeRO 3, on the host",
    "waiting": "communication",
}
_FLOPS = {
    "dense": "projections and MLPs: 2 per weight",
    "operators": "Hyena operators: taps, modes, gates",
    "attention": "attention, causal: 2 L D per block",
    "head": "head: 2 V D",
    "forward": "forward",
    "training": "training: 3 x forward (used for MFU)",
    "recomputed": "recomputation, in addition",
    "training_by_paper": "training as in the paper: 6 N + 10 n L D",
}
ACCURACY = (
    "Predicted by formulas with the rates in evo2cli/training/plan/calibration.py. Measured steps "
    "of 1B took 1.04 of the predicted time on one H100, in FP8 1.07, and 1.05 on one H200; on two "
    "H200 with ZeRO 3 steps of 1B took 1.01, and of 7B 0.98, in FP8 0.94 to 0.97. Compared with "
    "published steps on 256 and 1,024 H100s at up to 32,768 positions, the predicted time is 0.74 "
    "to 0.77 of that of Transformers, and 0.56 to 0.74 of that of StripedHyena 2, whose "
    "convolutions were slower than ours; those runs used tensor parallelism."
)


def plan_page(plan: Mapping[str, Any]) -> RenderableType:
    """The result of `plan_recipe` as a page."""
    return Group(
        Text(f"{plan['recipe']} {' '.join(plan['settings'])}".rstrip(), style="bold"),
        _facts(plan),
        _verdict(plan),
        _table("Memory of one GPU", "GiB", *_memory_rows(plan["memory"])),
        _table("Time of a step", "s", *_time_rows(plan["time"])),
        _table("FLOPs per token", "10^9", _flops_rows(plan["flops"])),
        _sources(plan["sources"]),
        Text(ACCURACY, style="dim"),
    )


def _facts(plan: Mapping[str, Any]) -> Table:
    mesh, run, model = plan["mesh"], plan["run"], plan["model"]
    grid = Table.grid(padding=(0, 2))
    zero = f"ZeRO {mesh['zero']}" if mesh["zero"] else "one process"
    checkpointing = mesh["activation_checkpointing"]
    recomputed = "no activation checkpointing"
    if checkpointing:
        recomputed = f"activation checkpointing of {checkpointing} at a time"
    context_parallel = mesh["context"]
    shared = f"{context_parallel:,} per window" if context_parallel > 1 else "all data-parallel"
    groups = counted(mesh["gpus"] // context_parallel, "group" if context_parallel > 1 else "GPU")
    hours, seconds, days = run["gpu_hours"], plan["time"]["total"], run["days"]
    cost = f"{hours:,.{0 if hours >= 10 else 1}f} GPU-hours"
    step = f"{seconds:,.2f} s" if seconds >= 1 else f"{1e3 * seconds:,.1f} ms"
    duration = f"{days:,.1f} days" if days >= 1 else f"{timedelta(seconds=round(86_400 * days))}"
    if run["dollars"] is not None:
        cost += f", {run['dollars']:,.0f} dollars"
    for label, value in {
        "model": f"{model['parameters']:,} parameters, {len(model['stripes'])} blocks, "
        f"{recomputed}",
        "mesh": f"{mesh['gpus']:,} x {mesh['gpu']}, {zero}, {shared}",
        "batch": f"{mesh['tokens_per_step']:,} tokens per step: {groups} x "
        f"{counted(mesh['accumulation'], 'micro-batch', 'micro-batches')} x "
        f"{counted(mesh['micro_sequences'], 'window')} of "
        f"{mesh['length']:,}",
        "speed": f"{run['tokens_per_second_per_gpu']:,.0f} tokens/s/GPU, "
        f"{step} per step, MFU {run['mfu']:.0%}",
        "run": f"{counted(run['steps'], 'step')}, {run['tokens']:,} tokens, {duration}",
        "cost": cost,
        "disk": f"{decimal(round(run['disk_bytes']))} at the end",
    }.items():
        grid.add_row(label, value)
    return grid


Rows = list[tuple[str, str]]


def _table(title: str, unit: str, rows: Rows, total: tuple[str, str] | None = None) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", width=58)
    table.add_column("")
    table.add_column(unit, justify="right")
    for row in rows:
        table.add_row(*row)
    if total is not None:
        table.add_section()
        table.add_row(*total, style="bold")
    return table


def _memory_rows(memory: Mapping[str, float]) -> tuple[Rows, tuple[str, str]]:
    rows = [(label, f"{memory[key] / GIB:,.2f}") for key, label in _MEMORY.items() if memory[key]]
    label = f"total, of {memory['capacity'] / GIB:,.1f} GiB"
    return rows, (label, f"{memory['total'] / GIB:,.2f}")


def _time_rows(time: Mapping[str, float]) -> tuple[Rows, tuple[str, str]]:
    rows = [(label, f"{time[key]:,.3f}") for key, label in _TIME.items() if time[key]]
    return rows, ("total", f"{time['total']:,.3f}")


def _flops_rows(flops: Mapping[str, float]) -> Rows:
    return [(label, f"{flops[key] / 1e9:,.3f}") for key, label in _FLOPS.items()]


def _sources(sources: Iterable[Mapping[str, Any]]) -> Table:
    table = Table(title="Data", title_justify="left", title_style="bold")
    table.add_column("source")
    for column in ("share", "tokens", "epochs"):
        table.add_column(column, justify="right")
    for source in sources:
        share, tokens, epochs = source["share"], source["tokens"], source["epochs"]
        table.add_row(
            source["path"],
            "?" if share is None else f"{share:.2%}",
            ("not counted" if source["found"] else "not found")
            if tokens is None
            else f"{tokens:,}",
            "?" if epochs is None else f"{epochs:,.2f}",
        )
    return table


def _verdict(plan: Mapping[str, Any]) -> Text:
    if plan["fits"]:
        return Text("fits", style="bold green")
    return Text(f"does not fit: {plan['advice']}", style="bold red")
