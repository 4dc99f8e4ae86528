"""How far inference is from what the GPU's matrix units and memory allow.

Run: pytest -m benchmark -s tests/benchmarks/test_inference_speed.py; results/inference.md keeps
what it writes into the folder EVO2_BENCHMARK_RESULTS.

B sequences side by side, L tokens, D channels.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import cache, lru_cache

import pytest
import torch
from torch import Tensor

from evo2cli import console
from evo2cli.training.plan.flops import flops_per_token
from stripedhyena2 import ModelConfig, StripedHyena2
from stripedhyena2.checkpoint.published import published_config
from stripedhyena2.decoding import Decoder
from stripedhyena2.streaming import Streaming, stream
from tests.benchmarks.gpu import Report, cell, draw_bf16, measure, needs_gpu
from tests.benchmarks.inference import ids_of, model_of, seconds, spread_model

ABOUT = """\
# Speed of inference

Random weights of published shapes, bf16, one GPU; times are medians, wall clock, of warm calls.

Forward: one pass over one sequence, logits of all tokens. The bound is the operations of
projections, MLPs, attention and head at the rate that an 8,192 x 8,192 x 8,192 product of bf16
numbers reached in the same run. Streamed: the same, layer by layer in pieces, as `evo2 score` reads
a FASTA; "host" keeps what grows with the length in the host's memory. The peak counts everything,
weights included.

Spread: 40B with its blocks on several GPUs, which compute one after the other.

Decode: one token of every sequence, sampling left out, after a prompt of 2,048 tokens. The bound
reads every weight once a step, and every key, value and state, at the rate of a device-to-device
copy in the same run.

FP8: the same model as `--dtype fp8` loads it, beside bf16 in the same run; also with keys and
values in FP8. `-k float8` runs this table alone, which takes about two minutes. A million bases
streamed "FP8" are read by that model too.

