"""The output folder of a run: write checkpoints, and resume from them.

OUTPUT/run.json             recipe, shape and data of the run; resuming with others is refused
OUTPUT/metrics.jsonl        one line per step
OUTPUT/step-000000500/      a native checkpoint, with checkpoint.optimizer also the state of the
                            engine; written atomically
OUTPUT/final/               the native checkpoint of a finished run
"""

import contextlib
import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, JsonValue, TypeAdapter

from evo2cli import console
from evo2cli.errors import UserError
from evo2cli.files import atomic_path, locked, writing
from evo2cli.training.engine import Engine, Parameter, plain_parameters
from evo2cli.training.ranks import Ranks
from evo2cli.training.recipe import Recipe
from evo2cli.training.space import check_output
from stripedhyena2 import ModelConfig
from stripedhyena2.checkpoint.pickles import UNREADABLE
from stripedhyena2.config import current_keys
from stripedhyena2.outputs import OutputInUseError, remove, replace
from stripedhyena2.values import read_json

DESCRIPTION = "run.json"
RESUME = "resume.json"


class _Saved(BaseModel):
    """The content of resume.json: `Engine.layout`, and the state of the training loop."""

    model_config = ConfigDict(extra="allow")

    step: Annotated[int, Field(ge=0)]
    engine: str
    world: int
    zero: int
    skipped: int = 0
    run: str | None = None  # SHA-256 of run.json; before 0.3.0 it was not recorded


_SAVED, _VALUES = TypeAdapter(_Saved), TypeAdapter(dict[str, JsonValue])

# Keys that may change on resume: they affect neither the data nor its order.
_MAY_CHANGE: Any = {
    **dict.fromkeys(
        ("checkpoint", "guard", "memory", "output", "parallel", "tracking", "validation"), True
    ),
    "batch": {"micro_sequences"},
    "data": {"corpus": {"path"}},  # the manifest of its tokens has the hashes of its files
    "precision": {"compile"},
}


@contextlib.contextmanager
def open_run(
    recipe: Recipe,
    config: ModelConfig,
    identity: Mapping[str, Any],
    ranks: Ranks,
    *,
    others: int = 0,
) -> Iterator["RunFolder"]:
    """Open and lock the output folder of a run.

    Args:
        recipe: The recipe.
        config: The model's shape.
        identity: As for `RunFolder`.
        ranks: The ranks.
        others: As for `check_output`.

    Raises:
        UserError: Another process trains into the folder, its disk is too full, or as `RunFolder`.
    """
    path = recipe.output
    if path.is_file():
        raise UserError(f"{path}: cannot be used as output: it is a file; name a folder")
    with contextlib.ExitStack() as stack:
        with _on_first_rank(ranks, _unusable(path)) as is_first:
            if is_first:
                check_output(recipe, config, ranks.world, others=others)
                path.mkdir(parents=True, exist_ok=True)
                stack.enter_context(locked_run(path))
        yield RunFolder(recipe, identity, ranks)


def stopped(*, resumable: bool) -> str:
    """The message after a run was stopped: how to resume it, if it can be."""
    if resumable:
        return "stopped; run the same command again to resume"
    return "stopped; its last checkpoint has weights only, so it cannot be resumed"


def locked_run(path: Path) -> contextlib.AbstractContextManager[None]:
    """Lock the folder of a run.

    Raises:
        OutputInUseError: Another process trains into the folder.
        UserError: The folder cannot be written.
    """
    return locked(path / DESCRIPTION)


