"""How a run tells where it stands: a panel, metrics.jsonl, TensorBoard, and a curve at the end."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evo2cli import console
from evo2cli.errors import UserError
from evo2cli.figures import new_figure, save_figure
from evo2cli.training.state import RunFolder

Record = Mapping[str, Any]


class Telling:
    """Hears every step of a run; use as a context manager. Only the first rank speaks.

    Args:
        folder: Of the run.
        steps: Of the whole run.
        done: Steps that earlier runs have done, and told of.
        caption: What the panel says below its numbers.
        tensorboard: Whether events are written to OUTPUT/tensorboard.

    Raises:
        UserError: TensorBoard is wanted and not installed.
    """

    def __init__(
        self, folder: RunFolder, steps: int, done: int, caption: str, *, tensorboard: bool
    ) -> None:
        self._folder, self._done = folder, done
        self._panel = console.Panel("train", steps, "steps", caption)
        self._speaks = folder.ranks.is_first
        self._board = _open_board(folder.path, done) if tensorboard and self._speaks else None

    def __enter__(self) -> "Telling":
        if self._speaks:
            self._panel.__enter__()
        self._panel.advance(self._done)
        return self

    def __exit__(self, *reason: object) -> None:
        if self._speaks:
            self._panel.__exit__(*reason)
        if self._board is not None:
            self._board.close()

    def hear(self, record: Record) -> None:
        """Tell one step; `Trainer.step` says what a record holds."""
        self._folder.log(dict(record))
        self._panel.advance()
        if self._speaks:
            self._panel.show(_shown(record), important="valid_bits" in record)
        if self._board is not None:
            for key, value in record.items():
                if isinstance(value, int | float) and key != "step":
                    self._board.add_scalar(key, value, record["step"])


def _shown(record: Record) -> dict[str, str]:
    """What a person wants to see of a record."""
    fields = {}
    for key, label, form in (
        ("loss", "loss", ".4f"),
        ("bits", "bits a base", ".4f"),
        ("valid_bits", "valid", ".4f"),
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
        fields["slow"] = f"rank {record['slowest_rank']} x {record['slowest_over_median']:.1f}"
    return fields


def _open_board(output: Path, done: int) -> Any:
    """Events; those of steps that were done, but not saved, no longer count."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UserError(
            "log.tensorboard = true needs TensorBoard; pip install 'evo2cli[train]', or leave it"
        ) from None
    return SummaryWriter(output / "tensorboard", purge_step=done + 1)


def draw_curve(folder: RunFolder) -> Path | None:
    """Draw losses against tokens into OUTPUT/loss.png; None without matplotlib or any step."""
    records = folder.records()
    if not records:
        return None
    try:
        figure = new_figure(8, 5)
    except UserError:  # a run draws where it can
        return None
    axes = figure.subplots()
    for key, label, style in (("bits", "training", "-"), ("valid_bits", "validation", "o-")):
        points = [(r["tokens"], r[key]) for r in records if r.get(key) is not None]
        if points:
            axes.plot(*zip(*points, strict=True), style, markersize=3, label=label)
    axes.set(xlabel="tokens", ylabel="bits a base")
    axes.grid(alpha=0.3)
    axes.legend()
    file = folder.path / "loss.png"
    save_figure(figure, file)
    return file
