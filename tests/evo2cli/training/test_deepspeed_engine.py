"""The parts of DeepSpeed that the engine uses without a public interface are still there."""

import inspect
from collections.abc import Iterator

import pytest
import torch

pytest.importorskip("deepspeed", reason="needs the extra `train`")

from evo2cli.training.deepspeed_engine import import_deepspeed


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
