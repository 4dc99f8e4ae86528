"""Several ranks are one run: the same losses as a single process, whatever kills or resizes it."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("deepspeed", reason="several ranks need the extra `train`")

from evo2cli.training.state import RunFolder
from stripedhyena2 import load
from stripedhyena2.outputs import locked
from tests.evo2cli.test_train import RECIPE, SHAPE, write_tokens
from tests.ranks import Hold, World, wait_until

ROOT = Path(__file__).parents[2]
STEPS = 6


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recipe, its shape and its tokens."""
    folder = tmp_path_factory.mktemp("ranks")
    (folder / "tiny.toml").write_text(SHAPE)
    (folder / "recipe.toml").write_text(RECIPE)
    write_tokens(folder / "tokens", held_out=0.3)
    return folder


def command(output: Path, *settings: str) -> list[str]:
    changes = [f"optimizer.steps={STEPS}", "batch.micro_sequences=1", *settings]
    options = [word for change in changes for word in ("--set", change)]
    return ["train", "recipe.toml", "--device", "cpu", "--output", str(output), *options]


def run(place: Path, world: int, output: str, *settings: str) -> str:
    """Run to the end; returns what was said."""
    codes, said = World(world, place, output, command(place / output, *settings)).finish()
    assert not any(codes), said
    return said


def end_early(place: Path, world: int, output: str, *settings: str, by: int) -> list[int]:
    """End a run by a signal, with a checkpoint and a step beyond it; returns its exit codes."""
    words, hold = command(place / output, *settings), Hold(RunFolder, "log", call=3)
    return World(world, place, output, words, hold).end_held(by)


def launch_forever(place: Path, output: str, *settings: str, launcher: str = "torchrun") -> World:
    """Two ranks under `evo2 launch` that have saved a checkpoint and go on."""
    _, *arguments = command(place / output, "optimizer.steps=100000", *settings)
    words = ["launch", *arguments, "--local", "2", "--launcher", launcher]
    launched = World(1, place, output, words)
    saved = "step-*/resume.json"
    wait_until(lambda: any((place / output).glob(saved)) or not launched.is_running)
    assert launched.is_running, launched.finish()[1]
    return launched


