"""fp32 masters are fp32; and what DeepSpeed has without a public interface is still there."""

import inspect
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

pytest.importorskip("deepspeed", reason="needs the extra `train`")

from evo2cli.training.deepspeed_engine import DeepSpeedEngine, import_deepspeed
from evo2cli.training.engine import PlainEngine
from evo2cli.training.ranks import Ranks
from evo2cli.training.recipe import Recipe
from evo2cli.training.start import Start
from tests.evo2cli.tiny import CONFIG
from tests.ranks import Attempt, failures_on_ranks


@pytest.fixture(scope="module", autouse=True)
def _imported() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:  # what importing it sets is gone afterwards
        patch.setenv("DS_ACCELERATOR", "cpu")
        patch.setenv("DEEPSPEED_LOG_LEVEL", "error")
        import_deepspeed(torch.device("cpu"))
        yield


def test_the_shared_memory_collectives_are_switched_off() -> None:
    from deepspeed.ops import __compatible_ops__
    from deepspeed.ops.op_builder import ShareMemCommBuilder, all_ops

    assert __compatible_ops__[ShareMemCommBuilder.NAME] is False
    assert ShareMemCommBuilder.NAME in all_ops.ALL_OPS


@pytest.mark.parametrize("module", ["bf16_optimizer", "zero.stage_1_and_2"])
def test_optimizers_link_moments_by_these_names(module: str) -> None:
    from importlib import import_module

    text = inspect.getsource(import_module(f"deepspeed.runtime.{module}"))
    assert "def _lazy_init_hp_params_optimizer_state(self)" in text
    assert "self._hp_optimizer_states_linked = False" in text


def test_zero_3_keeps_the_whole_shape_under_this_name() -> None:
    from deepspeed.runtime.zero import partition_parameters

    assert "param.ds_shape = param.shape" in inspect.getsource(partition_parameters)


def starts_from_fp32(rank: int, world: int, zero: int) -> None:
    recipe = Recipe.model_validate(
        {
            "model": "tiny",
            "output": "run",
            "data": {"sources": [{"path": "tokens"}]},
            "batch": {"length": 32, "sequences": world},
            "optimizer": {
                "steps": 8,
                "warmup_steps": 2,
                "learning_rate": 1e-2,
                "min_learning_rate": 1e-3,
            },
            "parallel": {"zero": zero},
        }
    )
    assert recipe.precision.compute == "bf16"
    ranks = Ranks(rank, world, torch.device("cpu"))
    found = DeepSpeedEngine(recipe, Start(CONFIG), ranks).weights()
    if ranks.is_first:
        expected = PlainEngine(recipe, Start(CONFIG), Ranks.alone(ranks.device)).weights()
        assert found.keys() == expected.keys()
        different = [name for name in found if not torch.equal(found[name], expected[name])]
        assert not different, different
        views = [name for name, x in found.items() if x.untyped_storage().nbytes() != x.nbytes]
        assert not views, views


def checks_of_stages(rank: int, attempt: Attempt) -> None:
    world = torch.distributed.get_world_size()
    os.environ["LOCAL_RANK"] = str(rank)
    for zero in (1, 2, 3):
        attempt(f"ZeRO {zero}", starts_from_fp32, rank, world, zero)


@pytest.mark.parametrize("world", [1, 2, pytest.param(3, marks=pytest.mark.slow)])
def test_masters_start_from_the_initial_weights_bit_for_bit(tmp_path: Path, world: int) -> None:
    """Not from weights rounded to bf16; and `weights` returns no view into a padded buffer."""
    assert failures_on_ranks(world, tmp_path, checks_of_stages) == {}
