"""Metrics of a run: a live panel, metrics.jsonl, TensorBoard, and the loss curve at the end."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evo2cli import console
from evo2cli.errors import UserError
from evo2cli.figures import new_figure, save_figure
from evo2cli.training.state import RunFolder

Record = Mapping[str, Any]


class MetricsLogger:
    """Logs every step of a run, on the first rank only; use as a context manager.

    Args:
        folder: Folder of the run.
        steps: Number of steps of the whole run.
        done: Number of steps done before, which are logged already.
        caption: Text below the numbers of the panel.
        tensorboard: Whether to write events to OUTPUT/tensorboard.

    Raises:
        UserError: `tensorboard` is set, but TensorBoard is not installed.
    """

    def __init__(
        self, folder: RunFolder, steps: int, done: int, caption: str, *, tensorboard: bool
    ) -> None:
        self._folder, self._done = folder, done
        self._panel = console.Panel("train", steps, "steps", caption)
        self._is_first = folder.ranks.is_first
        self._board = _open_board(folder.path, done) if tensorboard and self._is_first else None

    def __enter__(self) -> "MetricsLogger":
        if self._is_first:
            self._panel.__enter__()
        self._panel.advance(self._done)
        return self

    def __exit__(self, *reason: object) -> None:
        if self._is_first:
            self._panel.__exit__(*reason)
        if self._board is not None:
            self._board.close()

    def log(self, record: Record) -> None:
        """Log one step; `Trainer.step` describes the record."""
        self._folder.log(dict(record))
        self._panel.advance()
        if self._is_first:
            self._panel.show(
                _shown(record), important=any(key.startswith("valid_") for key in record)
            )
        if self._board is not None:
            for key, value in record.items():
                if isinstance(value, int | float) and key != "step":
                    self._board.add_scalar(key, value, record["step"])


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


def _open_board(output: Path, done: int) -> Any:
    """A writer of events; it hides events of steps that a killed run did, but did not save."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UserError(
            "log.tensorboard = true needs TensorBoard; pip install 'evo2cli[train]', or set false"
        ) from None
    return SummaryWriter(output / "tensorboard", purge_step=done + 1)


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
