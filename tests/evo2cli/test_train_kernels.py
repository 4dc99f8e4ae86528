"""Kernels are compiled before the first step: by the rank that should, once, and never fatally."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from evo2cli.errors import UserError
from evo2cli.train import kernels
from evo2cli.training.ranks import Ranks
from evo2cli.training.recipe import Recipe
from evo2cli.training.start import Start
from tests.evo2cli import tiny

CONFIG = replace(tiny.CONFIG, stripes="SMLASM")
GPU = torch.device("cuda", 0)


def make_recipe(**tables: dict[str, Any]) -> Recipe:
    values = {
        "model": "tiny",
        "output": "run",
        "data": {"sources": [{"path": "tokens"}]},
        "batch": {"length": 32, "sequences": 8, "micro_sequences": 2},
        "optimizer": {
            "steps": 8,
            "warmup_steps": 2,
            "learning_rate": 1e-2,
            "min_learning_rate": 1e-3,
        },
        **tables,
    }
    return Recipe.model_validate(values)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Triton's cache on a machine with a GPU, which its processes replace by the CPU."""
    monkeypatch.setattr(kernels, "_cache", lambda: tmp_path / "cache")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: "H200")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (140 * 2**30, 141 * 2**30))
    return tmp_path / "cache"


def fail(*_: object) -> None:
    raise UserError("no memory")


def compile_all(recipe: Recipe, ranks: Ranks, trial: kernels.Trial = kernels.take_step) -> None:
    kernels.compile_kernels(trial, recipe, Start(CONFIG), ranks)


def run_here(tasks: Iterator[Any], count: int, advance: Any) -> Iterator[Any]:
    """Stands for processes."""
    assert count > 1
    for task in tasks:
        *arguments, device = task.args
        assert device == "cuda:0"
        yield task.func(*arguments, "cpu", advance)


def test_each_kind_of_block_takes_a_step_once(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the windows of a forward pass of this run; another shape compiles anew."""
    made = []

    def take(recipe: Recipe, start: Start, ranks: Ranks) -> None:
        made.append((start.config.stripes, recipe.batch.length, recipe.batch.sequences))
        kernels.take_step(recipe, start, ranks)

    monkeypatch.setattr(kernels, "run_tasks", run_here)
    for _ in range(2):
        compile_all(make_recipe(), Ranks(0, 1, GPU), take)
    assert made == [(kind, 32, 2) for kind in "ALMS"]
    compile_all(make_recipe(batch={"length": 64, "sequences": 8}), Ranks(0, 1, GPU), take)
    assert made[4:] == [(kind, 64, 8) for kind in "ALMS"]
    assert len([*cache.iterdir()]) == 2
    assert "warning" not in capsys.readouterr().err


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize(("gib", "batches"), [(140, ["ALMS"]), (32, ["AL", "MS"]), (1, [*"ALMS"])])
def test_only_as_many_steps_as_fit_are_taken_at_once(
    gib: float, batches: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A block of this width needs 15 GiB for two windows of 2^20 positions."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (int(gib * 2**30), 2**40))
    taken = []

    def run(tasks: Iterator[Any], _count: int, _advance: Any) -> Iterator[Any]:
        taken.append("".join(task.args[2].config.stripes for task in tasks))
        yield from taken[-1]

    monkeypatch.setattr(kernels, "run_tasks", run)
    batch = {"length": 2**20, "sequences": 8, "micro_sequences": 2}
    compile_all(make_recipe(batch=batch), Ranks(0, 1, GPU))
    assert taken == batches


@pytest.mark.usefixtures("cache")
def test_other_ranks_and_machines_without_gpus_compile_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compile_all(make_recipe(), Ranks.alone(torch.device("cpu")), fail)
    monkeypatch.setenv("LOCAL_RANK", "1")
    compile_all(make_recipe(), Ranks(1, 2, GPU), fail)


def test_ranks_that_share_windows_compile_for_their_part() -> None:
    recipe = make_recipe(parallel={"context": 2, "zero": 1})
    alone = kernels._for_one_rank(recipe, Ranks(0, 4, GPU, context_parallel=2))
    assert (alone.batch.length, alone.batch.sequences) == (16, 2)
    assert (alone.parallel.zero, alone.parallel.context) == (1, 1)
    assert alone.micro(1) == 2


@pytest.mark.slow
def test_a_process_that_fails_is_a_warning(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    compile_all(make_recipe(), Ranks(0, 1, GPU), fail)
    assert "compiled at the first step, not in advance: " in capsys.readouterr().err
    assert not cache.exists()


def test_triton_says_where_its_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    assert kernels._cache() == tmp_path
