"""What a run leaves on disk, and what it goes on from.

OUTPUT/run.json        the recipe and what it was given, to refuse going on with anything else
OUTPUT/metrics.jsonl   one line a step
OUTPUT/step-000500/    a native checkpoint, with resume.pt: training weights and optimizer
OUTPUT/final/          the native checkpoint of a finished run
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError  # raised by torch.load; nothing here unpickles objects
from typing import Any

import torch

from evo2cli.errors import UserError
from evo2cli.training.recipe import Recipe
from stripedhyena2 import CheckpointError, StripedHyena2, save

RESUME = "resume.pt"


class RunFolder:
    """The output folder of one run.

    Raises:
        UserError: The folder belongs to another run, or cannot be written.
    """

    def __init__(self, recipe: Recipe, facts: Mapping[str, Any]) -> None:
        self.path = recipe.output
        self.final = self.path / "final"
        self.metrics = self.path / "metrics.jsonl"
        self._keep = recipe.checkpoint.keep
        values = {**recipe.model_dump(mode="json", exclude={"checkpoint", "output"}), **facts}
        description = self.path / "run.json"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if description.is_file():
                self._refuse_another(json.loads(description.read_text(encoding="utf-8")), values)
            else:
                _write_whole(description, json.dumps(values, indent=2) + "\n")
            for unfinished in [*self.path.glob(".step-*"), *self.path.glob(".final-*")]:
                shutil.rmtree(unfinished)
        except (OSError, ValueError) as error:
            raise UserError(f"{self.path}: cannot be used as output ({error})") from None

    def _refuse_another(self, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
        was, is_now = _flat(before), _flat(now)
        for key in sorted(was.keys() | is_now.keys()):
            if was.get(key) != is_now.get(key):
                raise UserError(
                    f"{self.path}: holds a run with {key} = {was.get(key)!r}, not "
                    f"{is_now.get(key)!r}; choose another --output, or put it back"
                )

    def newest(self) -> Path | None:
        """The newest whole checkpoint."""
        whole = sorted(file.parent for file in self.path.glob(f"step-*/{RESUME}"))
        return whole[-1] if whole else None

    def save(self, step: int, model: StripedHyena2, optimizer: torch.optim.Optimizer) -> None:
        """Write the checkpoint after `step` steps, then drop the oldest beyond `keep`.

        Raises:
            UserError: It cannot be written; the earlier ones are untouched.
        """
        folder = self.path / f"step-{step:09d}"
        try:
            save(model, folder, {"step": step})
            state = {"step": step, "model": model.state_dict(), "optimizer": optimizer.state_dict()}
            temporary = folder / f".{RESUME}"
            torch.save(state, temporary)
            temporary.rename(folder / RESUME)
        except (CheckpointError, OSError, RuntimeError) as error:
            raise UserError(f"{folder}: the checkpoint cannot be written ({error})") from None
        for old in sorted(self.path.glob("step-*"))[: -self._keep]:
            shutil.rmtree(old)

    def resume(self, model: StripedHyena2, optimizer: torch.optim.Optimizer) -> int:
        """Load the newest checkpoint into model and optimizer.

        Returns:
            How many steps are done; 0 when there is no checkpoint.

        Raises:
            UserError: The checkpoint is damaged.
        """
        folder = self.newest()
        if folder is None:
            self.metrics.unlink(missing_ok=True)
            return 0
        device = next(model.parameters()).device
        try:
            state = torch.load(folder / RESUME, map_location=device, weights_only=True)
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
        except (OSError, EOFError, KeyError, RuntimeError, ValueError, UnpicklingError):
            raise UserError(
                f"{folder / RESUME}: damaged; delete {folder} to go on from the one before"
            ) from None
        self._cut_metrics(state["step"])
        return int(state["step"])

    def log(self, record: dict[str, Any]) -> None:
        """Append one line to metrics.jsonl."""
        with self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, allow_nan=False) + "\n")

    def _cut_metrics(self, step: int) -> None:
        """Drop what was logged after the step a run goes on from, and a line cut by a kill."""
        if not self.metrics.is_file():
            return
        kept = []
        for line in self.metrics.read_text(encoding="utf-8").splitlines(keepends=True):
            if not line.endswith("\n") or json.loads(line)["step"] > step:
                break
            kept.append(line)
        _write_whole(self.metrics, "".join(kept))


def _write_whole(file: Path, text: str) -> None:
    temporary = file.with_suffix(".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(file)


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat
