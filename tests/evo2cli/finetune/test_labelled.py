"""Kernels of a fine-tuning run are compiled by what the run will do, before it does it."""

import pickle
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from evo2cli.finetune import labelled
from evo2cli.finetune.folder import Description
from evo2cli.finetune.heads import Reading
from evo2cli.finetune.tasks import Labels, Task
from evo2cli.finetune.training import TunedStart
from evo2cli.train import kernels, run
from evo2cli.training.ranks import Ranks
from evo2cli.training.recipe import Recipe
from evo2cli.training.start import Start
from stripedhyena2.adapters import LoRA
from stripedhyena2.checkpoint import read_checkpoint
from stripedhyena2.model import Block
from tests.evo2cli.finetune.conftest import Run, small_table

GPU = torch.device("cuda", 0)


def run_here(tasks: Iterator[Any], count: int, advance: Any) -> Iterator[Any]:
    """Stands for processes that find a CPU where the GPU is."""
    assert count > 1
    for task in tasks:
        trial, recipe, start, device = task.args
        assert device == "cuda:0"
        if isinstance(start, TunedStart):
            start = replace(start, device="cpu")
        yield task.func(trial, recipe, start, "cpu", advance)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, set[tuple[object, ...]]]:
    """How blocks are computed: "tried" in advance, and "done" by the run; all on the CPU."""
    found: dict[str, set[tuple[object, ...]]] = {"tried": set(), "done": set(), "reported": set()}
    phase = ["done"]

    def compile_all(trial: kernels.Trial, recipe: Recipe, start: Start, ranks: Ranks) -> None:
        assert ranks.device == torch.device("cpu")
        assert not found["done"]
        phase[0] = "tried"
        kernels.compile_kernels(trial, recipe, start, Ranks(0, 1, GPU))
        phase[0] = "done"

    def forward(block: Any, x_BLD: torch.Tensor, past: Any) -> Any:
        of_input = torch.is_grad_enabled() and x_BLD.requires_grad
        of_weights = any(p.requires_grad for p in block.parameters()) and torch.is_grad_enabled()
        linear = block.mixer.project_in
        form = (
            type(block.mixer).__name__,
            (type(linear).__name__, linear.weight.dtype, x_BLD.dtype),
            past is None,
            of_input,
            of_input or of_weights,
        )
        found[phase[0]].add(form)
        return compute(block, x_BLD, past)

    def report(self: Any, trainer: Any) -> Any:
        phase[0] = "reported"
        return make_report(self, trainer)

    compute, make_report = Block.forward, labelled.LabelledRun.report
    monkeypatch.setattr(Block, "forward", forward)
    monkeypatch.setattr(labelled.LabelledRun, "report", report)
    monkeypatch.setattr(kernels, "_cache", lambda: tmp_path / "cache")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: "H200")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (140 * 2**30, 141 * 2**30))
    monkeypatch.setattr(kernels, "run_tasks", run_here)
    for module in (labelled, run):
        monkeypatch.setattr(module, "compile_kernels", compile_all)
    return found


NARROW = {"settings": ("precision.compute='bf16'",)}


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("classify", {"method": "lora", "base": "bf16", **NARROW}),
        ("tokens", {"method": "lora", "base": "fp8", "strand": "both", "layer": "1", **NARROW}),
        ("pairs", {"method": "lora", "targets": r"blocks\.3\.mlp\.up", "dora": True}),
        ("regress", {"method": "full", "label_cols": "y1,y2", **NARROW}),
        ("multilabel", {"method": "head", "label_cols": "y1,y2", **NARROW}),
        ("classify", {"method": "head", "pool": "attention"}),
        ("lm", {"method": "lora", "base": "bf16", "task": Task.LM, "length": 64, **NARROW}),
    ],
    ids=lambda x: x if isinstance(x, str) else "-".join(map(str, x.values()))[:20],
)
def test_what_a_run_does_with_a_block_was_tried_before(
    tune: Run, tmp_path: Path, seen: dict[str, set[Any]], kind: str, options: dict[str, Any]
) -> None:
    path = tmp_path / "x.fa"
    if kind == "lm":
        text = "".join(np.random.default_rng(0).choice(list("ACGT"), 2000))
        path.write_text(f">a\n{text}\n")
    else:
        path = small_table(tmp_path / "x.tsv", kind)
    tune(path, **options)
    assert seen["tried"]
    assert seen["done"] <= seen["tried"]
    assert any(form[-1] for form in seen["tried"]) == (options["method"] != "head")
    assert len([*(tmp_path / "cache").iterdir()]) == 1


def test_a_finished_or_resumed_run_compiles_nothing_again(
    tune: Run, tmp_path: Path, seen: dict[str, set[Any]]
) -> None:
    table = small_table(tmp_path / "x.tsv", "classify")
    tune(table, method="lora")
    before = set(seen["tried"])
    seen["tried"].clear()
    seen["done"].clear()
    tune(table, "again", method="lora", seed=1)
    assert before
    assert not seen["tried"]


@pytest.mark.parametrize(
    ("options", "message"),
    [({"layer": "blocks.77"}, "no such layer"), ({"pool": "median"}, "--pool median: must be")],
)
def test_a_wrong_option_is_refused_before_anything_is_compiled(
    tune: Run, tmp_path: Path, seen: dict[str, set[Any]], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        tune(small_table(tmp_path / "x.tsv", "classify"), method="lora", **options)
    assert not seen["tried"]


def test_processes_try_what_is_sent_to_them(base: str) -> None:
    """A start travels to another process, with nothing of the weights of the base."""
    config = read_checkpoint(base).config
    description = Description(
        Labels(Task.CLASSIFY, ("a", "b")),
        "lora",
        base,
        "",
        32,
        reading=Reading("blocks.3", "mean"),
        num_features=config.width,
        adapters=LoRA(rank=2),
    )
    start = TunedStart(config, description=description).of_block("S")
    sent = pickle.dumps(start)
    assert len(sent) < 10_000
    assert pickle.loads(sent) == start  # noqa: S301 # our own bytes