class RunFolder:
    """The output folder of a run, shared by its ranks.

    Args:
        recipe: The recipe.
        identity: JSON values that must not change on resume, in addition to the recipe.
        ranks: The ranks.

    Raises:
        UserError: The folder belongs to another run, cannot be written, or its checkpoints have
            weights only.
    """

    def __init__(self, recipe: Recipe, identity: Mapping[str, Any], ranks: Ranks) -> None:
        self.path = recipe.output
        self.final = self.path / "final"
        self.metrics = self.path / "metrics.jsonl"
        self.description = self.path / DESCRIPTION
        self.ranks = ranks
        self._checkpoint = recipe.checkpoint
        # `identity` has the full shape, in place of the recipe's changes to it.
        values = {**recipe.model_dump(mode="json", exclude=_MAY_CHANGE), **identity}
        with _on_first_rank(self.ranks, _unusable(self.path)) as is_first:
            if is_first:
                self._open(json.loads(json.dumps(values)))

    def _open(self, values: Mapping[str, Any]) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        if self.description.is_file():
            before: dict[str, Any] = read_json(self.description, _VALUES, UserError)
            if isinstance(shape := before.get("shape"), dict):
                before["shape"] = current_keys(shape, str(self.description))
            self._refuse_other_run(before, values)
        else:
            _write_text(self.description, json.dumps(values, indent=2) + "\n")
        if self.newest() is None and not self.final.exists() and [*self.path.glob("step-*")]:
            raise UserError(
                f"{self.path}: its checkpoints have weights only (checkpoint.optimizer = false), "
                "so the run cannot be resumed; begin another with one of them as init, or remove "
                "them"
            )
        for unfinished in self.path.glob(".*step-*"):  # left by a killed run
            remove(unfinished)

    def _refuse_other_run(self, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
        was, is_now = _flat(before), _flat(now)
        for key in sorted(was.keys() | is_now.keys()):
            if was.get(key) != is_now.get(key):
                raise UserError(
                    f"{self.path}: has a run with {key} = {was.get(key)!r}, not "
                    f"{is_now.get(key)!r}; choose another --output, or change it back"
                )

    def _identity(self) -> str:
        return hashlib.sha256(self.description.read_bytes()).hexdigest()

    def newest(self) -> Path | None:
        """The newest complete checkpoint to resume from; None if there is none."""
        complete = sorted(file.parent for file in self.path.glob(f"step-*/{RESUME}"))
        return complete[-1] if complete else None

    def save(self, step: int, engine: Engine, facts: Mapping[str, Any]) -> None:
        """Write the checkpoint after `step` steps, then delete old ones.

        Args:
            step: Number of steps done.
            engine: The engine to save.
            facts: State of the training loop for `resume` to return, as JSON values.

        Raises:
            UserError: It cannot be written; earlier checkpoints are unchanged.
        """
        folder = self.path / f"step-{step:09d}"
        partial = folder.with_name(f".{folder.name}")
        failure = f"{folder}: the checkpoint cannot be written"
        weights = engine.weights()
        with _on_first_rank(self.ranks, failure) as is_first:
            if is_first:
                remove(partial)
                engine.start.write(weights, partial, {"step": step})
        if self._checkpoint.optimizer:
            with _explained(failure):
                engine.save(partial)
        with _on_first_rank(self.ranks, failure) as is_first:
            if is_first:
                if self._checkpoint.optimizer:
                    resume = {"step": step, **engine.layout, **facts, "run": self._identity()}
                    (partial / RESUME).write_text(json.dumps(resume) + "\n", encoding="utf-8")
                replace(partial, folder)
                self._delete_old()

    def _delete_old(self) -> None:
        every = self._checkpoint.keep_every
        for old in sorted(self.path.glob("step-*"))[: -self._checkpoint.keep]:
            if not every or int(old.name.removeprefix("step-")) % every:
                shutil.rmtree(old.rename(old.with_name(f".{old.name}")))

    def resume(self, engine: Engine) -> dict[str, Any]:
        """Load the newest checkpoint into the engine, resharding it if the layout has changed.

        Returns:
            step (number of steps done, 0 without a checkpoint), and the `facts` given to `save`.

        Raises:
            UserError: The checkpoint is damaged, or is from another run.
        """
        folder = self.newest()
        self.ranks.barrier()  # every rank must look before any rank writes
        if folder is None:
            if self.ranks.is_first:
                self.metrics.unlink(missing_ok=True)
            return {"step": 0}
        with _explained(f"{folder}: damaged; delete it to resume from the checkpoint before"):
            saved = read_json(folder / RESUME, _SAVED).model_dump()
            if saved.pop("run") not in (None, self._identity()):
                raise UserError(
                    f"{folder}: is a checkpoint of another recipe than {self.description}; remove "
                    "it, or give it as init of a new run"
                )
            self._load(folder, saved, engine)
            if self.ranks.is_first:
                self._truncate_metrics(saved["step"])
        return saved

    def _load(self, folder: Path, saved: Mapping[str, Any], engine: Engine) -> None:
        layout = {key: saved[key] for key in engine.layout}
        if layout == engine.layout:
            engine.restore(folder)
            return
        if self.ranks.is_first:
            before, now = _layout_text(layout), _layout_text(engine.layout)
            console.say(f"{folder}: was written by {before}, now {now}")
        engine.load_parameters(self._parameters(folder, layout["engine"], engine), saved["step"])

    def _parameters(self, folder: Path, writer: str, engine: Engine) -> Iterator[Parameter]:
        if writer == "plain":
            return plain_parameters(folder)
        from evo2cli.training.deepspeed_engine import deepspeed_parameters

        return deepspeed_parameters(folder, engine.shapes, self.ranks)

    def log(self, record: dict[str, Any]) -> None:
        """Append one line to metrics.jsonl."""
        if self.ranks.is_first:
            with writing(self.metrics), self.metrics.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record, allow_nan=False) + "\n")

    def records(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl."""
        if not self.metrics.is_file():
            return []
        with _explained(f"{self.metrics}: damaged"):
            lines = self.metrics.read_text(encoding="utf-8").splitlines()
            return [_VALUES.validate_json(line) for line in lines]

    def _truncate_metrics(self, step: int) -> None:
        """Delete lines after the step that the run resumes from, and an incomplete last line."""
        if not self.metrics.is_file():
            return
        kept = []
        for line in self.metrics.read_text(encoding="utf-8").splitlines(keepends=True):
            if not line.endswith("\n") or json.loads(line)["step"] > step:
                break
            kept.append(line)
        _write_text(self.metrics, "".join(kept))


def _unusable(path: Path) -> str:
    return f"{path}: cannot be used as output"


@contextlib.contextmanager
def _on_first_rank(ranks: Ranks, failure: str) -> Iterator[bool]:
    """Yield whether this is rank 0, which alone does the work; if it fails, all ranks raise."""
    error: UserError | None = None
    try:
        with _explained(failure):
            yield ranks.is_first
    except UserError as caught:
        error = caught
    if ranks.any(error is not None):
        raise error or UserError(f"{failure} (reported by rank 0)")


@contextlib.contextmanager
def _explained(failure: str) -> Iterator[None]:
    """Turn errors of reading or writing files into one line that begins with `failure`."""
    try:
        yield
    except UserError:
        raise
    except OutputInUseError as error:
        raise UserError(str(error)) from None
    except (
        *UNREADABLE,  # among them assertions, by which DeepSpeed checks its own files
        OSError,
    ) as error:
        reason = str(error).partition("\n")[0][:200]
        raise UserError(f"{failure} ({reason})") from None


def _layout_text(layout: Mapping[str, Any]) -> str:
    return f"{layout['world']} x {layout['engine']} with ZeRO {layout['zero']}"


def _write_text(file: Path, text: str) -> None:
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
