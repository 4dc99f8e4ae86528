"""`evo2 train`: from a recipe and tokens to a model that loads, through kills and bad input."""

import json
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from typer.testing import CliRunner, Result

from evo2cli.commands.train import train
from evo2cli.errors import UserError
from evo2cli.tokenize.options import TokenizeOptions
from evo2cli.tokenize.run import tokenize_files
from evo2cli.training import space
from evo2cli.training.engine import PlainEngine
from evo2cli.training.state import RunFolder
from stripedhyena2 import load
from stripedhyena2.checkpoint import read_checkpoint
from tests.evo2cli import tiny
from tests.evo2cli.tiny import SHAPE
from tests.ranks import Hold, World

RECIPE = f"""{tiny.RECIPE}[checkpoint]
every = 2
[precision]
compute = "fp32"
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a recipe, its shape and its tokens; the current one."""
    (tmp_path / "tiny.toml").write_text(SHAPE)
    (tmp_path / "recipe.toml").write_text(RECIPE)
    write_tokens(tmp_path / "tokens")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_tokens(
    folder: Path, *, seed: int = 0, bases: tuple[int, int] = (700, 200), held_out: float = 0
) -> None:
    """Tokens of random bases, for training and for validation."""
    random = np.random.default_rng(seed)
    for name, count in zip(("train", "valid"), bases, strict=True):
        sequence = bytes(random.choice(list(b"ACGTacgt"), count).astype(np.uint8))
        folder.with_name(f"{name}.fa").write_bytes(b">x\n" + sequence + b"\n")
    fasta, valid = folder.with_name("train.fa"), folder.with_name("valid.fa")
    tokenize_files(
        TokenizeOptions(files=(fasta,), output=folder, valid=(valid,), valid_fraction=held_out)
    )


def run(*arguments: str) -> Result:
    app = typer.Typer()
    app.command()(train)
    return CliRunner().invoke(app, ["recipe.toml", *arguments])


def test_a_recipe_becomes_a_model_and_a_second_run_changes_nothing(place: Path) -> None:
    first = run("--json")
    assert first.exit_code == 0, first.output
    summary = json.loads(first.stdout)
    assert summary["finished"]
    assert (summary["steps"], summary["trained_tokens"]) == (8, 8 * 4 * 32)
    model = load(place / "run" / "final")
    assert sum(p.numel() for p in model.parameters()) == summary["parameters"]
    provenance = json.loads((place / "run" / "final" / "provenance.json").read_text())
    assert provenance["valid_bits"] == summary["valid_bits"] > 0
    assert provenance["settings"]["batch"]["length"] == 32
    assert provenance["sources"][0]["path"] == "tokens"

    before = (place / "run" / "final" / "model.safetensors").stat().st_mtime_ns
    second = run("--json")
    assert "already finished" in second.stderr
    assert json.loads(second.stdout) == summary
    assert (place / "run" / "final" / "model.safetensors").stat().st_mtime_ns == before


def test_a_model_starts_from_the_weights_of_another(place: Path) -> None:
    assert run().exit_code == 0
    text = RECIPE.replace('model = "tiny"', 'init = "run/final"').replace('"run"', '"second"')
    (place / "recipe.toml").write_text(text)
    assert run("--set", "optimizer.steps=3", "--set", "optimizer.warmup_steps=0").exit_code == 0
    first, *_ = (place / "second" / "metrics.jsonl").read_text().splitlines()
    *_, last = (place / "run" / "metrics.jsonl").read_text().splitlines()
    assert abs(json.loads(first)["loss"] - json.loads(last)["loss"]) < 0.3
    folders = [place / name / "final" for name in ("run", "second")]
    origin, provenance = (read_checkpoint(folder).provenance for folder in folders)
    assert provenance["before"] == origin
    assert provenance["steps"] == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "data.sources=[{path='nowhere'}]"], "nowhere: no such"),
        (["--set", "data.sources=[{path='held'}]"], "held: has no training split"),
        (["--set", "batch.length=300"], "length = 300 is longer than the model's context of 256"),
        (
            ["--set", "batch.length=256", "--set", "data.sources=[{path='short'}]"],
            "fewer than a window of 256",
        ),
        (["--device", "abacus"], "--device abacus: not available"),
        (["--output", "recipe.toml"], "recipe.toml: cannot be used as output"),
        (["--set", "init='nowhere'", "--set", "model='x'"], "needs either model"),
    ],
)
def test_what_cannot_run_is_said_in_one_line(
    place: Path, arguments: list[str], message: str
) -> None:
    write_tokens(place / "held", held_out=1)
    write_tokens(place / "short", bases=(80, 80))
    result = run(*arguments)
    assert isinstance(result.exception, UserError), result.output
    assert re.search(message, str(result.exception))
    assert "\n" not in str(result.exception)


