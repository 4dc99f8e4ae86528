"""A plan keeps the laws of memory, and what it advises does fit."""

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from evo2cli.training.engine import PlainEngine
from evo2cli.training.plan.calibration import SHARED
from evo2cli.training.plan.estimate import Plan, advice, make_plan, possible_gpus
from evo2cli.training.plan.hardware import find_accelerator
from evo2cli.training.plan.memory import Memory, Setup, memory_per_gpu, sizes
from evo2cli.training.ranks import Ranks
from evo2cli.training.recipe import Recipe
from evo2cli.training.recipe_file import read_recipe, read_shape
from evo2cli.training.start import Start
from stripedhyena2 import ModelConfig
from stripedhyena2.checkpoint.published import published_config

CONFIG = published_config("evo2_7b_base")
COUNTS = sizes(CONFIG)
RECIPES = Path(__file__).parents[4] / "recipes"


def memory(**changes: Any) -> Memory:
    values: dict[str, Any] = {
        "gpus": 64,
        "zero": 3,
        "length": 8_192,
        "micro": 2,
        "accumulation": 4,
        "checkpointing": 4,
        "compute": "bf16",
    }
    return memory_per_gpu(CONFIG, COUNTS, Setup(**{**values, **changes}))


def plan(name: str, gpus: int, *settings: str, gpu: str = "h100-80gb") -> tuple[Plan, Recipe]:
    recipe = read_recipe(RECIPES / name, settings)
    found = find_accelerator(gpu)
    assert found is not None
    return make_plan(recipe, read_shape(recipe), gpus=gpus, gpu=found), recipe


def test_states_are_what_the_plain_engine_allocates(tiny_config: ModelConfig) -> None:
    recipe = Recipe.model_validate(
        {
            "model": "tiny",
            "output": "run",
            "data": {"sources": [{"path": "tokens"}]},
            "batch": {"length": 32, "sequences": 4, "micro_sequences": 2},
            "optimizer": {
                "steps": 10,
                "warmup_steps": 2,
                "learning_rate": 1e-3,
                "min_learning_rate": 1e-4,
                "decay": "evo2-published",
            },
            "precision": {"compute": "fp32"},
        }
    )
    engine = PlainEngine(recipe, Start(tiny_config), Ranks.alone(torch.device("cpu")))
    parameters = list(engine.model.parameters())
    counts = sizes(tiny_config, published=True)
    ids = torch.zeros(2, 32, dtype=torch.long)
    engine.backward(engine.forward(ids).sum(), last=False)
    gradients = sum(p.grad.nbytes for p in parameters if p.grad is not None)
    engine.step(1e-3)
    moments = sum(
        state[name].nbytes
        for state in engine.optimizer.state.values()
        for name in ("exp_avg", "exp_avg_sq")
    )
    setup = Setup(
        gpus=1, zero=0, length=32, micro=2, accumulation=2, checkpointing=0, compute="fp32"
    )
    planned = memory_per_gpu(tiny_config, counts, setup)
    assert counts.all == sum(parameter.numel() for parameter in parameters)
    assert planned.weights == sum(parameter.nbytes for parameter in parameters)
    assert planned.optimizer == moments
    # At their peak, the largest gradient exists twice: as it comes, and in its sum.
    assert planned.gradients in (gradients, gradients + 4 * counts.largest)


@pytest.mark.parametrize("zero", [1, 2, 3])
def test_more_gpus_never_need_more_memory(zero: int) -> None:
    totals = [memory(zero=zero, gpus=gpus).total for gpus in (2, 8, 64, 256, 1024)]
    assert totals == sorted(totals, reverse=True)


def test_a_higher_stage_shards_more() -> None:
    stages = [memory(zero=zero) for zero in (1, 2, 3)]
    for lower, higher in itertools.pairwise(stages):
        for part in ("weights", "gradients", "optimizer"):
            assert getattr(higher, part) <= getattr(lower, part)
    assert stages[2].weights == stages[0].weights / 64


def test_checkpointing_and_smaller_micro_batches_need_less() -> None:
    none, every_4, every_2 = (memory(checkpointing=blocks).activations for blocks in (0, 4, 2))
    assert none > every_4 > every_2
    assert memory(micro=1).activations == memory(micro=2).activations / 2


def test_longer_windows_need_as_much_more_as_more_windows() -> None:
    assert memory(length=16_384, micro=1) == memory(length=8_192, micro=2)


