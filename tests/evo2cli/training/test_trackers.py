"""Trackers: however a run is cut, each shows its steps once, on one curve."""

import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError

from evo2cli.errors import UserError
from evo2cli.training.metrics import MetricsLogger
from evo2cli.training.recipe import Recipe, Tracking
from evo2cli.training.state import RunFolder
from tests.evo2cli.training.test_loop import KilledError, make_recipe, make_trainer, metrics

TIMES = {"seconds", "rate", "rate_per_gpu"}


class WandB(SimpleNamespace):
    """In place of the module `wandb`: what its server and its offline folders would hold.

    Attributes:
        runs: Arguments, history and exit code of each run that a process began, in order.
        lost: Number of steps that a run loses when its process is killed.
    """

    class Error(Exception):
        """The base of its errors."""

    Settings = dict

    def __init__(self, lost: int = 0) -> None:
        super().__init__(runs=[], lost=lost)

    def init(self, **given: Any) -> "WandBRun":
        history: dict[int, dict[str, Any]] = {}
        if given["mode"] != "offline":  # the server knows what came before
            for run in self.runs:
                if run.given["id"] == given["id"]:
                    kept = len(run.history) - (0 if run.ended else self.lost)
                    history = dict(list(run.history.items())[:kept])
        self.runs.append(WandBRun(given, history))
        return self.runs[-1]


class WandBRun:
    """A run of which a process takes part; it refuses a step that is not new."""

    def __init__(self, given: dict[str, Any], history: dict[int, dict[str, Any]]) -> None:
        self.given, self.history, self.ended = given, history, False
        self.offline, self.exit_code = given["mode"] == "offline", None
        self.url = None if self.offline else "https://wandb.example/mine"

    @property
    def step(self) -> int:
        return max(self.history, default=-1) + 1

    def log(self, values: dict[str, Any], step: int) -> None:
        assert step >= self.step
        self.history[step] = values

    def finish(self, exit_code: int) -> None:
        self.exit_code = exit_code
        self.ended = not exit_code


def without_times(history: dict[int, dict[str, Any]]) -> dict[int, dict[str, Any]]:
    return {
        step: {name: value for name, value in values.items() if name not in TIMES}
        for step, values in history.items()
    }


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, Any]]:
    """The history of a run that nothing disturbed."""
    stub = WandB()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "wandb", stub)
        folder = tmp_path_factory.mktemp("whole") / "run"
        make_trainer(make_recipe(folder, tracking={"wandb": True})).run()
    assert [run.exit_code for run in stub.runs] == [0]
    return without_times(stub.runs[0].history)


def kill_at(step: int, recipe: Recipe) -> None:
    log = RunFolder.log

    def log_or_die(self: RunFolder, record: dict[str, Any]) -> None:
        log(self, record)
        if record["step"] == step:
            raise KilledError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunFolder, "log", log_or_die)
        with pytest.raises(KilledError):
            make_trainer(recipe).run()


@pytest.mark.parametrize("lost", [0, 2])
@pytest.mark.parametrize("mode", ["online", "offline"])
def test_a_killed_run_is_tracked_as_one_that_was_not(
    uninterrupted: dict[int, dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    mode: str,
    lost: int,
) -> None:
    """Killed twice: before the first checkpoint, and one step after another."""
    stub = WandB(lost)
    monkeypatch.setitem(sys.modules, "wandb", stub)
    recipe = make_recipe(tmp_path / "run", tracking={"wandb": True, "mode": mode})
    for step in (2, 6):
        kill_at(step, recipe)
    make_trainer(recipe).run()
    assert len({run.given["id"] for run in stub.runs}) == 1
    assert [run.exit_code for run in stub.runs] == [1, 1, 0]
    assert without_times(stub.runs[-1].history) == uninterrupted


def test_names_are_those_that_users_expect(uninterrupted: dict[int, dict[str, Any]]) -> None:
    assert list(uninterrupted) == [1, 2, 3, 4, 5, 6, 7]
    names = {"train/loss", "train/bits", "lr", "grad_norm", "tokens"}
    assert set(uninterrupted[1]) == names
    assert set(uninterrupted[3]) == names | {"val/loss", "val/bits"}
    ratio = uninterrupted[3]["val/loss"] / uninterrupted[3]["val/bits"]
    assert ratio == pytest.approx(math.log(2))


def test_a_recipe_says_how_a_run_is_tracked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stub = WandB()
    monkeypatch.setitem(sys.modules, "wandb", stub)
    monkeypatch.setenv("WANDB_RUN_ID", "mine")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    keys = {"project": "p", "entity": "e", "name": "n", "group": "g", "tags": ["a", "b"]}
    recipe = make_recipe(tmp_path / "run", tracking={"wandb": True, "mode": "disabled", **keys})
    make_trainer(recipe).run()
    assert "evo2: Weights & Biases: https://wandb.example/mine\n" in capsys.readouterr().err
    given = stub.runs[0].given
    assert {key: given[key] for key in keys} == keys
    assert (given["id"], given["mode"], given["dir"]) == ("mine", "disabled", str(tmp_path))
    assert given["config"] == json.loads((recipe.output / "run.json").read_text())


def test_keys_without_wandb_are_refused() -> None:
    with pytest.raises(ValidationError, match="project is for Weights & Biases; set wandb = true"):
        Tracking(project="p")


def test_wandb_that_cannot_start_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = make_recipe(tmp_path / "run", tracking={"wandb": True})
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"pip install 'evo2cli\[wandb\]'"):
        make_trainer(recipe).run()
    stub = WandB()

    def refuse(**_: object) -> None:
        raise stub.Error("No API key configured.\nUse `wandb login`")

    monkeypatch.setitem(sys.modules, "wandb", stub)
    monkeypatch.setattr(stub, "init", refuse)
    told = r"tracking.wandb: .* \(No API key configured\.\); run `wandb login`, or set"
    with pytest.raises(UserError, match=told):
        make_trainer(recipe).run()


def test_tensorboard_holds_the_run(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    recipe = make_recipe(tmp_path / "run", tracking={"tensorboard": True})
    make_trainer(recipe).run()
    events = EventAccumulator(str(recipe.output / "tensorboard"))
    events.Reload()
    seen = {event.step: event.value for event in events.Scalars("loss")}
    assert seen == pytest.approx({r["step"]: r["loss"] for r in metrics(recipe)}, rel=1e-6)
    folder = make_trainer(recipe).folder
    with MetricsLogger(folder, 7, 4, "", tracking=recipe.tracking):  # resumed after step 4
        pass
    events = EventAccumulator(str(recipe.output / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3, 4]
