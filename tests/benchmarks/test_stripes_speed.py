"""The comparison of the paper measured anew: StripedHyena 2, a Transformer and StripedHyena 1.

Run: pytest -m benchmark -s tests/benchmarks/test_stripes_speed.py; it writes results/stripes.md and
.png, or into the folder EVO2_BENCHMARK_RESULTS, after every measurement. `-k` leaves some out, as
in `-k "7B and not million"`.

L positions of a window.
"""

import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from math import nan
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from evo2cli import console
from evo2cli.training.plan.activations import Dtypes, activations
from evo2cli.training.plan.flops import flops_per_token
from evo2cli.training.recipe_file import find_recipe, read_recipe, read_shape
from evo2cli.workers import Advance, run_tasks
from stripedhyena2 import ModelConfig
from stripedhyena2.float8.training import use_float8
from stripedhyena2.model import MLP_TOKENS
from stripedhyena2.streaming import stream
from tests.benchmarks.gpu import DEVICE, Reading, Report, cell, needs_gpu
from tests.benchmarks.hyena import random_model

ABOUT = """\
# Speed of StripedHyena 2, a Transformer and StripedHyena 1

The first 7 blocks of the recipes of 7B and 40B and of their ablations, which differ in the mixers
alone: SMLASML, AAAAAAA and LLLALLL. Random bf16 weights in their training form, embedding, head and
loss included, the optimizer not; one GPU. Of 7 blocks one is attention, of the whole 7B and 40B
0.16 of them are.

A step is one forward and one backward pass, of windows of at least 16,384 tokens together.
"recomputed" says that the backward pass recomputed every block, because the activations would not
fit: for all models of a length or for none. TFLOP/s counts the model's operations and not what is
recomputed. Times are medians of the steps of a second, the first one aside, or of a single longer
one; before it, a pass through the first blocks has compiled the kernels.

![tokens a second, and time over that of StripedHyena 2](stripes.png)

Command: `pytest -m benchmark -s tests/benchmarks/test_stripes_speed.py`"""

MODELS = {
    "StripedHyena 2": "{}",
    "Transformer": "ablations/transformer-{}",
    "StripedHyena 1": "ablations/sh1-{}",
}
FIRST, *_, LAST = MODELS  # what the others are compared with, and what is measured last
SIZES = ["7B", "40B"]
PRECISIONS = ["bf16", "FP8"]
LENGTHS = [8192, 16_384, 32_768, 65_536, 131_072]
MILLION = 1_048_576
BLOCKS = 7  # a period of the stripes
MIN_TOKENS = 16_384  # of a step
SECONDS = 1.0  # of steps in a row, one at least
KEPT = 0.6  # share of the memory that activations may take before they are recomputed


@dataclass(frozen=True)
class Case:
    """What a row measures."""

    size: str
    precision: str
    length: int
    model: str

    @property
    def config(self) -> ModelConfig:
        """The slice of the recipe."""
        recipe = find_recipe(Path(MODELS[self.model].format(self.size.lower())))
        config = read_shape(read_recipe(recipe))
        return replace(
            config,
            stripes=config.stripes[:BLOCKS],
            base_context=config.original_context,
            context=max(self.length, config.context),
        )

    def __str__(self) -> str:
        length = "million" if self.length == MILLION else self.length
        return f"{self.size}-{self.precision}-{length}-{self.model}"


STEPS = [
    Case(size, precision, length, model)
    for size in SIZES
    for length in LENGTHS
    for precision in PRECISIONS
    for model in MODELS
]
STREAMED = [Case(size, "bf16", MILLION, model) for size in SIZES for model in MODELS]


def windows(length: int) -> int:
    """Windows of a step."""
    return max(1, MIN_TOKENS // length)


def is_recomputed(case: Case) -> bool:
    """Whether the activations of some model of this size and length would not fit the GPU."""
    if DEVICE.type != "cuda":
        return False
    tokens = windows(case.length) * case.length
    kept = [
        activations(
            replace(case, model=model).config,
            Dtypes(compute=2, residual=2),
            tokens=tokens,
            checkpointing=0,
            mlp_tokens=windows(case.length) * min(case.length, MLP_TOKENS),
        ).in_blocks
        for model in MODELS
    ]
    return max(kept) > KEPT * torch.cuda.get_device_properties(DEVICE).total_memory


def read_step(config: ModelConfig, length: int, *, fp8: bool, recomputed: bool) -> Reading:
    """Read the forward and backward pass of a model."""
    model = random_model(config, trains=True).train()
    if fp8:
        use_float8(model)
    model.activation_checkpointing = int(recomputed)
    ids_BT = torch.randint(65, 85, (windows(length), length + 1), device=DEVICE)
    ids_BL, targets_BL = ids_BT[:, :-1], ids_BT[:, 1:]

    def step(depth: int) -> None:
        x_BLD = model.through_blocks(model.embedding(ids_BL), depth=depth)
        F.cross_entropy(model.unembed(x_BLD).flatten(0, 1), targets_BL.flatten()).backward()
        model.zero_grad()

    kinds = {config.stripes.index(kind) for kind in config.stripes}
    return read(partial(step, config.depth), warm=partial(step, max(kinds) + 1))


def read_stream(config: ModelConfig, length: int) -> Reading:
    """Read the forward pass of one window in chunks."""
    model = random_model(config)
    ids_BL = torch.randint(65, 85, (1, length), device=DEVICE)

    def run(num_positions: int) -> None:
        deque(stream(model, ids_BL[:, :num_positions]), maxlen=0)

    return read(partial(run, length), warm=partial(run, length // 32))


def read(run: Callable[[], None], *, warm: Callable[[], None]) -> Reading:
    """The time of a call: the median of calls that last a second, or of a single longer one.

    Args:
        run: The call.
        warm: A shorter one with the same kernels, before it.
    """
    times: list[float] = []
    try:
        warm()
        _wait()
        while not times or sum(times) < SECONDS:
            started = time.perf_counter()
            run()
            _wait()
            times.append(time.perf_counter() - started)
    except torch.OutOfMemoryError:
        return Reading(failure="oom")
    peak = torch.cuda.max_memory_allocated() / 2**20 if DEVICE.type == "cuda" else nan
    return Reading(1e3 * statistics.median(times[1:] or times), peak)


def _wait() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


@pytest.fixture
def empty_gpu() -> None:
    """Nothing of the measurement before is left."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()


Readings = dict[Case, Reading]


@pytest.fixture(scope="module")
def readings() -> Readings:
    return {}


@pytest.fixture(scope="module")
def report(request: pytest.FixtureRequest) -> Iterator[Report]:
    report = Report("stripes.md", ABOUT, otherwise=request.path.parent / "results")
    yield report
    console.write(str(report))


@pytest.fixture(scope="module")
def compiled(request: pytest.FixtureRequest) -> None:
    """Compile the kernels of the sizes that are measured, by a process for each kind of block."""
    sizes = set()
    for item in request.session.items:
        case = item.callspec.params.get("case") if isinstance(item, pytest.Function) else None
        sizes |= {case.size} if isinstance(case, Case) else set()
    blocks = [
        replace(Case(size, "bf16", LENGTHS[0], FIRST).config, stripes=kind)
        for size in sorted(sizes)
        for kind in "LMSA"
    ]
    tasks = (partial(_compile, block) for block in blocks)
    for _ in run_tasks(tasks, len(blocks), lambda _: None):
        pass


def _compile(config: ModelConfig, _: Advance) -> None:
    for fp8 in (False, True):
        read_step(config, LENGTHS[0], fp8=fp8, recomputed=False)


@needs_gpu
@pytest.mark.benchmark
@pytest.mark.parametrize("case", STEPS, ids=str)
@pytest.mark.usefixtures("empty_gpu", "compiled")
def test_steps(case: Case, readings: Readings, report: Report) -> None:
    recomputed = is_recomputed(case)
    reading = read_step(
        case.config, case.length, fp8=case.precision == "FP8", recomputed=recomputed
    )
    readings[case] = reading
    facts = {
        "L": f"{case.length:,}",
        "windows": str(windows(case.length)),
        "recomputed": "yes" if recomputed else "",
    }
    add_row(report, f"{case.size}, {case.precision}: a step", facts, case, readings)
    if case.model == LAST:
        draw(readings, report.path.with_suffix(".png"))


@needs_gpu
@pytest.mark.benchmark
@pytest.mark.parametrize("case", STREAMED, ids=str)
@pytest.mark.usefixtures("empty_gpu", "compiled")
def test_streams(case: Case, readings: Readings, report: Report) -> None:
    readings[case] = read_stream(case.config, case.length)
    add_row(report, f"{case.size}, bf16: forward of {MILLION:,} positions", {}, case, readings)


def add_row(
    report: Report, table: str, facts: dict[str, str], case: Case, readings: Readings
) -> None:
    """Add what was measured of a case to a table."""
    reading = readings[case]
    first = readings.get(replace(case, model=FIRST), Reading())
    row = {
        **facts,
        "model": case.model,
        "ms": reading.failure or cell(reading.milliseconds, digits=1),
        "TFLOP/s": cell(teraflops(case, reading), digits=0),
        "GiB": cell(reading.mebibytes / 2**10, digits=1),
        f"time over {FIRST}": reading.over(first),
    }
    report.add(table, list(row), list(row.values()))


def teraflops(case: Case, reading: Reading) -> float:
    """Model operations a second: of a step, and of the forward pass alone where it is streamed."""
    flops = flops_per_token(case.config, case.length)
    each = flops.forward if case.length == MILLION else flops.training
    return each * tokens(case) / reading.milliseconds / 1e9


def tokens(case: Case) -> int:
    """Tokens that pass through the model in what is measured."""
    return windows(case.length) * case.length


def draw(readings: Readings, path: Path) -> None:
    """Plot tokens a second, and times over those of StripedHyena 2, over the length."""
    figures = pytest.importorskip("matplotlib.figure", reason="matplotlib draws stripes.png")
    sizes = [size for size in SIZES if any(case.size == size for case in readings)]
    figure = figures.Figure(figsize=(10, 4 * len(sizes)), layout="constrained")
    axes = figure.subplots(len(sizes), 2, squeeze=False)
    for (rates, ratios), size in zip(axes, sizes, strict=True):
        for colour, model in enumerate(MODELS):
            for precision, line in zip(PRECISIONS, ("-", "--"), strict=True):
                cases = [Case(size, precision, length, model) for length in LENGTHS]
                times = [readings.get(case, Reading()).milliseconds for case in cases]
                first = [
                    readings.get(replace(case, model=FIRST), Reading()).milliseconds
                    for case in cases
                ]
                style = {"color": f"C{colour}", "marker": "o", "markersize": 3, "linestyle": line}
                label = f"{model}, {precision}"
                million = [tokens(case) / t / 1e3 for case, t in zip(cases, times, strict=True)]
                rates.plot(LENGTHS, million, label=label, **style)
                over = [t / f for t, f in zip(times, first, strict=True)]
                ratios.plot(LENGTHS, over, **style)
        rates.set(title=f"{size} widths, {BLOCKS} blocks", ylabel="million tokens a second")
        ratios.set(title="a step", ylabel=f"time over that of {FIRST}")
        for panel in (rates, ratios):
            panel.set(xscale="log", ylim=(0, None))
            panel.set_xticks(LENGTHS, [f"{length // 1024}k" for length in LENGTHS])
            panel.minorticks_off()
            panel.grid(alpha=0.3)
        rates.legend()
    figure.supxlabel("length, in positions")
    figure.savefig(path, dpi=90)


@pytest.mark.parametrize("size", SIZES)
def test_models_of_a_size_differ_in_their_mixers_alone(size: str) -> None:
    configs = [Case(size, "bf16", LENGTHS[0], model).config for model in MODELS]
    first, transformer, old = (config.stripes for config in configs)
    assert len({replace(config, stripes=first) for config in configs}) == 1
    assert [kind == "A" for kind in first] == [kind == "A" for kind in old]
    assert set(transformer) == {"A"}
    assert set(old) == {"A", "L"}
    assert set(first) == set("SMLA")


@pytest.mark.parametrize("model", MODELS)
def test_a_small_slice_is_measured(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tables and the picture of 7B with narrow layers and short windows, on any device."""
    monkeypatch.setattr(f"{__name__}.SECONDS", 0.0)
    monkeypatch.setattr(f"{__name__}.MIN_TOKENS", 64)
    case = Case("7B", "bf16", 32, model)
    narrow = {"width": 64, "num_heads": 2, "mlp_width": 96}
    groups = {"num_short_filter_groups": 4, "num_medium_filter_groups": 4}
    small = replace(case.config, **narrow, **groups)
    assert read_stream(small, 2 * case.length).milliseconds > 0
    for fp8 in (False, True):
        assert read_step(small, case.length, fp8=fp8, recomputed=fp8).milliseconds > 0
    monkeypatch.setattr(f"{__name__}.LENGTHS", [case.length])
    readings = {replace(case, model=FIRST): Reading(20.0, 1024.0), case: Reading(30.0, 2048.0)}
    report = Report("stripes.md", ABOUT, otherwise=tmp_path)
    add_row(report, "steps", {}, case, readings)
    _, (name, milliseconds, _, gib, ratio) = report.tables["steps"]
    assert (name, milliseconds, gib, ratio) == (
        model,
        "30.0",
        "2.0",
        "1.50" if model != FIRST else "1.00",
    )
    draw(readings, tmp_path / "stripes.png")
    assert (tmp_path / "stripes.png").stat().st_size
