"""Experiment trackers in addition to metrics.jsonl: TensorBoard, and Weights & Biases.

A resumed run repeats the steps between its last checkpoint and the kill, which were tracked before.
Every tracker still shows each step once, on one curve.
"""

import json
import math
import os
import uuid
from collections.abc import Mapping
from typing import Any, Protocol

from evo2cli import console
from evo2cli.errors import UserError
from evo2cli.files import reading, writing
from evo2cli.training.recipe import Tracking
from evo2cli.training.state import RunFolder
from stripedhyena2.errors import reason_of

Record = Mapping[str, Any]

# Names that are usual in Weights & Biases; others stay as in metrics.jsonl.
_WANDB_NAMES = {
    "loss": "train/loss",
    "bits": "train/bits",
    "learning_rate": "lr",
    "gradient_norm": "grad_norm",
}


class Tracker(Protocol):
    """An experiment tracker."""

    def log(self, record: Record) -> None:
        """Log one step, a line of metrics.jsonl."""

    def close(self, *, failed: bool) -> None:
        """Finish; `failed` if the run ended by an error."""


def open_trackers(tracking: Tracking, folder: RunFolder, done: int) -> list[Tracker]:
    """Start the trackers of a run.

    Args:
        tracking: The [tracking] table of the recipe.
        folder: Folder of the run.
        done: Number of steps that an earlier run has done and logged.

    Raises:
        UserError: A tracker is not installed, or cannot be started.
    """
    trackers: list[Tracker] = []
    if tracking.tensorboard:
        trackers.append(_TensorBoard(folder, done))
    if tracking.wandb:
        trackers.append(_WandB(tracking, folder))
    return trackers


def _numbers(record: Record) -> dict[str, float]:
    """The numeric values of a line of metrics.jsonl, except the step."""
    return {
        key: value
        for key, value in record.items()
        if isinstance(value, int | float) and key != "step"
    }


class _TensorBoard:
    """TensorBoard event files; events of steps after `done` are purged."""

    def __init__(self, folder: RunFolder, done: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise UserError(
                "tracking.tensorboard = true needs TensorBoard; pip install 'evo2cli[train]', or "
                "set false"
            ) from None
        self._writer: Any = SummaryWriter(folder.path / "tensorboard", purge_step=done + 1)

    def log(self, record: Record) -> None:
        for name, value in _numbers(record).items():
            self._writer.add_scalar(name, value, record["step"])

    def close(self, *, failed: bool) -> None:  # noqa: ARG002 - events have no place for it
        self._writer.close()


class _WandB:
    """A Weights & Biases run, which a resumed run continues.

    Its history cannot be truncated and may lack the last steps before a kill; offline, the history
    is unknown. So steps that it lacks are sent from metrics.jsonl, and steps that it has are not
    logged again: they are repeated with the same numbers.
    """

    def __init__(self, tracking: Tracking, folder: RunFolder) -> None:
        try:
            import wandb
        except ImportError:
            raise UserError(
                "tracking.wandb = true needs wandb; pip install 'evo2cli[wandb]', or set false"
            ) from None
        try:
            self._run: Any = wandb.init(
                project=tracking.project,
                entity=tracking.entity,
                name=tracking.name,
                group=tracking.group,
                tags=tracking.tags or None,
                mode=tracking.mode,
                id=_wandb_id(folder),
                resume="allow",
                config=json.loads(folder.description.read_text(encoding="utf-8")),
                dir=os.environ.get("WANDB_DIR", str(folder.path)),
                settings=wandb.Settings(console="off", silent=True),
            )
        except wandb.Error as error:
            raise UserError(
                f"tracking.wandb: Weights & Biases cannot be started ({reason_of(error)}); run "
                '`wandb login`, or set tracking.mode = "offline"'
            ) from None
        if url := None if self._run.offline else self._run.url:
            console.say(f"Weights & Biases: {url}")
        self._first: int = self._run.step  # first step that its history lacks
        for record in folder.records():
            self.log(record)

    def log(self, record: Record) -> None:
        if record["step"] >= self._first:
            values = {_wandb_name(name): value for name, value in _numbers(record).items()}
            if "val/bits" in values:
                values["val/loss"] = values["val/bits"] * math.log(2)  # in nats, as train/loss
            self._run.log(values, step=record["step"])

    def close(self, *, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


def _wandb_name(name: str) -> str:
    if name.startswith("valid_"):
        return f"val/{name.removeprefix('valid_')}"
    return _WANDB_NAMES.get(name, name)


def _wandb_id(folder: RunFolder) -> str:
    """The W&B id of the run, kept in its folder; WANDB_RUN_ID sets it."""
    file = folder.path / "wandb-id"
    if not file.is_file():
        with writing(file):
            file.write_text(os.environ.get("WANDB_RUN_ID") or uuid.uuid4().hex[:8])
    with reading(file):
        return file.read_text(encoding="utf-8").strip()
