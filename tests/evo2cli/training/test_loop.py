"""The loop: however a run is cut, its end is the same, bit for bit; and bad numbers stop it."""

import fcntl
import gc
import json
import math
import os
import signal
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from evo2cli.data.documents import ArrayDocuments, Bytes
from evo2cli.data.loader import WindowLoader, fixed_windows
from evo2cli.errors import UntrustedNumericsError, UserError
from evo2cli.training import state
from evo2cli.training.engine import PlainEngine
from evo2cli.training.language import NextBase
from evo2cli.training.loop import Outcome, Trainer
from evo2cli.training.ranks import Ranks
from evo2cli.training.recipe import Recipe
from evo2cli.training.start import Start
from evo2cli.training.state import RunFolder
from stripedhyena2 import load
from tests.evo2cli.tiny import CONFIG
from tests.ranks import forked

LETTERS = np.frombuffer(b"ACGTacgtN", np.uint8)
TOKENS = np.random.default_rng(0).choice(LETTERS, 1500)
VALID = np.random.default_rng(1).choice(LETTERS, 300)


def make_recipe(output: Path, **tables: dict[str, Any]) -> Recipe:
    values: dict[str, Any] = {
        "model": "tiny",
        "output": output,
        "data": {"sources": [{"path": "tokens"}]},
        "batch": {"length": 32, "sequences": 4, **tables.get("batch", {})},
        "optimizer": {
            "steps": 7,
            "warmup_steps": 2,
            "learning_rate": 1e-2,
            "min_learning_rate": 1e-3,
            **tables.get("optimizer", {}),
        },
        "validation": {"every": 3, "windows": 8},
        "checkpoint": {"every": 2, "keep": 2, **tables.get("checkpoint", {})},
        "precision": {"compute": "fp32"},
        **{name: tables[name] for name in ("guard", "memory", "tracking") if name in tables},
    }
    return Recipe.model_validate(values)


def documents(name: str, sequence: Bytes) -> ArrayDocuments:
    """One document."""
    stream = np.append(sequence, np.uint8(0))
    return ArrayDocuments(name, stream, np.array([0, len(stream)]))


def make_trainer(
    recipe: Recipe,
    train: Bytes = TOKENS,
    valid: Bytes = VALID,
    *,
    facts: dict[str, Any] | None = None,
) -> Trainer:
    engine = PlainEngine(recipe, Start(CONFIG), Ranks.alone(torch.device("cpu")))
    folder = RunFolder(recipe, facts or {}, engine.ranks)
    batch = recipe.batch
    loader = WindowLoader(
        [documents("train", train)],
        length=batch.length,
        sequences=batch.sequences,
        seed=recipe.seed,
    )
    windows = fixed_windows(documents("valid", valid), length=batch.length, limit=8)
    held_out = {"valid": windows} if len(windows) else {}
    return Trainer(recipe, engine, NextBase(recipe, engine, loader, held_out), folder)


def engine_of(trainer: Trainer) -> PlainEngine:
    assert isinstance(trainer.engine, PlainEngine)
    return trainer.engine


def states(trainer: Trainer) -> dict[str, Any]:
    """Everything that a further step would depend on."""
    engine = engine_of(trainer)
    moments = engine.optimizer.state_dict()["state"]
    return {"model": engine.model.state_dict(), "optimizer": moments, "ema": engine.ema}


TIMES = ("seconds", "rate", "rate_per_gpu")


def metrics(recipe: Recipe) -> list[dict[str, Any]]:
    lines = (recipe.output / "metrics.jsonl").read_text().splitlines()
    return [{**json.loads(line), **dict.fromkeys(TIMES, 0)} for line in lines]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Trainer, Outcome]:
    """A run that nothing disturbed."""
    trainer = make_trainer(make_recipe(tmp_path_factory.mktemp("whole") / "run"))
    return trainer, trainer.run()


def assert_same_run(trainer: Trainer, outcome: Outcome, whole: tuple[Trainer, Outcome]) -> None:
    assert outcome == whole[1]
    torch.testing.assert_close(states(trainer), states(whole[0]), rtol=0, atol=0)
    assert metrics(trainer.recipe) == metrics(whole[0].recipe)