def test_a_disk_too_small_is_refused_before_anything_is_written(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without `evo2 launch`, too; a finished run needs none."""
    monkeypatch.setattr(space, "free_bytes", lambda _folder: 1000)
    result = run()
    assert isinstance(result.exception, UserError), result.output
    assert re.search(
        r"and the final model need \S+ [kM]B, \S+ has 1.0 kB free", f"{result.exception}"
    )
    assert not (place / "run").exists()
    monkeypatch.undo()
    monkeypatch.chdir(place)
    assert run().exit_code == 0
    monkeypatch.setattr(space, "free_bytes", lambda _folder: 0)
    assert run().exit_code == 0


def test_checkpoints_of_weights_only_are_models_that_no_run_resumes_from(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    only = ("--set", "checkpoint.optimizer=false")
    assert run(*only).exit_code == 0
    whole = load(place / "run" / "final").state_dict()
    last = place / "run" / "step-000000008"
    assert not (last / "resume.pt").exists()
    assert all(torch.equal(x, whole[name]) for name, x in load(last).state_dict().items())
    assert "already finished" in run(*only).stderr

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:  # cut between the last checkpoint and final/
        patch.setattr("evo2cli.train.run._save_final", fail)
        run("--output", "cut", *only)
    before = (place / "cut" / "metrics.jsonl").read_bytes()
    result = run("--output", "cut", *only)
    assert isinstance(result.exception, UserError)
    assert "cut: its checkpoints have weights only" in str(result.exception)
    assert (place / "cut" / "metrics.jsonl").read_bytes() == before


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("where", ["__init__", "forward"])
def test_an_exhausted_memory_is_told_with_a_way_out(
    monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def exhausted(*_: object, **__: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9")

    monkeypatch.setattr(PlainEngine, where, exhausted)
    way_out = {"__init__": "raise parallel.zero", "forward": "lower batch.micro_sequences"}[where]
    result = run()
    assert isinstance(result.exception, UserError)
    assert re.match(f"recipe.toml: .* on cpu: out of memory; {way_out}", str(result.exception))


def test_a_run_of_an_earlier_version_goes_on(place: Path) -> None:
    assert run().exit_code == 0
    file = place / "run" / "run.json"
    description = json.loads(file.read_text())
    for key in ("num_short_filter_groups", "num_medium_filter_groups"):
        description["shape"]["num_filter_groups"] = description["shape"].pop(key)
    file.write_text(json.dumps(description))
    assert run().exit_code == 0


def test_other_tokens_or_another_shape_do_not_go_on(place: Path) -> None:
    assert run().exit_code == 0
    shutil.rmtree(place / "tokens")
    write_tokens(place / "tokens", seed=5)
    result = run()
    assert "has a run with tokens.tokens." in str(result.exception)
    shutil.rmtree(place / "tokens")
    write_tokens(place / "tokens")
    (place / "tiny.toml").write_text(SHAPE.replace("SMLA", "SMLL"))
    assert "has a run with shape.stripes = 'SMLA', not 'SMLL'" in str(run().exception)


@pytest.mark.parametrize("change", ["shape.width=32", "seed=1", "optimizer.clip=0.5"])
def test_a_checkpoint_of_another_recipe_is_refused(place: Path, change: str) -> None:
    """Also one of the same shape, from which a run could go on without a word."""
    assert run("--output", "other", "--set", change).exit_code == 0
    assert run().exit_code == 0
    for part in ("final", "step-000000006", "step-000000008"):
        shutil.rmtree(place / "run" / part)
    shutil.copytree(place / "other" / "step-000000006", place / "run" / "step-000000006")
    result = run()
    assert isinstance(result.exception, UserError)
    assert re.fullmatch(
        r"run/step-000000006: is a checkpoint of another recipe than run/run\.json; remove it, .*",
        str(result.exception),
    )
    shutil.rmtree(place / "run" / "step-000000006")
    assert run("--output", "twin").exit_code == 0
    shutil.copytree(place / "twin" / "step-000000006", place / "run" / "step-000000006")
    result = run("--json")
    assert result.exit_code == 0, result.output
    assert "resuming from step 6" in result.stderr


@pytest.mark.slow
def test_kill_nine_and_the_same_command_give_the_same_bytes(place: Path) -> None:
    arguments = ["--device", "cpu"]
    hold = Hold(RunFolder, "log", call=5)
    killed = World(1, place, "killed", ["train", "recipe.toml", *arguments], hold)
    assert killed.end_held(signal.SIGKILL) == [-signal.SIGKILL]
    assert not (place / "run" / "final").exists()

    assert "resuming from step 4" in run(*arguments).stderr
    assert run(*arguments, "--output", "whole").exit_code == 0
    for name in ("model.safetensors", "provenance.json", "config.toml"):
        cut, whole = (place / folder / "final" / name for folder in ("run", "whole"))
        assert cut.read_bytes() == whole.read_bytes(), name


def test_a_price_is_for_plans_alone(command_line: Callable[..., tuple[int, str, str]]) -> None:
    code, _, error = command_line("train", "toy", "--price-per-gpu-hour", "3")
    assert code == 2
    assert "--price-per-gpu-hour" in error