def records(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def losses(folder: Path) -> list[float]:
    return [record["loss"] for record in records(folder)]


def numbers(folder: Path) -> list[dict[str, Any]]:
    """What does not depend on the clock."""
    keys = ("step", "loss", "gradient_norm", "valid_bits")
    return [{key: record.get(key) for key in keys} for record in records(folder)]


@pytest.fixture(scope="module")
def alone(place: Path) -> Path:
    """The run of a single process, by the plain engine."""
    run(place, 1, "alone")
    return place / "alone"


def assert_same_model(folder: Path, expected: Path) -> None:
    model, other = load(folder / "final"), load(expected / "final")
    for (name, tensor), reference in zip(
        model.state_dict().items(), other.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(
            tensor, reference, rtol=1e-3, atol=2e-4, msg=lambda text, name=name: f"{name}: {text}"
        )


def ranks_of(folder: Path) -> list[int]:
    """The processes that train into a folder; a launcher gives each a session of its own."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if str(folder).encode() in entry.read_bytes().split(b"\0"):
                found.append(int(entry.parent.name))
    return found


@pytest.mark.parametrize("zero", [0, 2])
def test_two_ranks_are_one(place: Path, alone: Path, zero: int) -> None:
    output = f"zero{zero}"
    said = run(place, 2, output, f"parallel.zero={zero}")
    assert ("on 2 x cpu, ZeRO" in said) == bool(zero)
    assert losses(place / output) == pytest.approx(losses(alone), rel=1e-5)
    assert_same_model(place / output, alone)


@pytest.mark.slow
def test_two_ranks_of_torchrun_are_one(place: Path, alone: Path) -> None:
    """And DeepSpeed compiles nothing for them."""
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "evo2cli"]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([*sys.path, str(ROOT)]),
        "TORCH_EXTENSIONS_DIR": str(place / "compiled"),
    }
    done = subprocess.run(
        [sys.executable, "-m", *launcher, *command(place / "zero1", "parallel.zero=1")],
        cwd=place,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert losses(place / "zero1") == pytest.approx(losses(alone), rel=1e-5)
    assert_same_model(place / "zero1", alone)
    assert not (place / "compiled").exists()


@pytest.mark.slow
def test_two_ranks_of_zero_3_are_one_also_after_a_kill(place: Path, alone: Path) -> None:
    """Kill -9 changes no bit of what comes out."""
    run(place, 2, "whole", "parallel.zero=3")
    assert losses(place / "whole") == pytest.approx(losses(alone), rel=1e-5)
    assert_same_model(place / "whole", alone)

    assert set(end_early(place, 2, "cut", "parallel.zero=3", by=signal.SIGKILL)) == {-9}
    assert not (place / "cut" / "final").exists()
    assert "resuming from step" in run(place, 2, "cut", "parallel.zero=3")
    assert numbers(place / "cut") == numbers(place / "whole")
    for name in ("model.safetensors", "config.toml"):
        assert (place / "cut" / "final" / name).read_bytes() == (
            place / "whole" / "final" / name
        ).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(("before", "zero", "after"), [(1, 0, 2), (2, 0, 1), (2, 1, 1), (2, 3, 1)])
def test_another_number_of_ranks_goes_on_with_the_same_windows(
    place: Path, alone: Path, before: int, zero: int, after: int
) -> None:
    """Stopped by SIGTERM, which saves; what one layout saved, another takes over."""
    output = f"resized{before}{zero}"
    end_early(place, before, output, f"parallel.zero={zero}", by=signal.SIGTERM)
    said = run(place, after, output, f"parallel.zero={2 if after > 1 else 0}")
    assert "was written by" in said
    assert losses(place / output) == pytest.approx(losses(alone), rel=1e-4)
    assert_same_model(place / output, alone)


@pytest.mark.slow
def test_ranks_that_divide_no_parameter_evenly_are_one(place: Path) -> None:
    """ZeRO 3 pads last shards: it saves, resumes, and takes over what another layout saved.

    Of 16 elements the last of 5 ranks has none, of all others fewer than the first.
    """
    world, batch = 5, "batch.sequences=5"
    run(place, 1, "alone5", batch)
    alone = place / "alone5"
    for output, first, zero in (("odd", world, 3), ("taken", 1, 0)):
        end_early(place, first, output, batch, f"parallel.zero={zero}", by=signal.SIGTERM)
        said = run(place, world, output, batch, "parallel.zero=3")
        assert "resuming from step" in said
        assert losses(place / output) == pytest.approx(losses(alone), rel=1e-4)
        assert_same_model(place / output, alone)


@pytest.mark.slow
def test_one_process_may_shard_without_a_launcher(place: Path, alone: Path) -> None:
    said = run(place, 1, "single", "parallel.zero=2")
    assert "on cpu by DeepSpeed" in said
    assert losses(place / "single") == pytest.approx(losses(alone), rel=1e-5)


@pytest.mark.slow
def test_bf16_weights_have_fp32_masters(place: Path, alone: Path) -> None:
    """The steps are too small for bf16 to see, one by one; masters add them up."""
    said = run(place, 2, "narrow", "precision.compute='bf16'", "parallel.zero=2")
    assert "2 x cpu, ZeRO 2" in said
    assert losses(place / "narrow") == pytest.approx(losses(alone), rel=0.02)
    weight = load(place / "narrow" / "final").embedding.weight
    assert not torch.equal(weight, weight.bfloat16().float())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("world", "context", "settings"),
    [
        (2, 2, ("parallel.attention='zigzag'",)),
        (
            4,
            2,
            (
                "parallel.zero=3",
                "memory.activation_checkpointing=2",
                "checkpoint.optimizer=false",
            ),
        ),
    ],
    ids=["2 to a window", "2 to each of 2 windows"],
)
def test_ranks_that_share_windows_are_one(
    place: Path, alone: Path, world: int, context: int, settings: tuple[str, ...]
) -> None:
    """Losses, weights of soft-masked bases and validation, across the border of a window.

    A checkpoint holds the model, also of weights alone.
    """
    output = f"shared{world}"
    said = run(place, world, output, f"parallel.context={context}", *settings)
    assert f"{world} x cpu, {context} per window" in said
    assert losses(place / output) == pytest.approx(losses(alone), rel=1e-5)
    assert records(place / output)[-1]["valid_bits"] == pytest.approx(
        records(alone)[-1]["valid_bits"], rel=1e-5
    )
    assert_same_model(place / output, alone)
    last = load(place / output / f"step-{STEPS:09}").state_dict()
    for name, tensor in load(place / output / "final").state_dict().items():
        assert torch.equal(last[name], tensor), name


@pytest.mark.slow
def test_a_rank_that_dies_ends_those_that_wait_for_its_part(place: Path) -> None:
    """Not a hang, and with its name."""
    launched = launch_forever(place, "dead", "parallel.context=2")
    os.kill(ranks_of(place / "dead")[-1], signal.SIGKILL)
    codes, said = launched.finish()
    assert "was killed by SIGKILL" in said
    assert codes == [128 + signal.SIGKILL]


def rank_number(process: int) -> str:
    """The RANK of a process."""
    variables = Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
    return next(v.removeprefix(b"RANK=").decode() for v in variables if v.startswith(b"RANK="))


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "deepspeed"])
def test_ranks_end_with_their_launcher(
    place: Path,
    launcher: str,
    command_line: Callable[..., tuple[int, str, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Until then, no other command trains into their folder; afterwards, one may."""
    monkeypatch.chdir(place)
    output = f"orphans-{launcher}"
    launched = launch_forever(place, output, launcher=launcher)
    _, *arguments = command(place / output)
    for second in (["launch", *arguments, "--local", "2"], ["train", *arguments]):
        code, _, said = command_line(*second)
        assert code == 2
        assert f"{output}/run.json: is being written by another command (process " in said
        assert len([line for line in said.splitlines() if line.startswith("evo2: ")]) == 1
    launched.signal(signal.SIGKILL)
    launched.finish()
    wait_until(lambda: not ranks_of(place / output))
    with locked(place / output / "run.json", wait=True):
        pass


@pytest.mark.slow
def test_a_rank_that_does_not_answer_is_named(place: Path) -> None:
    """The first one, which otherwise speaks for all."""
    launched = launch_forever(place, "silent", "guard.step_deadline=5")
    ranks = {rank_number(rank): rank for rank in ranks_of(place / "silent")}
    os.kill(ranks["0"], signal.SIGSTOP)
    codes, said = launched.finish()
    assert codes == [1]
    stacks = place / "silent" / "stacks-rank1.txt"
    assert "training/loop.py" in stacks.read_text()
    assert (
        f"evo2: a step took longer than guard.step_deadline = 5 s; rank 0 did not answer; the "
        f"stacks of rank 1 are in {stacks}; run the same command again to resume\n"
        "evo2: rank 1 exited with code 1, for the reason above; "
    ) in said
