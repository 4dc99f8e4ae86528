"""Predicted times stand beside the published ones."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from evo2cli.training.plan.calibration import HOOKS
from evo2cli.training.plan.hardware import find_accelerator
from evo2cli.training.plan.memory import Setup, sizes
from evo2cli.training.plan.step_time import StepTime, step_time
from stripedhyena2 import ModelConfig
from stripedhyena2.checkpoint.published import published_config
from stripedhyena2.model import MLP_TOKENS
from stripedhyena2.parallelize import Schemes

RESULTS = Path(__file__).parents[4] / "tests" / "benchmarks" / "results" / "training.md"

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
        assert 0.54 < predicted / seconds < 1.02


# GPU, model, micro-batch, ZeRO stage, FP8, and the row of training.md with the seconds of a step.
MEASURED = [
    ("h100-80gb", "1b", 2, 0, False, r"seconds a step \| (0\.990) "),
    ("h100-80gb", "1b", 2, 0, True, r"seconds a step \| 0\.990 \| 0\.\d+ \| (0\.840) "),
    ("h200", "1b", 1, 0, False, r"\| 1B, plain, one GPU \| bf16 \| 1 \| (0\.976) "),
    ("h200", "1b", 2, 0, False, r"\| 1B, plain, one GPU \| bf16 \| 2 \| (0\.921) "),
    ("h200", "1b", 2, 3, False, r"\| ZeRO 3 \| (0\.973) "),
    ("h200", "7b", 1, 3, False, r"\| 7B, ZeRO 3 \| bf16 \| 1 \| (1\.371) "),
    ("h200", "7b", 2, 3, False, r"\| 7B, ZeRO 3 \| bf16 \| 2 \| (1\.253) "),
    ("h200", "7b", 1, 3, True, r"\| 7B, ZeRO 3 \| FP8 \| 1 \| (1\.031) "),
    ("h200", "7b", 2, 3, True, r"\| 7B, ZeRO 3 \| FP8 \| 2 \| (0\.876) "),
]


def whole_windows(zero: int, *, windows: int = 8, micro: int = 2, fp8: bool = False) -> Setup:
    """Windows of 8,192 of a GPU and step, in micro-batches, on two GPUs."""
    return Setup(
        gpus=2,
        zero=zero,
        length=8_192,
        micro=micro,
        accumulation=windows // micro,
        checkpointing=0,
        compute="bf16",
        fp8=fp8,
    )


@pytest.mark.parametrize(("name", "model", "micro", "zero", "fp8", "row"), MEASURED)
def test_measured_steps_are_predicted_within_a_tenth(
    name: str, model: str, micro: int, zero: int, fp8: bool, row: str
) -> None:
    (seconds,) = re.findall(row, RESULTS.read_text())
    gpu, config = find_accelerator(name), published_config(f"evo2_{model}_base")
    assert gpu is not None
    windows = 8 if model == "1b" else 2
    run = whole_windows(zero, windows=windows, micro=micro, fp8=fp8)
    if zero == 0:
        run = replace(run, gpus=1)
    found = step_time(config, sizes(config), run, gpu, tokens=windows * 8_192).total
    assert found == pytest.approx(float(seconds), rel=0.1)


def test_python_is_waited_for_under_zero_3_in_every_block_and_pass_of_a_micro_batch() -> None:
    config = published_config("evo2_1b_base")
    for zero in (0, 1, 2):
        assert predict(config, whole_windows(zero), 2**16).host == 0
    for micro, recomputed, block_passes in ((8, 0, 50), (2, 0, 200), (2, 1, 300)):
        setup = replace(whole_windows(3, micro=micro), checkpointing=recomputed)
        assert predict(config, setup, 2**16).host == pytest.approx(block_passes * HOOKS)


def test_an_mlp_in_chunks_is_computed_once_more() -> None:
    config = published_config("evo2_7b_base")
    whole, chunked = (setup(1, 0, length=length) for length in (MLP_TOKENS, MLP_TOKENS + 1))
    products = [predict(config, each, 2**20).products for each in (whole, chunked)]
    mlp = 3 * config.mlp_width / (4 * config.width + 3 * config.mlp_width)
    assert products[1] / products[0] == pytest.approx((4 + mlp) / 4)


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
