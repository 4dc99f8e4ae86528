"""What a run leaves on disk, and what it goes on from.

OUTPUT/run.json        the recipe and what it was given, to refuse going on with anything else
OUTPUT/metrics.jsonl   one line a step
OUTPUT/step-000500/    a native checkpoint, with the engine's files and resume.json; whole or absent
OUTPUT/final/          the native checkpoint of a finished run
"""

import contextlib
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from pickle import UnpicklingError  # raised by torch.load; nothing here unpickles objects
from typing import Any

from evo2cli import console
from evo2cli.errors import UserError
from evo2cli.files import atomic_path
from evo2cli.training.engine import Engine, Parameter, plain_parameters
from evo2cli.training.ranks import Ranks
from evo2cli.training.recipe import Recipe
from stripedhyena2 import CheckpointError
from stripedhyena2.checkpoint import save_weights
from stripedhyena2.config import current_keys

RESUME = "resume.json"
# What may differ between a run and its going on: nothing here changes data or their order.
_FREE: Any = {
    **dict.fromkeys(
        ("checkpoint", "guard", "log", "memory", "output", "parallel", "validation"), True
    ),
    "batch": {"micro_sequences"},
    "precision": {"compile"},
}


class RunFolder:
    """The output folder of one run, shared by its ranks.

    Raises:
        UserError: The folder belongs to another run, or cannot be written.
    """

    def __init__(self, recipe: Recipe, facts: Mapping[str, Any], ranks: Ranks) -> None:
        self.path = recipe.output
        self.final = self.path / "final"
        self.metrics = self.path / "metrics.jsonl"
        self.ranks = ranks
        self._checkpoint = recipe.checkpoint
        values = {
            **recipe.model_dump(mode="json", exclude=_FREE),
            **facts,
        }  # facts say shape in full
        if self.path.is_file():
            raise UserError(f"{self.path}: cannot be used as output, it is a file; name a folder")
        with self._first(f"{self.path}: cannot be used as output") as is_first:
            if is_first:
                self._open(json.loads(json.dumps(values)))

    def _open(self, values: Mapping[str, Any]) -> None:
        description = self.path / "run.json"
        self.path.mkdir(parents=True, exist_ok=True)
        if description.is_file():
            before = json.loads(description.read_text(encoding="utf-8"))
            if "shape" in before:
                before["shape"] = current_keys(before["shape"], str(description))
            self._refuse_another(before, values)
        else:
            _write_whole(description, json.dumps(values, indent=2) + "\n")
        for unfinished in [*self.path.glob(".step-*"), *self.path.glob(".final-*")]:
            shutil.rmtree(unfinished)

    def _refuse_another(self, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
        was, is_now = _flat(before), _flat(now)
        for key in sorted(was.keys() | is_now.keys()):
            if was.get(key) != is_now.get(key):
                raise UserError(
                    f"{self.path}: holds a run with {key} = {was.get(key)!r}, not "
                    f"{is_now.get(key)!r}; choose another --output, or put it back"
                )

    @contextlib.contextmanager
    def _first(self, failure: str) -> Iterator[bool]:
        """What only the first rank does; if it fails, all ranks end."""
        error: UserError | None = None
        try:
            with _named(failure):
                yield self.ranks.is_first
        except UserError as caught:
            error = caught
        if self.ranks.any(error is not None):
            raise error or UserError(f"{failure} (said by rank 0)")

    def newest(self) -> Path | None:
        """The newest checkpoint."""
        whole = sorted(file.parent for file in self.path.glob(f"step-*/{RESUME}"))
        return whole[-1] if whole else None

    def save(self, step: int, engine: Engine, facts: Mapping[str, Any]) -> None:
        """Write the checkpoint after `step` steps, then drop old ones.

        Args:
            step: Steps done.
            engine: What to save.
            facts: What else `resume` shall give back, as JSON values.

        Raises:
            UserError: It cannot be written; the earlier ones are untouched.
        """
        folder = self.path / f"step-{step:09d}"
        partial = folder.with_name(f".{folder.name}")
        failure = f"{folder}: the checkpoint cannot be written"
        weights = engine.weights()
        with self._first(failure) as is_first:
            if is_first:
                shutil.rmtree(partial, ignore_errors=True)
                save_weights(engine.model.config, weights, partial, {"step": step})
        with _named(failure):
            engine.save(partial)
        with self._first(failure) as is_first:
            if is_first:
                resume = {"step": step, **engine.layout, **facts}
                (partial / RESUME).write_text(json.dumps(resume) + "\n", encoding="utf-8")
                shutil.rmtree(folder, ignore_errors=True)
                partial.rename(folder)
                self._drop_old()

    def _drop_old(self) -> None:
        every = self._checkpoint.keep_every
        for old in sorted(self.path.glob("step-*"))[: -self._checkpoint.keep]:
            if not every or int(old.name.removeprefix("step-")) % every:
                shutil.rmtree(old)

    def resume(self, engine: Engine) -> dict[str, Any]:
        """Load the newest checkpoint into the engine, whatever engine and ranks wrote it.

        Returns:
            step (how many are done, 0 when there is no checkpoint), and the facts it was saved
            with.

        Raises:
            UserError: The checkpoint is damaged.
        """
        folder = self.newest()
        self.ranks.wait()  # none may begin to write before all have looked
        if folder is None:
            if self.ranks.is_first:
                self.metrics.unlink(missing_ok=True)
            return {"step": 0}
        with _named(f"{folder}: damaged; delete it to go on from the one before"):
            saved: dict[str, Any] = json.loads((folder / RESUME).read_text(encoding="utf-8"))
            self._load(folder, saved, engine)
            if self.ranks.is_first:
                self._cut_metrics(saved["step"])
        return saved

    def _load(self, folder: Path, saved: Mapping[str, Any], engine: Engine) -> None:
        layout = {key: saved[key] for key in engine.layout}
        if layout == engine.layout:
            engine.restore(folder)
            return
        if self.ranks.is_first:
            console.say(f"{folder}: was written by {_tell(layout)}, now {_tell(engine.layout)}")
        engine.adopt(self._parameters(folder, layout["engine"], engine), saved["step"])

    def _parameters(self, folder: Path, writer: str, engine: Engine) -> Iterator[Parameter]:
        if writer == "plain":
            return plain_parameters(folder)
        from evo2cli.training.deepspeed_engine import deepspeed_parameters

        return deepspeed_parameters(folder, engine.shapes, self.ranks)

    def log(self, record: dict[str, Any]) -> None:
        """Append one line to metrics.jsonl."""
        if self.ranks.is_first:
            with self.metrics.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record, allow_nan=False) + "\n")

    def records(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl."""
        if not self.metrics.is_file():
            return []
        return [json.loads(line) for line in self.metrics.read_text(encoding="utf-8").splitlines()]

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


@contextlib.contextmanager
def _named(failure: str) -> Iterator[None]:
    """Turn what can go wrong with files into one line."""
    try:
        yield
    except (
        AssertionError,  # of DeepSpeed, about its own files
        CheckpointError,
        EOFError,
        KeyError,
        OSError,
        RuntimeError,
        UnpicklingError,
        ValueError,
    ) as error:
        reason = str(error).partition("\n")[0][:200]
        raise UserError(f"{failure} ({reason})") from None


def _tell(layout: Mapping[str, Any]) -> str:
    return f"{layout['world']} x {layout['engine']} with ZeRO {layout['zero']}"


def _write_whole(file: Path, text: str) -> None:
    with atomic_path(file) as part:
        part.write_text(text, encoding="utf-8")


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat
