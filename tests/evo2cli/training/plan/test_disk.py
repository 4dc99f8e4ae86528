"""A checkpoint on disk is as large as planned, whichever engine writes it."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from evo2cli.tokenize.options import TokenizeOptions
from evo2cli.tokenize.run import tokenize_files
from evo2cli.training.plan.disk import checkpoint_bytes
from evo2cli.training.plan.estimate import count_sizes, make_setup
from evo2cli.training.recipe_file import read_recipe, read_shape

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
needs_deepspeed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="needs the extra `train`"
)


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        ("precision.compute='fp32'",),
        ("precision.compute='bf16'", "optimizer.ema=0.9"),
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
    command = [sys.executable, "-m", "evo2cli", "train", file.name, "--device", "cpu", *changes]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    (folder,) = (tmp_path / "run").glob("step-*2")
    written = sum(part.stat().st_size for part in folder.rglob("*") if part.suffix != ".py")

    recipe = read_recipe(file, settings)
    config = read_shape(recipe, file)
    counts = count_sizes(recipe, config)
    planned = checkpoint_bytes(counts, make_setup(recipe, config, 1))
    assert counts.all > counts.folded
    assert planned < written < 1.05 * planned
