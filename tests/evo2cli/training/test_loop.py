"""The loop: however a run is cut, its end is the same, bit for bit; and bad numbers stop it."""

import json
import math
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from evo2cli.data.loader import Bytes
from evo2cli.errors import UntrustedNumericsError, UserError
from evo2cli.training.loop import Outcome, Trainer
from evo2cli.training.recipe import Recipe
from evo2cli.training.state import RunFolder
from stripedhyena2 import ModelConfig, StripedHyena2, load

SHAPE = ModelConfig(
    stripes="SMLA", width=16, num_heads=2, mlp_width=24, num_filter_groups=4, context=256
)
LETTERS = np.frombuffer(b"ACGTacgtN", np.uint8)
TOKENS = np.random.default_rng(0).choice(LETTERS, 1500)
VALID = np.append(np.random.default_rng(1).choice(LETTERS, 300), np.uint8(0))


def make_recipe(output: Path, **tables: dict[str, Any]) -> Recipe:
    values: dict[str, Any] = {
        "model": "tiny",
        "output": output,
        "data": {"tokens": ["tokens"]},
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
    }
    return Recipe.model_validate(values)


def make_trainer(recipe: Recipe, train: Bytes = TOKENS, **keywords: Any) -> Trainer:
    return Trainer(recipe, StripedHyena2.from_seed(SHAPE, 0), [train], [VALID], **keywords)


def states(trainer: Trainer) -> dict[str, Any]:
    """Everything that a further step would depend on."""
    moments = trainer.optimizer.state_dict()["state"]
    return {"model": trainer.model.state_dict(), "optimizer": moments}


def metrics(recipe: Recipe) -> list[dict[str, Any]]:
    lines = (recipe.output / "metrics.jsonl").read_text().splitlines()
    return [{**json.loads(line), "rate": 0} for line in lines]


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
    (recipe.output / "step-000000007" / "resume.pt").unlink()
    (recipe.output / "step-000000006" / ".resume.pt").write_bytes(b"half")
    (recipe.output / ".step-000000009-abc").mkdir()
    with (recipe.output / "metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "lo')
    trainer = make_trainer(recipe)
    assert_same_run(trainer, trainer.run(), whole)
    assert sorted(path.name for path in recipe.output.iterdir()) == [
        "metrics.jsonl",
        "run.json",
        "step-000000006",
        "step-000000007",
    ]


def test_sigterm_saves_and_the_next_run_goes_on(
    whole: tuple[Trainer, Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = make_recipe(tmp_path / "run")
    handler = signal.getsignal(signal.SIGTERM)
    log = RunFolder.log

    def log_and_be_asked(self: RunFolder, record: dict[str, Any]) -> None:
        log(self, record)
        if record["step"] == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "log", log_and_be_asked)
        outcome = make_trainer(recipe).run()
    assert (outcome.step, outcome.finished) == (3, False)
    assert signal.getsignal(signal.SIGTERM) == handler
    trainer = make_trainer(recipe)
    assert_same_run(trainer, trainer.run(), whole)


def test_a_damaged_checkpoint_is_named_with_the_way_out(tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path / "run")
    make_trainer(recipe).run()
    (recipe.output / "step-000000007" / "resume.pt").write_bytes(b"no such thing")
    with pytest.raises(UserError, match=r"step-000000007/resume.pt: damaged; delete .* to go on"):
        make_trainer(recipe).run()


def test_a_checkpoint_is_a_model_that_computes_the_same(whole: tuple[Trainer, Outcome]) -> None:
    trainer = whole[0]
    folder = trainer.recipe.output / "step-000000007"
    ids = torch.tensor([list(b"ACGTTGCA")])
    with torch.no_grad():
        torch.testing.assert_close(load(folder)(ids), trainer.model(ids))


def test_another_recipe_or_other_facts_do_not_go_on(tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path / "run")
    make_trainer(recipe, facts={"tokens": {"train": "abc"}}).run()
    other = make_recipe(tmp_path / "run", optimizer={"clip": 0.5})
    with pytest.raises(UserError, match=r"holds a run with optimizer\.clip = 1\.0, not 0\.5"):
        make_trainer(other, facts={"tokens": {"train": "abc"}})
    with pytest.raises(UserError, match=r"holds a run with tokens\.train = 'abc', not 'abd'"):
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
        gradients = {name: p.grad for name, p in trainer.model.named_parameters()}
        steps.append(({"loss": record["loss"], "norm": record["gradient_norm"]}, gradients))
    torch.testing.assert_close(steps[1], steps[0], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(steps[2], steps[0], rtol=1e-4, atol=1e-6)


def test_validation_is_the_mean_surprise_of_acgt_in_either_case(tmp_path: Path) -> None:
    trainer = make_trainer(make_recipe(tmp_path / "run"))
    surprises = []
    for window in trainer.valid:
        ids = torch.tensor([list(bytes(window).upper())])
        with torch.no_grad():
            log_probabilities = trainer.model(ids[:, :-1]).double().log_softmax(-1)
        for at, target in enumerate(ids[0, 1:].tolist()):
            if target in b"ACGT":
                surprises.append(-log_probabilities[0, at, target].item() / math.log(2))
    assert trainer.validate() == pytest.approx(sum(surprises) / len(surprises), rel=1e-6)


def test_without_validation_data_there_is_no_number(tmp_path: Path) -> None:
    trainer = Trainer(
        make_recipe(tmp_path / "run"), StripedHyena2.from_seed(SHAPE, 0), [TOKENS], []
    )
    assert trainer.run().valid_bits is None


def test_a_repeat_is_learned(tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path / "run", optimizer={"steps": 60}, checkpoint={"every": 60})
    trainer = make_trainer(recipe, np.frombuffer(b"ACGGTTA" * 300, np.uint8))
    trainer.run()
    losses = [record["bits"] for record in metrics(recipe)]
    assert losses[0] > 4
    assert losses[-1] < 0.5


def test_a_bad_number_stops_the_run_and_names_step_and_place(tmp_path: Path) -> None:
    trainer = make_trainer(make_recipe(tmp_path / "run"))
    weight = trainer.model.get_parameter("blocks.2.mlp.up.weight")
    with torch.no_grad():
        weight[0, 0] = math.nan
    with pytest.raises(
        UntrustedNumericsError, match=r"^step 1: the output of blocks\.2\.mlp\.up is not finite"
    ):
        trainer.run()
    with pytest.raises(UntrustedNumericsError, match="validation: the loss is not finite"):
        trainer.validate()
    assert trainer.folder.newest() is None


def test_a_bad_gradient_of_a_good_loss_is_named(tmp_path: Path) -> None:
    trainer = make_trainer(make_recipe(tmp_path / "run"))
    trainer.model.get_parameter("norm.scale").register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(
        UntrustedNumericsError, match=r"^step 1: the gradient of norm\.scale is not finite"
    ):
        trainer.run()