class KilledError(Exception):
    """Stands for the end of the process."""


@pytest.mark.parametrize(
    ("moment", "time"),
    [("log", 1), ("log", 2), ("log", 5), ("log", 7), ("save", 1), ("save", 3), ("save", 4)],
)
def test_a_killed_run_goes_on_to_the_same_end(
    moment: str,
    time: int,
    whole: tuple[Trainer, Outcome],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe = make_recipe(tmp_path / "run")
    survived = getattr(RunFolder, moment)
    times = iter(range(1, 100))

    def kill(self: RunFolder, *arguments: Any) -> Any:
        if next(times) == time:
            raise KilledError
        return survived(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, moment, kill)
        killed = make_trainer(recipe)
        with pytest.raises(KilledError):
            killed.run()
    trainer = make_trainer(recipe)
    assert_same_run(trainer, trainer.run(), whole)


def test_a_half_written_checkpoint_and_a_cut_line_do_no_harm(
    whole: tuple[Trainer, Outcome], tmp_path: Path
) -> None:
    recipe = make_recipe(tmp_path / "run")
    make_trainer(recipe).run()
    (recipe.output / "step-000000007" / "resume.json").unlink()
    (recipe.output / ".step-000000009").mkdir()
    (recipe.output / ".step-000000009" / "resume.pt").write_bytes(b"half")
    (recipe.output / "..step-000000005.part").mkdir()
    (recipe.output / "..step-000000005.lock").touch()
    with (recipe.output / "metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "lo')
    trainer = make_trainer(recipe)
    assert_same_run(trainer, trainer.run(), whole)
    assert sorted(path.name for path in recipe.output.iterdir()) == [
        "loss.png",
        "metrics.jsonl",
        "run.json",
        "step-000000006",
        "step-000000007",
    ]


@pytest.fixture
def hangup() -> Iterator[None]:
    """SIGHUP is not ignored, as it is below nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("hangup")
@pytest.mark.parametrize(
    ("number", "last"),
    [(signal.SIGTERM, 3), (signal.SIGTERM, 7), (signal.SIGHUP, 3)],
    ids=["step 3", "the last step", "the terminal closes"],
)
def test_a_signal_saves_and_the_next_run_goes_on(
    number: signal.Signals,
    last: int,
    whole: tuple[Trainer, Outcome],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe = make_recipe(tmp_path / "run")
    handler = signal.getsignal(number)
    log = RunFolder.log

    def log_and_be_asked(self: RunFolder, record: dict[str, Any]) -> None:
        log(self, record)
        if record["step"] == last:
            os.kill(os.getpid(), number)

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "log", log_and_be_asked)
        outcome = make_trainer(recipe).run()
    assert (outcome.step, outcome.finished) == (last, False)
    assert signal.getsignal(number) == handler
    trainer = make_trainer(recipe)
    assert_same_run(trainer, trainer.run(), whole)


def test_a_damaged_checkpoint_is_named_with_the_way_out(tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path / "run")
    make_trainer(recipe).run()
    (recipe.output / "step-000000007" / "resume.pt").write_bytes(b"no such thing")
    with pytest.raises(UserError, match=r"step-000000007: damaged; delete it to resume"):
        make_trainer(recipe).run()


def test_a_checkpoint_is_a_model_that_computes_the_same(whole: tuple[Trainer, Outcome]) -> None:
    trainer = whole[0]
    folder = trainer.recipe.output / "step-000000007"
    ids = torch.tensor([list(b"ACGTTGCA")])
    with torch.no_grad():
        torch.testing.assert_close(load(folder)(ids), engine_of(trainer).model(ids))


def test_another_recipe_or_other_facts_do_not_go_on(tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path / "run")
    make_trainer(recipe, facts={"tokens": {"train": "abc"}}).run()
    other = make_recipe(tmp_path / "run", optimizer={"clip": 0.5})
    with pytest.raises(UserError, match=r"^\S+: has a run with optimizer\.clip = 1\.0, not 0\.5"):
        make_trainer(other, facts={"tokens": {"train": "abc"}})
    with pytest.raises(UserError, match=r"has a run with tokens\.train = 'abc', not 'abd'"):
        make_trainer(recipe, facts={"tokens": {"train": "abd"}})
    rarer = make_recipe(tmp_path / "run", checkpoint={"every": 5})
    make_trainer(rarer, facts={"tokens": {"train": "abc"}})


def test_micro_batches_give_the_step_of_the_whole_batch(tmp_path: Path) -> None:
    # Most of one window is N or soft-masked: a mean of means would differ.
    tokens = TOKENS.copy()
    tokens[:400] = ord("N")
    steps = []
    for micro in (4, 2, 1):
        recipe = make_recipe(tmp_path / str(micro), batch={"micro_sequences": micro})
        trainer = make_trainer(recipe, tokens)
        record = trainer.step(0)
        moments = [entry["exp_avg"] for entry in engine_of(trainer).optimizer.state.values()]
        steps.append(({"loss": record["loss"], "norm": record["gradient_norm"]}, moments))
    torch.testing.assert_close(steps[1], steps[0], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(steps[2], steps[0], rtol=1e-4, atol=1e-6)


def test_validation_is_the_mean_surprise_of_acgt_in_either_case(tmp_path: Path) -> None:
    trainer = make_trainer(make_recipe(tmp_path / "run"))
    surprises = []
    assert isinstance(trainer.objective, NextBase)
    for window in trainer.objective.valid["valid"].tokens:
        ids = torch.tensor([list(bytes(window).upper())])
        with torch.no_grad():
            log_probabilities = engine_of(trainer).model(ids[:, :-1]).double().log_softmax(-1)
        for at, target in enumerate(ids[0, 1:].tolist()):
            if target in b"ACGT":
                surprises.append(-log_probabilities[0, at, target].item() / math.log(2))
    found = trainer.validate()
    assert found == {"valid_bits": pytest.approx(sum(surprises) / len(surprises), rel=1e-6)}


def test_without_validation_data_there_is_no_number(tmp_path: Path) -> None:
    trainer = make_trainer(make_recipe(tmp_path / "run"), valid=VALID[:5])
    assert trainer.run().valid_bits is None


def test_no_step_reads_its_ids_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are bytes; on a GPU the answer would wait for the work before."""
    monkeypatch.setattr("stripedhyena2.model.check_range", None)
    make_trainer(make_recipe(tmp_path / "run")).run()


def test_a_repeat_is_learned(tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path / "run", optimizer={"steps": 60}, checkpoint={"every": 60})
    trainer = make_trainer(recipe, np.frombuffer(b"ACGGTTA" * 300, np.uint8))
    trainer.run()
    losses = [record["bits"] for record in metrics(recipe)]
    assert losses[0] > 4
    assert losses[-1] < 0.5


def test_a_bad_number_stops_the_run_and_names_step_and_place(tmp_path: Path) -> None:
    trainer = make_trainer(make_recipe(tmp_path / "run"))
    weight = engine_of(trainer).model.get_parameter("blocks.2.mlp.up.weight")
    with torch.no_grad():
        weight[0, 0] = math.nan
    with pytest.raises(
        UntrustedNumericsError, match=r"^step 1: the output of blocks\.2\.mlp\.up is not finite"
    ):
        trainer.run()
    with pytest.raises(UntrustedNumericsError, match="validation: the loss is not finite"):
        trainer.validate()
    assert trainer.folder.newest() is None


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_a_bad_gradient_of_a_good_loss_is_named(tmp_path: Path, bad: float) -> None:
    trainer = make_trainer(make_recipe(tmp_path / "run"))
    engine_of(trainer).model.get_parameter("norm.scale").register_hook(
        lambda gradient: gradient * bad
    )
    with pytest.raises(
        UntrustedNumericsError, match=r"^step 1: the gradient of norm\.scale is not finite"
    ):
        trainer.run()


def poison_step(trainer: Trainer, *steps: int) -> None:
    """Let the gradient of these steps (1-based) be NaN, though their loss is good."""
    count = iter(range(1, 100))

    def hook(gradient: torch.Tensor) -> torch.Tensor:
        return gradient * math.nan if next(count) in steps else gradient

    engine_of(trainer).model.get_parameter("norm.scale").register_hook(hook)


def test_a_bad_step_may_be_skipped_and_is_counted(tmp_path: Path) -> None:
    guard = {"on_nonfinite": "skip", "skip_limit": 1}
    recipe = make_recipe(tmp_path / "run", guard=guard)
    trainer = make_trainer(recipe)
    poison_step(trainer, 3)
    before: dict[str, Any] = {}
    step = trainer.step

    def watch(index: int) -> dict[str, Any]:
        if index == 2:
            before.update({n: t.clone() for n, t in engine_of(trainer).model.state_dict().items()})
        record = step(index)
        if index == 2:
            torch.testing.assert_close(
                engine_of(trainer).model.state_dict(), before, rtol=0, atol=0
            )
        return record

    trainer.step = watch  # type: ignore[method-assign]
    outcome = trainer.run()
    assert (outcome.finished, outcome.skipped) == (True, 1)
    records = metrics(recipe)
    assert [record["loss"] is None for record in records] == [step == 3 for step in range(1, 8)]
    assert records[-1]["skipped"] == 1

    trainer = make_trainer(make_recipe(tmp_path / "other", guard=guard))
    poison_step(trainer, 3, 5)
    with pytest.raises(UntrustedNumericsError, match=r"step 5: 2 steps were not finite, more than"):
        trainer.run()


def test_averaged_weights_are_what_a_checkpoint_holds_and_validation_reads(
    tmp_path: Path,
) -> None:
    trainer = make_trainer(make_recipe(tmp_path / "run", optimizer={"ema": 0.5}))
    engine = engine_of(trainer)
    average = engine.model.embedding.weight.detach().clone()
    for step in range(4):
        trainer.step(step)
        average = 0.5 * average + 0.5 * engine.model.embedding.weight.detach()
    torch.testing.assert_close(engine.weights()["embedding.weight"], average)
    other = make_trainer(make_recipe(tmp_path / "other"))
    engine_of(other).model.load_state_dict(engine.ema, strict=False)
    before = {name: x.clone() for name, x in engine.model.state_dict().items()}
    assert trainer.validate() == other.validate()
    torch.testing.assert_close(engine.model.state_dict(), before, rtol=0, atol=0)
    trainer.folder.save(4, engine, {})
    saved = load(trainer.folder.path / "step-000000004")
    torch.testing.assert_close(saved.embedding.weight, average)
    again = make_trainer(trainer.recipe)
    assert again.folder.resume(again.engine)["step"] == 4
    torch.testing.assert_close(states(again), states(trainer), rtol=0, atol=0)


def test_a_full_disk_is_said_and_the_last_checkpoint_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(make_recipe(tmp_path / "run"))
    trainer.step(0)
    trainer.folder.save(1, trainer.engine, {})
    for place in ("weights", "engine"):
        with monkeypatch.context() as patch:

            def full(*_: Any, **__: Any) -> None:
                raise OSError(28, "No space left on device")

            if place == "engine":
                patch.setattr(PlainEngine, "save", full)
            else:
                patch.setattr(Start, "write", full)
            with pytest.raises(UserError, match=r"cannot be written .*No space left"):
                trainer.folder.save(2, trainer.engine, {})
        newest = make_trainer(trainer.recipe).folder.newest()
        assert newest is not None
        assert newest.name == "step-000000001"
        assert not list(trainer.folder.path.glob(".step*"))


@pytest.mark.parametrize("content", ["", "[]", "5", '{"shape": 3}', '{"step": -1}', "[" * 20_000])
def test_a_damaged_record_of_a_run_is_named(tmp_path: Path, content: str) -> None:
    trainer = make_trainer(make_recipe(tmp_path / "run"))
    trainer.step(0)
    trainer.folder.save(1, trainer.engine, {})
    for name in ("step-000000001/resume.json", "run.json"):
        (tmp_path / "run" / name).write_text(content)
        with pytest.raises(UserError, match=f"{tmp_path / 'run'}") as caught:
            make_trainer(trainer.recipe).run()
        assert "\n" not in str(caught.value)


def test_some_checkpoints_are_kept_for_good(tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path / "run", checkpoint={"every": 1, "keep": 1, "keep_every": 3})
    make_trainer(recipe).run()
    kept = sorted(path.name for path in recipe.output.glob("step-*"))
    assert kept == ["step-000000003", "step-000000006", "step-000000007"]


def test_how_a_step_is_computed_may_change_on_the_way(
    whole: tuple[Trainer, Outcome], tmp_path: Path
) -> None:
    """Activation checkpointing changes no bit, and a run may turn it on."""
    recipe = make_recipe(tmp_path / "run")
    first = make_trainer(recipe)
    for step in range(2):
        first.folder.log(first.step(step))
    first.folder.save(2, first.engine, {})
    trainer = make_trainer(make_recipe(tmp_path / "run", memory={"activation_checkpointing": 3}))
    assert_same_run(trainer, trainer.run(), whole)


def run_with_garbage(output: Path) -> None:
    gc.unfreeze()  # what `forked` has frozen
    trainer = make_trainer(make_recipe(output))
    draw, frozen, lost = trainer.objective.batch, [], []

    class Ring:
        def __init__(self) -> None:
            self.own = self

    def batch(step: int) -> Any:
        frozen.append(gc.get_freeze_count())
        ring = Ring()
        lost.append(weakref.ref(ring))
        return draw(step)

    trainer.objective.batch = batch  # type: ignore[method-assign]
    trainer.run()
    assert min(frozen) > 1000
    assert gc.get_freeze_count() == 0
    gc.collect()
    assert not any(each() for each in lost)


def test_garbage_is_looked_for_among_new_objects_while_a_run_lasts(tmp_path: Path) -> None:
    process = forked(tmp_path / "told", run_with_garbage, tmp_path / "run")
    process.join()
    assert process.exitcode == 0, (tmp_path / "told").read_text()


def test_the_curve_is_drawn(whole: tuple[Trainer, Outcome]) -> None:
    curve = whole[0].recipe.output / "loss.png"
    assert curve.read_bytes().startswith(b"\x89PNG")


def test_a_run_is_locked_before_its_folder_is_touched(tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path / "run")
    unfinished = recipe.output / ".step-000000003"
    unfinished.mkdir(parents=True)  # which the other run may be writing
    ranks = Ranks.alone(torch.device("cpu"))
    with (recipe.output / ".run.json.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        told = r"run\.json: is being written by another process"
        with pytest.raises(UserError, match=told), state.open_run(recipe, CONFIG, {}, ranks):
            pass
    assert unfinished.is_dir()
    with state.open_run(recipe, CONFIG, {}, ranks):
        assert not unfinished.is_dir()


def hang(output: Path) -> None:
    """A run whose third step does not end."""
    read = WindowLoader.windows

    def hang_at_three(self: WindowLoader, step: int, rows: slice = slice(None)) -> Any:
        time.sleep(3600 * (step == 2))
        return read(self, step, rows)

    WindowLoader.windows = hang_at_three
    make_trainer(make_recipe(output, guard={"step_deadline": 5})).run()


@pytest.mark.slow
def test_a_hanging_step_dumps_its_stacks_and_ends(tmp_path: Path) -> None:
    hanging = forked(tmp_path / "told", hang, tmp_path / "run")
    hanging.join()
    told = (tmp_path / "told").read_text()
    assert hanging.exitcode == 1, told
    stacks = (tmp_path / "run" / "stacks-rank0.txt").read_text()
    assert "hang_at_three" in stacks
    assert told.splitlines()[-1] == (
        "evo2: a step took longer than guard.step_deadline = 5 s; the stacks of rank 0 are in "
        f"{tmp_path}/run/stacks-rank0.txt; run the same command again to resume"
    )
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 2
    make_trainer(make_recipe(tmp_path / "run", guard={"step_deadline": 600})).run()
    assert (tmp_path / "run" / "stacks-rank0.txt").read_text() == stacks
