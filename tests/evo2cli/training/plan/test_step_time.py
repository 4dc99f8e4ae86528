"""Predicted times stand beside the published ones."""

from dataclasses import replace

import pytest

from evo2cli.training.plan.hardware import find_accelerator
from evo2cli.training.plan.memory import Setup, sizes
from evo2cli.training.plan.step_time import StepTime, step_time
from stripedhyena2 import ModelConfig
from stripedhyena2.checkpoint.published import published_config
from stripedhyena2.parallelize import Schemes

# Seconds of a step at 16,384 and 32,768 positions. Source: Figure 2.2 of arXiv:2503.01868; FP8
# products, 2-way (7B) and 8-way (40B) tensor parallelism, on H100s.
PUBLISHED = {
    ("evo2_7b_base", "A"): (2.46, 3.32),
    ("evo2_7b_base", "SMLA"): (2.25, 2.53),
    ("evo2_40b_base", "A"): (6.80, 8.32),
    ("evo2_40b_base", "SMLA"): (6.00, 6.70),
}


def setup(gpus: int, zero: int, length: int = 8_192, checkpointing: int = 4) -> Setup:
    return Setup(
        gpus=gpus,
        zero=zero,
        length=length,
        micro=1,
        accumulation=1,
        checkpointing=checkpointing,
        compute="bf16",
        fp8=True,
    )


def predict(config: ModelConfig, setup: Setup, tokens: float) -> StepTime:
    gpu = find_accelerator("h100-80gb")
    assert gpu is not None
    return step_time(config, sizes(config), setup, gpu, tokens=tokens)


@pytest.mark.parametrize("run", PUBLISHED, ids="-".join)
def test_published_steps_are_predicted_from_below(run: tuple[str, str]) -> None:
    """Those runs had slower convolutions, norms and rotary positions op by op, other shares."""
    name, kinds = run
    config = published_config(name)
    if kinds == "A":
        config = replace(config, stripes="A" * config.depth)
    large = name == "evo2_40b_base"
    gpus, zero, tokens = (1024, 3, 2**23) if large else (256, 1, 2**22)
    for length, seconds in zip((16_384, 32_768), PUBLISHED[run], strict=True):
        checkpointing = (2 if length == 16_384 else 1) if large else 4
        parallel = setup(gpus, zero, length, checkpointing)
        predicted = predict(config, parallel, tokens / gpus).total
        assert 0.64 < predicted / seconds < 1.02


def test_more_work_takes_longer_and_recomputing_takes_a_third_more() -> None:
    config = published_config("evo2_7b_base")
    base = predict(config, setup(8, 1), 2**14)
    assert predict(config, setup(8, 1), 2**15).products == 2 * base.products
    assert predict(config, setup(8, 1, length=16_384), 2**14).attention == 2 * base.attention
    assert base.products == pytest.approx(
        4 / 3 * predict(config, setup(8, 1, checkpointing=0), 2**14).products
    )


def test_one_gpu_waits_for_none_and_transfers_hide_only_under_zero_3() -> None:
    config = published_config("evo2_7b_base")
    assert predict(config, setup(1, 1), 2**14).transfers == 0
    for zero in (1, 2):
        time = predict(config, setup(64, zero), 2**14)
        assert time.waiting == time.transfers > 0
    time = predict(config, setup(64, 3), 2**14)
    assert 0 < time.waiting < time.transfers


def test_sharing_windows_costs_exchanges_that_only_a_ring_hides() -> None:
    config = published_config("evo2_40b_base")
    shared = replace(setup(512, 3, length=2**20, checkpointing=1), context=64)
    alone = predict(config, setup(512, 3, length=2**20, checkpointing=1), 2**14)
    heads = predict(config, shared, 2**14)
    zigzag = predict(config, replace(shared, schemes=Schemes(attention="zigzag")), 2**14)
    assert heads.attention == alone.attention
    extra = heads.transfers - alone.transfers
    assert heads.waiting == pytest.approx(alone.waiting + extra)
    # 8 blocks send 4 x 8,192 numbers of 2 bytes a position, three times, at 40 GB/s.
    assert extra == pytest.approx(8 * 4 * 63 / 64 * 8192 * 2 * 2**14 * 3 / 40e9, rel=0.01)
    assert zigzag.transfers > heads.transfers
    assert zigzag.waiting < alone.waiting + zigzag.transfers - alone.transfers