@pytest.mark.parametrize(
    ("name", "gpus", "settings", "gpu"),
    [
        ("40b.toml", 256, (), "h100-80gb"),
        ("1b.toml", 1, (), "a100-40gb"),
        ("7b.toml", 8, ("parallel.zero=1",), "h100-80gb"),
        ("7b.toml", 8, ("batch.micro_sequences=64",), "a100-80gb"),
    ],
)
def test_what_is_advised_fits(name: str, gpus: int, settings: tuple[str, ...], gpu: str) -> None:
    tight, recipe = plan(name, gpus, *settings, gpu=gpu)
    assert not tight.fits
    advised = advice(tight, recipe)
    assert advised.startswith("set ")
    changes = [f"{key.replace(' ', '')}" for key in advised.removeprefix("set ").split(", ")]
    assert plan(name, gpus, *settings, *changes, gpu=gpu)[0].fits


def test_where_no_change_helps_more_gpus_are_advised() -> None:
    tight, recipe = plan("7b.toml", 1)
    assert not tight.fits
    assert advice(tight, recipe).startswith("use at least 2 GPUs")
    too_wide = ('shape.stripes="SMLA"', "shape.width=65536", "batch.sequences=4")
    alone, recipe = plan("nano.toml", 1, *too_wide)
    assert not alone.fits
    assert advice(alone, recipe) == "use GPUs with more memory, or a shorter batch.length"


@pytest.mark.parametrize("context", [1, 4])
def test_the_numbers_of_gpus_that_can_share_a_step_are_those_the_batch_takes(context: int) -> None:
    _, recipe = plan("1b.toml", 1)
    if context > 1:
        parallel = recipe.parallel.model_copy(update={"context": context})
        recipe = recipe.model_copy(update={"parallel": parallel})
    counts = possible_gpus(recipe)
    for gpus in range(1, 300):
        try:
            recipe.micro(gpus)
        except ValueError:
            assert gpus not in counts
        else:
            assert gpus in counts


def test_gpus_that_share_a_window_hold_a_part_of_its_activations() -> None:
    whole = memory(length=2**17)
    shared = memory(length=2**17, context=8)
    exchanged = SHARED * 2 * CONFIG.width * 2 * 2**14  # 2 bytes; 2 windows of 2**14
    assert shared.activations == pytest.approx(whole.activations / 8 + exchanged)
    assert replace(shared, activations=0, framework=0) == replace(whole, activations=0, framework=0)


def test_the_run_is_steps_times_a_step() -> None:
    large, _ = plan("40b.toml", 1024)
    assert large.tokens == 656_000 * 16_777_216
    assert large.days == 656_000 * large.time.total / 86_400
    assert large.gpu_hours == large.days * 24 * 1024
    assert large.utilization < 1


def tuned(method: str, base: str) -> Plan:
    """Fine-tuning of the 7B shape at 8,192 positions on one GPU."""
    config = published_config("evo2_7b_base")
    recipe = Recipe.model_validate(
        {
            "init": "evo2_7b_base",
            "output": "run",
            "data": {"sources": [{"path": "x.tsv"}]},
            "batch": {"length": 8192, "sequences": 8, "micro_sequences": 1},
            "optimizer": {
                "steps": 10,
                "warmup_steps": 0,
                "learning_rate": 1e-4,
                "min_learning_rate": 0,
            },
            "memory": {"activation_checkpointing": 1},
            "finetune": {"task": "classify", "method": method, "base": base},
        }
    )
    gpu = find_accelerator("h100-80gb")
    assert gpu is not None
    return make_plan(recipe, config, gpus=1, gpu=gpu)


def test_fine_tuning_needs_less_the_less_is_trained() -> None:
    full, lora = tuned("full", "fp32"), tuned("lora", "bf16")
    rounded, head = tuned("lora", "fp8"), tuned("head", "bf16")
    totals = [plan.memory.total for plan in (full, lora, rounded)]
    assert totals == sorted(totals, reverse=True)
    assert lora.memory.total < 80e9
    assert rounded.memory.total < 48e9
    assert head.memory.total < lora.memory.total
    times = [plan.time.total for plan in (full, lora, head)]
    assert times == sorted(times, reverse=True)
    assert lora.time.total < 0.85 * full.time.total
    assert lora.disk.at_end < full.disk.at_end / 100
