"""Figure 3.2 of arXiv:2503.01868 measured anew: sequence mixers, their projections included.

Run: pytest -m benchmark -s tests/benchmarks/test_operator_speed.py; results/operators.md and .png
keep what it writes into the folder EVO2_BENCHMARK_RESULTS. The linear mixers are the layers of
flash-linear-attention; `-k` leaves some out, as in `-k "4096 and not GLA"`. Kernels are compiled
first, by a process for each mixer and width.

    pip install --no-deps flash-linear-attention fla-core
    MAMBA_SKIP_CUDA_BUILD=TRUE MAMBA_FORCE_BUILD=TRUE pip install --no-deps \
        --no-build-isolation mamba-ssm              # pure Python: its Triton kernels suffice

B batch, L length, D channels, H heads, W channels a head.
"""

import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from importlib.util import find_spec, module_from_spec
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evo2cli import console
from evo2cli.workers import Advance, run_tasks
from tests.benchmarks.gpu import DEVICE, PASSES, Reading, Report, cell, measure_passes, needs_gpu
from tests.benchmarks.hyena import Mixer, projections

ABOUT = """\
# Speed of sequence mixers

Whole sequence mixers with their projections, batch 1, bf16. Hyena: 3 featurizer taps; 7 taps (SE),
128 taps (MR) or 16 modes (LI); 16 channels share a filter of SE or MR. Attention: PyTorch, causal,
heads of 128, no positions. GLA, DeltaNet, gated DeltaNet, Mamba-2: layers of flash-linear-attention
in the proportions of their papers, Mamba-2 on the Triton kernels of mamba_ssm; of the launch shapes
that each of their kernels may choose from, up to six were tried. "weights" is the number of
parameters over D^2.

Times are medians of device time; calls are queued ahead, so that launching them costs nothing. In
parentheses: the time over that of Hyena-MR.

![latency against length](operators.png)

Command: `pytest -m benchmark -s tests/benchmarks/test_operator_speed.py`"""

WIDTHS = [4096, 1024]
LENGTHS = [2**exponent for exponent in range(11, 18)]
LONGEST_BACKWARD = 32768
TUNED_AT = 8192  # the length that Triton's autotuners see first, and choose at
TUNING_MILLISECONDS = 10  # for a candidate
MOST_CANDIDATES = 6  # launch shapes tried of each kernel, spread over those its authors list

Readings = dict[tuple[int, str, int], tuple[Reading, Reading]]  # of D, mixer and L; for `PASSES`


class Attention(nn.Module):
    """Causal multi-head attention without positions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.project_in, self.project_out = projections(width)

    def forward(self, x_BLD: Tensor) -> Tensor:
        """Mix along L; returns the shape it was given."""
        qkv_BLD = self.project_in(x_BLD).chunk(3, dim=2)
        q_BHLW, k_BHLW, v_BHLW = (x.unflatten(2, (-1, 128)).transpose(1, 2) for x in qkv_BLD)
        y_BHLW = F.scaled_dot_product_attention(q_BHLW, k_BHLW, v_BHLW, is_causal=True)
        return self.project_out(y_BHLW.transpose(1, 2).flatten(2))


def linear_mixer(layer: str, width: int, **options: int) -> nn.Module:
    """A layer of flash-linear-attention, in bf16."""
    find_mamba()
    reason = "flash-linear-attention is not installed"
    layers = pytest.importorskip("fla.layers", reason=reason, exc_type=ImportError)
    with DEVICE:
        return getattr(layers, layer)(hidden_size=width, **options).to(torch.bfloat16)


def find_mamba() -> None:
    """Let the Triton kernels of mamba_ssm be imported.

    Importing the package itself would ask for its compiled extension, which Mamba-1 needs alone.
    """
    spec = find_spec("mamba_ssm") if "mamba_ssm" not in sys.modules else None
    if spec is not None:
        sys.modules["mamba_ssm"] = module_from_spec(spec)


def mamba2(width: int) -> nn.Module:
    find_mamba()
    reason = "without the Triton kernels of mamba_ssm, Mamba-2 would run unfused"
    pytest.importorskip("mamba_ssm.ops.triton.ssd_combined", reason=reason, exc_type=ImportError)
    return linear_mixer("Mamba2", width).eval()  # in training mode it asks for causal_conv1d


MIXERS: dict[str, Callable[[int], nn.Module]] = {
    "Hyena-MR": partial(Mixer, kind="MR"),
    "Hyena-SE": partial(Mixer, kind="SE"),
    "Hyena-LI": partial(Mixer, kind="LI"),
    "attention": Attention,
    "GLA": lambda width: linear_mixer("GatedLinearAttention", width, num_heads=width // 256),
    "DeltaNet": lambda width: linear_mixer("DeltaNet", width, num_heads=width // 128),
    "gated DeltaNet": lambda width: linear_mixer(
        "GatedDeltaNet", width, head_dim=256, num_heads=3 * width // 1024
    ),
    "Mamba-2": mamba2,
}


LINEAR = [*MIXERS][4:]  # their kernels have many candidates


@pytest.fixture(scope="module")
def readings() -> Readings:
    return {}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Report]:
    report = Report("operators.md", ABOUT, otherwise=tmp_path_factory.mktemp("results"))
    yield report
    console.write(str(report))


@pytest.fixture
def quick_tuning(monkeypatch: pytest.MonkeyPatch) -> None:
    tune_quickly(monkeypatch)


def tune_quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Triton's autotuners try a few candidates, compiled side by side and timed briefly.

    The linear mixers list some 800 kernels; all of them would take longer than all the rest.
    """
    triton = pytest.importorskip("triton")
    autotuner = triton.runtime.autotuner.Autotuner
    prune = autotuner.prune_configs

    def prune_and_compile(self: Any, arguments: dict[str, Any]) -> list[Any]:
        configs = spread(prune(self, arguments))
        named = {name: value for name, value in arguments.items() if name != "warmup"}
        with ThreadPoolExecutor() as pool, triton.AsyncCompileMode(pool, ignore_errors=True):
            for config in configs:
                self.fn.warmup(*self.nargs.values(), **named, **config.all_kwargs())
        return configs

    time_briefly = partial(triton.testing.do_bench, warmup=2, rep=TUNING_MILLISECONDS)
    monkeypatch.setattr(autotuner, "prune_configs", prune_and_compile)
    monkeypatch.setattr(autotuner, "do_bench", property(lambda _: time_briefly))


