"""Metrics of a run: a live panel, metrics.jsonl, trackers, and the loss curve at the end."""

from pathlib import Path

from evo2cli import console
from evo2cli.errors import UserError
from evo2cli.figures import new_figure, save_figure
from evo2cli.training.recipe import Tracking
from evo2cli.training.state import RunFolder
from evo2cli.training.trackers import Record, open_trackers


class MetricsLogger:
    """Logs every step of a run, on rank 0 only; use as a context manager.

    Args:
        folder: Folder of the run.
        steps: Number of steps of the whole run.
        done: Number of steps that an earlier run has done and logged.
        caption: Text below the numbers of the panel.
        tracking: The [tracking] table of the recipe.

    Raises:
        UserError: A tracker is not installed, or cannot be started.
    """

    def __init__(
        self, folder: RunFolder, steps: int, done: int, caption: str, *, tracking: Tracking
    ) -> None:
        self._folder, self._done = folder, done
        self._panel = console.Panel("train", steps, "steps", caption)
        self._is_first, self._has_warned = folder.ranks.is_first, False
        self._trackers = open_trackers(tracking, folder, done) if self._is_first else []

    def __enter__(self) -> "MetricsLogger":
        if self._is_first:
            self._panel.__enter__()
        self._panel.advance(self._done)
        return self

    def __exit__(self, *reason: object) -> None:
        if self._is_first:
            self._panel.__exit__(*reason)
        for tracker in self._trackers:
            tracker.close(failed=any(reason))

    def log(self, record: Record) -> None:
        """Log the metrics of one step, which `Trainer.step` describes."""
        self._folder.log(dict(record))
        self._panel.advance()
        if self._is_first:
            self._panel.show(
                _shown(record), important=any(key.startswith("valid_") for key in record)
            )
            if "memory_retries" in record and not self._has_warned:
                self._has_warned = True
                console.warn(
                    "GPU memory is full, and the GPU stalls while PyTorch frees some; a smaller "
                    "batch.micro_sequences, or memory.activation_checkpointing = 4, may be faster"
                )
        for tracker in self._trackers:
            tracker.log(record)


def _shown(record: Record) -> dict[str, str]:
    """The fields of the panel."""
    fields = {}
    for key, label, form in (
        ("loss", "loss", ".4f"),
        ("bits", "bits per base", ".4f"),
        ("valid_bits", "valid", ".4f"),
        ("valid_loss", "valid loss", ".4f"),
        ("learning_rate", "rate", ".1e"),
        ("gradient_norm", "norm", ".2f"),
        ("rate_per_gpu", "tokens/s/GPU", ",.0f"),
        ("mfu", "MFU", ".1%"),
        ("memory_gib", "GiB", ".1f"),
        ("skipped", "skipped", "d"),
    ):
        if record.get(key) is not None:
            fields[label] = format(record[key], form)
    if record.get("slowest_over_median", 1) > 1.5:
        fields["slowest"] = f"rank {record['slowest_rank']} x {record['slowest_over_median']:.1f}"
    return fields


def draw_curve(folder: RunFolder) -> Path | None:
    """Plot losses over tokens in OUTPUT/loss.png; None without matplotlib or without steps."""
    records = folder.records()
    if not records:
        return None
    try:
        figure = new_figure(8, 5)
    except UserError:  # without matplotlib
        return None
    axes = figure.subplots()
    name, unit = ("bits", "bits per base") if "bits" in records[0] else ("loss", "loss")
    for key, label, style in ((name, "training", "-"), (f"valid_{name}", "validation", "o-")):
        points = [(r["tokens"], r[key]) for r in records if r.get(key) is not None]
        if points:
            axes.plot(*zip(*points, strict=True), style, markersize=3, label=label)
    axes.set(xlabel="tokens", ylabel=unit)
    axes.grid(alpha=0.3)
    axes.legend()
    file = folder.path / "loss.png"
    save_figure(figure, file)
    return file
