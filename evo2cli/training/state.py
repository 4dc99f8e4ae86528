"""The folder of a run: its checkpoints, and resuming from them.

OUTPUT/run.json             recipe, shape and data of the run; resuming with others is refused
OUTPUT/metrics.jsonl        one line per step
OUTPUT/step-000000500/      a native checkpoint, with checkpoint.optimizer also the state of the
                            engine; complete or absent
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
    """What `save` writes of a checkpoint: `Engine.layout`, and facts of the run."""

    model_config = ConfigDict(extra="allow")

    step: Annotated[int, Field(ge=0)]
    engine: str
    world: int
    zero: int
    skipped: int = 0
    run: str | None = None  # SHA-256 of run.json; before 0.3.0 it was not recorded


_SAVED, _VALUES = TypeAdapter(_Saved), TypeAdapter(dict[str, JsonValue])

# Keys that may change when a run is resumed: they change neither the data nor their order.
_MAY_CHANGE: Any = {
    **dict.fromkeys(
        ("checkpoint", "guard", "memory", "output", "parallel", "tracking", "validation"), True
    ),
    "batch": {"micro_sequences"},
    "data": {"corpus": {"path"}},  # hashes of its files are among the facts of the tokens
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
    """The `RunFolder`, which no other run can use meanwhile.

    Args:
        recipe: The recipe.
        config: The model's shape.
        identity: As for `RunFolder`.
        ranks: The ranks.
        others: As for `check_output`.

    Raises:
        UserError: Another process trains into the folder, its disk has no room, or as `RunFolder`.
    """
    path = recipe.output
    if path.is_file():
        raise UserError(f"{path}: cannot be used as output: it is a file; name a folder")
    with contextlib.ExitStack() as stack:
        with _first_alone(ranks, _unusable(path)) as is_first:
            if is_first:
                check_output(recipe, config, ranks.world, others=others)
                path.mkdir(parents=True, exist_ok=True)
                stack.enter_context(locked_run(path))
        yield RunFolder(recipe, identity, ranks)


def stopped(*, resumable: bool) -> str:
    """What to do after a run was stopped, for people."""
    if resumable:
        return "stopped; run the same command again to resume"
    return "stopped; its last checkpoint has weights only, so it cannot be resumed"


def locked_run(path: Path) -> contextlib.AbstractContextManager[None]:
    """Hold the lock of the folder of a run.

    Raises:
        OutputInUseError: Another process trains into the folder.
        UserError: The folder cannot be written.
    """
    return locked(path / DESCRIPTION)


class RunFolder:
    """The output folder of a run, shared by its ranks.

    Args:
        recipe: The recipe.
        identity: Further facts that must be the same when the run is resumed, as JSON values.
        ranks: The ranks.

    Raises:
        UserError: The folder belongs to another run, cannot be written, or has weights only.
    """

    def __init__(self, recipe: Recipe, identity: Mapping[str, Any], ranks: Ranks) -> None:
        self.path = recipe.output
        self.final = self.path / "final"
        self.metrics = self.path / "metrics.jsonl"
        self.description = self.path / DESCRIPTION
        self.ranks = ranks
        self._checkpoint = recipe.checkpoint
        # `identity` has the whole shape, in place of the recipe's changes to it.
        values = {**recipe.model_dump(mode="json", exclude=_MAY_CHANGE), **identity}
        with _first_alone(self.ranks, _unusable(self.path)) as is_first:
            if is_first:
                self._open(json.loads(json.dumps(values)))

    def _open(self, values: Mapping[str, Any]) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        if self.description.is_file():
            before: dict[str, Any] = read_json(self.description, _VALUES, UserError)
            if isinstance(shape := before.get("shape"), dict):
                before["shape"] = current_keys(shape, str(self.description))
            self._refuse_another(before, values)
        else:
            _write_text(self.description, json.dumps(values, indent=2) + "\n")
        if self.newest() is None and not self.final.exists() and [*self.path.glob("step-*")]:
            raise UserError(
                f"{self.path}: its checkpoints have weights only (checkpoint.optimizer = false), "
                "so the run cannot be resumed; begin another with one of them as init, or remove "
                "them"
            )
        for unfinished in self.path.glob(".*step-*"):  # by a killed process
            remove(unfinished)

    def _refuse_another(self, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
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
        """The newest complete checkpoint with the state of the engine."""
        complete = sorted(file.parent for file in self.path.glob(f"step-*/{RESUME}"))
        return complete[-1] if complete else None

    def save(self, step: int, engine: Engine, facts: Mapping[str, Any]) -> None:
        """Write the checkpoint after `step` steps, then delete old ones.

        Args:
            step: Number of steps done.
            engine: Its state is saved.
            facts: JSON values that `resume` returns.

        Raises:
            UserError: It cannot be written; earlier checkpoints are unchanged.
        """
        folder = self.path / f"step-{step:09d}"
        partial = folder.with_name(f".{folder.name}")
        failure = f"{folder}: the checkpoint cannot be written"
        weights = engine.weights()
        with _first_alone(self.ranks, failure) as is_first:
            if is_first:
                remove(partial)
                engine.start.write(weights, partial, {"step": step})
        if self._checkpoint.optimizer:
            with _explained(failure):
                engine.save(partial)
        with _first_alone(self.ranks, failure) as is_first:
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
        """Load the newest checkpoint into the engine, whichever engine and ranks wrote it.

        Returns:
            step (the number of steps done, 0 without a checkpoint), and the facts given to `save`.

        Raises:
            UserError: The checkpoint is damaged, or of another run.
        """
        folder = self.newest()
        self.ranks.wait()  # all ranks must look before one of them writes
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
                self._cut_metrics(saved["step"])
        return saved

    def _load(self, folder: Path, saved: Mapping[str, Any], engine: Engine) -> None:
        layout = {key: saved[key] for key in engine.layout}
        if layout == engine.layout:
            engine.restore(folder)
            return
        if self.ranks.is_first:
            before, now = _layout_text(layout), _layout_text(engine.layout)
            console.say(f"{folder}: was written by {before}, now {now}")
        engine.adopt(self._parameters(folder, layout["engine"], engine), saved["step"])

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

    def _cut_metrics(self, step: int) -> None:
        """Delete lines after the step from which the run resumes, and a line cut off by a kill."""
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
def _first_alone(ranks: Ranks, failure: str) -> Iterator[bool]:
    """Work of the first rank alone; if it fails, all ranks raise an error."""
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
    """Report errors of reading or writing files in one line, which begins with `failure`."""
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