@pytest.fixture(scope="module")
def compiled(request: pytest.FixtureRequest) -> None:
    """Compile the kernels of the linear mixers that were chosen, all at once."""
    chosen = []
    for item in request.session.items:
        callspec = getattr(item, "callspec", None)
        if callspec and callspec.params.get("name") in LINEAR:
            chosen.append((callspec.params["name"], callspec.params["width"]))
    tasks = (partial(_compile, name, width) for name, width in chosen)
    for _ in run_tasks(tasks, max(2, len(chosen)), lambda _: None):
        pass


def _compile(name: str, width: int, _: Advance) -> None:
    with suppress(pytest.skip.Exception), pytest.MonkeyPatch.context() as patches:
        tune_quickly(patches)
        read_passes(MIXERS[name](width), width, TUNED_AT)


def spread(candidates: list[Any]) -> list[Any]:
    """At most MOST_CANDIDATES of them, evenly."""
    step = -(-len(candidates) // MOST_CANDIDATES) or 1
    return candidates[::step]


@needs_gpu
@pytest.mark.benchmark
@pytest.mark.filterwarnings("default")  # other people's packages
@pytest.mark.usefixtures("quick_tuning", "compiled")
@pytest.mark.parametrize("name", MIXERS)
@pytest.mark.parametrize("width", WIDTHS)
def test_mixers(name: str, width: int, readings: Readings, report: Report) -> None:
    mixer = MIXERS[name](width)
    for length in sorted(LENGTHS, key=lambda length: length != TUNED_AT):
        readings[width, name, length] = read_passes(mixer, width, length)
    weights = cell(sum(weight.numel() for weight in mixer.parameters()) / width**2, digits=1)
    for index in range(len(PASSES)):
        add_rows(report, readings, width, index, name, weights)
    failures = [reading.failure for length in LENGTHS for reading in readings[width, name, length]]
    assert not name.startswith("Hyena") or not any(failures)


def read_passes(mixer: nn.Module, width: int, length: int) -> tuple[Reading, Reading]:
    """Read the passes of a mixer over one sequence."""

    def run(x_BLD: Tensor) -> Tensor:
        y = mixer(x_BLD)
        return y[0] if isinstance(y, tuple) else y

    shapes = [(1, length, width)]
    return measure_passes(
        run, mixer.parameters(), shapes, shapes, backward=length <= LONGEST_BACKWARD
    )


def add_rows(
    report: Report, readings: Readings, width: int, index: int, name: str, weights: str
) -> None:
    """Add the times of a mixer, and its tokens a second, in the pass `PASSES[index]`."""
    lengths = [length for length in LENGTHS if index == 0 or length <= LONGEST_BACKWARD]
    columns = ["mixer", "weights", *(f"L = {length:,}" for length in lengths)]
    times, rates = [name, weights], [name, weights]
    nothing = (Reading(), Reading())
    for length in lengths:
        reading = readings[width, name, length][index]
        ratio = reading.over(readings.get((width, "Hyena-MR", length), nothing)[index])
        times.append(f"{reading} ({ratio})" if ratio else str(reading))
        rates.append(cell(length / reading.milliseconds / 1e3, digits=2))
    report.add(f"D = {width}, {PASSES[index]}: ms", columns, times)
    report.add(f"D = {width}, {PASSES[index]}: million tokens a second", columns, rates)


@needs_gpu
@pytest.mark.benchmark
def test_figure(readings: Readings, report: Report) -> None:
    figures = pytest.importorskip("matplotlib.figure", reason="matplotlib draws operators.png")
    if not readings:
        pytest.skip("no mixer was measured")
    figure = figures.Figure(figsize=(10, 8), layout="constrained")
    axes = figure.subplots(len(PASSES), len(WIDTHS), sharex=True, squeeze=False)
    for row, label in enumerate(PASSES):
        for column, width in enumerate(WIDTHS):
            panel = axes[row, column]
            for name in MIXERS:
                times = [
                    readings.get((width, name, length), (Reading(), Reading()))[row].milliseconds
                    for length in LENGTHS
                ]
                panel.plot(LENGTHS, times, marker="o", markersize=3, label=name)
            panel.set(xscale="log", yscale="log", title=f"D = {width}, {label}", ylabel="ms")
            panel.set_xticks(LENGTHS, [f"{length // 1024}k" for length in LENGTHS])
            panel.minorticks_off()
            panel.grid(alpha=0.3)
    axes[0, 0].legend()
    figure.supxlabel("length, in positions")
    figure.savefig(report.path.with_suffix(".png"), dpi=90)