Command: `pytest -m benchmark -s tests/benchmarks/test_inference_speed.py`"""

MODELS = ["evo2_1b_base", "evo2_7b"]
PROMPT, CAPACITY, STEPS = 2_048, 2_560, 64


@pytest.fixture(scope="module")
def report(request: pytest.FixtureRequest) -> Iterator[Report]:
    report = Report("inference.md", ABOUT, request.path.parent / "results")
    yield report
    console.say(f"{report.path}\n{report}")


@cache
def product_rate() -> float:
    """Operations a second of a large bf16 product."""
    size = 8_192
    reading = measure(torch.matmul, lambda: (draw_bf16(size, size), draw_bf16(size, size)))
    return 2 * size**3 / reading.milliseconds * 1e3


@cache
def copy_rate() -> float:
    """Bytes a second that a copy reads and writes."""
    reading = measure(torch.clone, lambda: (draw_bf16(2**30),))
    return 2 * 2 * 2**30 / reading.milliseconds * 1e3


@pytest.mark.benchmark
@needs_gpu
@pytest.mark.parametrize("length", [8_192, 131_072])
@pytest.mark.parametrize("name", MODELS)
def test_forward(name: str, length: int, report: Report) -> None:
    model, ids = model_of(name), ids_of(1, length)

    @torch.inference_mode()
    def run() -> Tensor:
        return model(ids)

    assert run().isfinite().all()
    torch.cuda.reset_peak_memory_stats()
    took = seconds(run, 10 if length == 8_192 else 3)
    _add_forward(report, name, length, "whole", took)


@pytest.mark.benchmark
@needs_gpu
@pytest.mark.parametrize(
    ("name", "way", "how"),
    [
        ("evo2_1b_base", Streaming(), "streamed"),
        ("evo2_7b", Streaming(), "streamed"),
        ("evo2_7b", Streaming(offload=True), "streamed, host"),
        ("evo2_7b", Streaming(), "streamed, FP8"),
    ],
)
def test_a_million_bases(name: str, way: Streaming, how: str, report: Report) -> None:
    model, ids = model_of(name, float8="FP8" in how), ids_of(1, 1_048_576)

    def run() -> None:
        for _, logits in stream(model, ids, way):
            assert logits is None or logits.isfinite().all()

    for _ in stream(model, ids[:, : 3 * way.chunk], way):  # compiles
        pass
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    _add_forward(report, name, ids.shape[1], how, seconds(run, 1))


@lru_cache(maxsize=1)
def spread_40b(count: int) -> StripedHyena2:
    """Over the first GPUs."""
    model_of.cache_clear()
    devices = [torch.device("cuda", index) for index in range(count)]
    return spread_model(published_config("evo2_40b"), devices)


@pytest.mark.benchmark
@pytest.mark.parametrize("length", [8_192, 131_072, 1_048_576])
@pytest.mark.parametrize("count", [2, 4, 8], ids="x{}".format)
def test_spread(count: int, length: int, report: Report) -> None:
    if torch.cuda.device_count() < count:
        pytest.skip(f"it needs {count} GPUs")
    model, ids = spread_40b(count), ids_of(1, length)
    took = seconds_of_forward(model, ids, streamed=length > 131_072)
    how = "streamed" if length > 131_072 else "whole"
    _add_forward(report, "evo2_40b", length, f"{how}, {count} GPUs", took)


def seconds_of_forward(model: StripedHyena2, ids: Tensor, *, streamed: bool) -> float:
    """Of a warm pass over all positions; only the first chunks of a streamed one warm up."""

    @torch.inference_mode()
    def whole(ids: Tensor = ids) -> None:
        assert model(ids).isfinite().all()

    def pieces(ids: Tensor = ids) -> None:
        for _, logits in stream(model, ids):
            assert logits is None or logits.isfinite().all()

    run = pieces if streamed else whole
    run(ids[:, : 3 * Streaming().chunk])
    torch.cuda.empty_cache()
    for index in range(torch.cuda.device_count()):
        torch.cuda.reset_peak_memory_stats(index)
    return seconds(run, 1 if streamed else 3)


@pytest.mark.slow
def test_a_toy_is_spread() -> None:
    """Blocks on their devices, here a CPU under two names, and every way to read it."""
    config = published_config("evo2_1b_base")
    config = replace(
        config,
        stripes=config.stripes[:8],
        width=256,
        num_heads=4,
        mlp_width=128,
        num_short_filter_groups=16,
        num_medium_filter_groups=16,
    )
    devices = [torch.device("cpu"), torch.device("cpu", 0)]
    model = spread_model(config, devices)
    alone = spread_model(config, devices[:1])
    alone.load_state_dict(model.state_dict())
    ids = torch.randint(65, 85, (1, 200))
    with torch.inference_mode():
        assert torch.equal(model(ids), alone(ids))
    dtypes = {name: tensor.dtype for name, tensor in alone.named_parameters()}
    assert dtypes["blocks.0.mlp.up.weight"] == torch.bfloat16
    assert {t.dtype for n, t in model.named_parameters() if "poles" in n} == {torch.float32}
    for streamed in (False, True):
        assert seconds_of_forward(model, ids, streamed=streamed) > 0


def _add_forward(report: Report, name: str, length: int, how: str, took: float) -> None:
    # Of the fullest GPU, before the rate is read, which forgets it.
    peak = max(map(torch.cuda.max_memory_allocated, range(torch.cuda.device_count())))
    flops = length * flops_per_token(published_config(name), length).forward
    bound = flops / product_rate()
    columns = ["model", "L", "how", "seconds", "bound", "bound / seconds", "GiB", "tokens/s"]
    row = [
        name,
        f"{length:,}",
        how,
        cell(took, 3),
        cell(bound, 3),
        cell(bound / took, 2),
        cell(peak / 2**30, 1),
        cell(length / took, 0),
    ]
    report.add("Forward", columns, row)


def _step_seconds(model: StripedHyena2, batch: int, *, float8: bool = False) -> float:
    """Seconds of a step of decoding; `float8` is for keys and values."""
    decoder, cache = Decoder(model, batch, CAPACITY, float8=float8), model.new_cache(1)
    with torch.inference_mode():
        model(ids_of(1, PROMPT), cache=cache)
    for row in range(batch):
        decoder.place(row, cache)
    ids_B = ids_of(batch, 1)[:, 0]
    assert decoder.step(ids_B).isfinite().all()

    def run() -> None:
        for _ in range(STEPS):
            decoder.step(ids_B)

    return seconds(run, 5) / STEPS


@pytest.mark.benchmark
@needs_gpu
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dtype", ["bf16", "fp8"])
def test_float8_beside_bf16(name: str, dtype: str, report: Report) -> None:
    model, ids = model_of(name, float8=dtype == "fp8"), ids_of(1, 8_192)
    torch.cuda.empty_cache()
    weights = torch.cuda.memory_allocated() / 2**30
    torch.cuda.reset_peak_memory_stats()

    @torch.inference_mode()
    def run() -> Tensor:
        return model(ids)

    assert run().isfinite().all()
    forward = seconds(run, 10)
    peak = torch.cuda.max_memory_allocated() / 2**30
    alone, eight, many = (_step_seconds(model, batch) for batch in (1, 8, 64))
    narrow = _step_seconds(model, 64, float8=True)
    columns = [
        "model",
        "dtype",
        "GiB of weights",
        "peak of 8,192, GiB",
        "8,192 bases, ms",
        "a base alone, ms",
        "bases/s of 8",
        "bases/s of 64",
        "with fp8 keys",
    ]
    row = [name, dtype, cell(weights, 1), cell(peak, 1), cell(1e3 * forward, 1)]
    row += [cell(1e3 * alone, 3), cell(8 / eight, 0), cell(64 / many, 0), cell(64 / narrow, 0)]
    report.add("FP8", columns, row)


@pytest.mark.benchmark
@needs_gpu
@pytest.mark.parametrize("batch", [1, 8, 64])
@pytest.mark.parametrize("name", MODELS)
def test_decode(name: str, batch: int, report: Report) -> None:
    model = model_of(name)
    took = _step_seconds(model, batch)
    bound = _decode_bytes(model, batch) / copy_rate()
    columns = ["model", "B", "ms a step", "bound", "bound / ms", "tokens/s"]
    row = [name, str(batch), cell(1e3 * took, 3), cell(1e3 * bound, 3)]
    report.add("Decode", columns, [*row, cell(bound / took, 2), cell(batch / took, 0)])


def _decode_bytes(model: StripedHyena2, batch: int) -> float:
    """Bytes that a step must move: weights once (of the embedding, all: it is the head)."""
    weights = sum(parameter.nbytes for parameter in model.parameters())
    config: ModelConfig = model.config
    per_token = 2 * 2 * config.width * config.stripes.count("A")  # keys and values in bf16
    states = 2 * 4 * config.width * config.num_modes * config.stripes.count("L")  # read, written
    taps = 2 * config.width * config.num_medium_taps * config.stripes.count("M")  # a ring, once
    return weights + batch * (per_token * (PROMPT + 3 * STEPS) + states + taps)
