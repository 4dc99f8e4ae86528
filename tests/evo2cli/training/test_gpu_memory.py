"""Memory of a GPU that trains."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from evo2cli.models import ALLOCATOR, pick_device
from evo2cli.training.gpu_memory import training_device
from evo2cli.training.metrics import MetricsLogger
from evo2cli.training.ranks import Ranks
from evo2cli.training.state import RunFolder
from tests.evo2cli.training.test_loop import make_recipe


@pytest.mark.parametrize("own", ["PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"])
@pytest.mark.parametrize(
    ("pick", "settings"),
    [(training_device, "expandable_segments:True"), (pick_device, ALLOCATOR)],
)
def test_the_allocator_is_configured_unless_the_user_has(
    pick: Callable[[str], torch.device], settings: str, own: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"
    for name in names:
        monkeypatch.setenv(name, "")  # restored at the end
        monkeypatch.delenv(name)
    assert pick("cpu") == torch.device("cpu")
    found = os.environ
    assert found["PYTORCH_ALLOC_CONF"] == settings
    monkeypatch.delenv("PYTORCH_ALLOC_CONF")
    monkeypatch.setenv(own, "max_split_size_mb:512")
    pick("cpu")
    assert [found.get(name) for name in names if name in found] == ["max_split_size_mb:512"]


def test_a_full_gpu_is_told_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = make_recipe(tmp_path / "run")
    folder = RunFolder(recipe, {}, Ranks.alone(torch.device("cpu")))
    folder.path.mkdir(parents=True, exist_ok=True)
    with MetricsLogger(folder, 3, 0, "", tracking=recipe.tracking) as logger:
        for step, full in enumerate(({}, {"memory_retries": 1}, {"memory_retries": 4}), 1):
            logger.log({"step": step, "loss": 1.0, "tokens": step, **full})
    assert capsys.readouterr().err.count("GPU memory is full, and the GPU stalls") == 1
    assert [each.get("memory_retries") for each in folder.records()] == [None, 1, 4]
