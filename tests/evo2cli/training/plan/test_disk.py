"""A checkpoint on disk is as large as planned, whichever engine writes it."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evo2cli.tokenize.options import TokenizeOptions
from evo2cli.tokenize.run import tokenize_files
from evo2cli.training.plan.disk import disk
from evo2cli.training.plan.estimate import count_sizes, make_setup
from evo2cli.training.plan.memory import Setup, Sizes
from evo2cli.training.recipe import Recipe
from evo2cli.training.recipe_file import read_recipe, read_shape
from tests.ranks import World

SIZES = Sizes(all=1100, folded=1000, block=500, products=900, largest=300)
RECIPE = """
model = "models/toy"
output = "run"
[data]
sources = [{ path = "tokens" }]
[batch]
length = 32
sequences = 2
[optimizer]
steps = 2
warmup_steps = 1
learning_rate = 1e-3
min_learning_rate = 1e-4
decay = "evo2-published"
[validation]
windows = 1
"""
FULL = {"task": "lm", "method": "full"}
needs_deepspeed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="needs the extra `train`"
)


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        ("precision.compute='fp32'",),
        ("precision.compute='bf16'", "optimizer.ema=0.9"),
        ("checkpoint.optimizer=false",),
        pytest.param(("precision.compute='fp32'", "parallel.zero=1"), marks=needs_deepspeed),
        pytest.param(("precision.compute='bf16'", "parallel.zero=2"), marks=needs_deepspeed),
        pytest.param(("precision.compute='bf16'", "parallel.zero=3"), marks=needs_deepspeed),
    ],
    ids="-".join,
)
def test_a_checkpoint_is_as_large_as_planned(tmp_path: Path, settings: tuple[str, ...]) -> None:
    letters = np.random.default_rng(0).choice([*"ACGT"], 4_000)
    (tmp_path / "g.fa").write_text(f">a\n{''.join(letters)}\n>b\n{''.join(letters[:500])}\n")
    options = TokenizeOptions(
        files=(tmp_path / "g.fa",), output=tmp_path / "tokens", valid_fraction=0
    )
    tokenize_files(options)
    file = tmp_path / "recipe.toml"
    file.write_text(RECIPE)
    changes = [argument for setting in settings for argument in ("--set", setting)]
    command = ["train", file.name, "--device", "cpu", *changes]
    codes, said = World(1, tmp_path, "log", command).finish()
    assert codes == [0], said
    (folder,) = (tmp_path / "run").glob("step-*2")
    written = sum(part.stat().st_size for part in folder.rglob("*") if part.suffix != ".py")

    recipe = read_recipe(file, settings)
    config = read_shape(recipe)
    counts = count_sizes(recipe, config)
    planned = disk(recipe, counts, make_setup(recipe, config, 1))
    assert counts.all > counts.folded
    assert planned.checkpoint < written < 1.05 * planned.checkpoint
    (model,) = (tmp_path / "run" / "final").glob("*.safetensors")
    assert planned.final < model.stat().st_size < 1.05 * planned.final


@given(
    steps=st.integers(1, 60),
    every=st.integers(1, 20),
    keep=st.integers(1, 8),
    keep_every=st.none() | st.integers(1, 30),
    tuned=st.booleans(),
)
def test_checkpoints_are_counted_as_they_are_kept(
    steps: int, every: int, keep: int, keep_every: int | None, tuned: bool
) -> None:
    """Of a fine-tuning also the best weights, which at worst every step improves."""
    model, checkpoint = 4 * SIZES.folded, 4 * SIZES.folded + 12 * SIZES.all
    there, most, peak = [], 0, 0
    for step in range(1, steps + 1):
        if tuned:
            peak = max(peak, len(there) * checkpoint + (model if step == 1 else 2 * model))
        if step % every and step != steps:
            continue
        there.append(step)
        most = max(most, len(there))
        peak = max(peak, len(there) * checkpoint + (model if tuned else 0))
        there = [
            old for old in there[:-keep] if keep_every is not None and old % keep_every == 0
        ] + there[-keep:]
    peak = max(peak, len(there) * checkpoint + model)
    recipe = Recipe.model_validate(
        {
            **({"init": "nano", "finetune": FULL} if tuned else {"model": "models/toy"}),
            "output": "run",
            "data": {"sources": [{"path": "tokens"}]},
            "batch": {"length": 32, "sequences": 2},
            "optimizer": {
                "steps": steps,
                "warmup_steps": 0,
                "learning_rate": 1e-3,
                "min_learning_rate": 1e-4,
            },
            "checkpoint": {"every": every, "keep": keep, "keep_every": keep_every},
        }
    )
    setup = Setup(
        gpus=1, zero=0, length=32, micro=2, accumulation=1, checkpointing=0, compute="fp32"
    )
    planned = disk(recipe, SIZES, setup)
    assert (planned.kept, planned.most) == (len(there), most)
    assert (planned.checkpoint, planned.final) == (checkpoint, model)
    assert planned.best == (model if tuned else 0)
    assert planned.at_end == planned.kept * planned.checkpoint + planned.final
    assert planned.peak == peak
