"""What the GPU benchmarks share: a clock of device time, and results with date and hardware."""

import os
import platform
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import cycle
from math import isnan, nan
from pathlib import Path

import pytest
import torch
from torch import Tensor

from evo2cli import __version__

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SECONDS = 0.25  # of device time that a reading may take, its warm-up aside
MOST_CALLS = 20  # their kernels should fit the launch queue, which holds about a thousand
SPIN_SECONDS = 0.05  # at least, for the clocks to rise
CYCLES_A_SECOND = 2e9  # of a GPU at its highest clock

PASSES = ("forward", "forward + backward")  # what `measure_passes` reads

Shape = tuple[int, ...]

needs_gpu = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="it times a CUDA GPU, and PyTorch sees none"
)


@dataclass(frozen=True)
class Reading:
    """What one pass costs, or why that is not known; empty when it was not tried."""

    milliseconds: float = nan  # median of device time
    mebibytes: float = nan  # peak of one call, its results included, its inputs and weights not
    failure: str = ""

    def __str__(self) -> str:
        return self.failure or cell(self.milliseconds, digits=3)

    def over(self, floor: "Reading") -> str:
        """How many times as long as another."""
        return cell(self.milliseconds / floor.milliseconds, digits=2)


def cell(value: float, digits: int) -> str:
    """A number as a table shows it; nothing for NaN."""
    return "" if isnan(value) else f"{value:,.{digits}f}"


def measure_passes(
    run: Callable[..., Tensor | tuple[Tensor, ...]],
    weights: Iterable[Tensor],
    inputs: Sequence[Shape],
    outputs: Sequence[Shape],
    *,
    backward: bool = True,
) -> tuple[Reading, Reading]:
    """Read the forward pass alone, and forward and backward together.

    Args:
        run: Takes bf16 tensors of the shapes `inputs`, gives tensors of the shapes `outputs`.
        weights: What else may ask for a gradient.
        inputs: Random numbers are drawn in these shapes.
        outputs: And gradients in these.
        backward: Whether there is a second reading; else it is empty.
    """
    leaves = [weight for weight in weights if weight.requires_grad]

    @torch.no_grad()
    def forward(*tensors: Tensor) -> object:
        return run(*tensors)

    def both(*tensors: Tensor) -> object:
        arguments = [tensor.requires_grad_() for tensor in tensors[: len(inputs)]]
        gradients = tensors[len(inputs) :]
        return torch.autograd.grad(run(*arguments), [*arguments, *leaves], gradients)

    def draw(shapes: Sequence[Shape]) -> tuple[Tensor, ...]:
        return tuple(draw_bf16(*shape) for shape in shapes)

    return (
        measure(forward, lambda: draw(inputs)),
        measure(both, lambda: draw([*inputs, *outputs])) if backward else Reading(),
    )


def draw_bf16(*shape: int) -> Tensor:
    """Random numbers, because matrix products run faster on zeros than on real data."""
    return torch.randn(shape, dtype=torch.bfloat16, device=DEVICE)


def measure(run: Callable[..., object], draw: Callable[[], tuple[Tensor, ...]]) -> Reading:
    """Read one pass over what `draw` draws; a failure is a reading too."""
    try:
        return _measure(run, draw)
    except torch.OutOfMemoryError:
        return Reading(failure="oom")
    except Exception as error:  # the table says how a contender failed
        reason = f"{type(error).__name__}: {error}".replace("|", "/").split("\n")[0]
        return Reading(failure=f"failed: {reason[:60]}")
    finally:
        torch.cuda.empty_cache()


def _measure(run: Callable[..., object], draw: Callable[[], tuple[Tensor, ...]]) -> Reading:
    """Queue the calls behind a spinning kernel, so that Python's launch cost stays out of it.

    Inputs that fit the L2 cache would be found there by the next call: as many sets of them take
    turns as fill it twice.
    """
    sets = [draw()]
    num_bytes = sum(tensor.nbytes for tensor in sets[0])
    cache_bytes = torch.cuda.get_device_properties(DEVICE).L2_cache_size
    sets += [draw() for _ in range(min(2 * cache_bytes // num_bytes, MOST_CALLS - 1))]
    run(*sets[0])  # compiles and tunes
    torch.cuda.synchronize()

    held = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    run(*sets[0])
    launch_seconds = time.perf_counter() - started
    torch.cuda.synchronize()
    seconds = time.perf_counter() - started
    # The GPU works for seconds - launch_seconds at least, so it waits for Python no longer than:
    wait_seconds = max(2 * launch_seconds - seconds, 0)
    peak = torch.cuda.max_memory_allocated() - held

    num_calls = int(min(max(SECONDS / seconds, 3), MOST_CALLS))
    starts = [torch.cuda.Event(enable_timing=True) for _ in range(num_calls)]
    stops = [torch.cuda.Event(enable_timing=True) for _ in range(num_calls)]
    results: deque[object] = deque(maxlen=len(sets) - 1)  # they move through memory like the inputs
    torch.cuda._sleep(int(CYCLES_A_SECOND * (SPIN_SECONDS + 1.5 * num_calls * wait_seconds)))
    for start, stop, tensors in zip(starts, stops, cycle(sets)):
        start.record()
        results.append(run(*tensors))
        stop.record()
    torch.cuda.synchronize()
    times = [start.elapsed_time(stop) for start, stop in zip(starts, stops, strict=True)]
    return Reading(statistics.median(times), peak / 2**20)


@dataclass
class Report:
    """A Markdown file of tables, whole after every row; it lies in EVO2_BENCHMARK_RESULTS."""

    name: str
    about: str  # its title, what the tables say, and the command that makes them
    otherwise: Path  # the folder when that variable is not set
    tables: dict[str, list[Sequence[str]]] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        """Where the file is."""
        return Path(os.environ.get("EVO2_BENCHMARK_RESULTS", self.otherwise)) / self.name

    def add(self, table: str, columns: Sequence[str], row: Sequence[str]) -> None:
        """Append a row to a table; the first row brings the columns."""
        self.tables.setdefault(table, [columns]).append(row)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(str(self))

    def __str__(self) -> str:
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
        made = (
            f"{_today()}, {device}, "
            f"torch {torch.__version__}, Triton {version('triton')}, CUDA {torch.version.cuda}, "
            f"Python {platform.python_version()}"
        )
        tables = (_table(title, *lines) for title, lines in self.tables.items())
        return f"{self.about}\n\n{made}.\n{''.join(tables)}"


def machine() -> str:
    """The GPU, or the processor where there is none."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return platform.processor() or platform.machine()


def opening() -> str:
    """What stands above tables of whole runs: versions, machine and date."""
    return f"evo2cli {__version__}, torch {torch.__version__}, {machine()}, {_today()}\n\n"


def _today() -> str:
    return f"{datetime.now(UTC):%Y-%m-%d}"


def _table(title: str, *lines: Sequence[str]) -> str:
    columns, *rows = (f"| {' | '.join(line)} |\n" for line in lines)
    return f"\n## {title}\n\n{columns}{'|---' * len(lines[0])}|\n{''.join(rows)}"
