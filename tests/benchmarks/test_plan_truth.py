"""What `evo2 plan` predicts of a step against what `evo2 train` measures, for 1B and 7B.

Run: pytest -m benchmark -s tests/benchmarks/test_plan_truth.py; it writes results/plan.md,
or into the folder EVO2_BENCHMARK_RESULTS, after every row. A machine with one GPU runs the rows of
one, with two also the others; `-k` leaves some out, as in `-k "7B and FP8"`.
"""

import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from evo2cli import console
from evo2cli.plan.options import PlanOptions
from evo2cli.plan.run import plan_recipe
from evo2cli.tokenize.options import TokenizeOptions
from evo2cli.tokenize.run import tokenize_files
from tests.benchmarks.gpu import Report, cell

ABOUT = """\
# The plan against measurements

`evo2 train` on random bases, killed after some steps, and what `evo2 plan` says of the same recipe
and settings. Medians of the steps from the third on; "slowest" is the slowest of them over their
median. GiB is the peak of torch's allocator on the fullest GPU, before the weights are written.
"ready" is the time from the start of the command to its first step, and "first step" that step.

Command: `pytest -m benchmark -s tests/benchmarks/test_plan_truth.py`"""

ROOT = Path(__file__).parents[2]
WARM = 2  # steps that are not counted
FEWEST, MOST, ENOUGH = 3, 10, 10.0  # steps that are, and seconds of them that suffice
LIMIT = 280  # seconds until a run is given up
BASES = 4_000_000


@dataclass(frozen=True)
class Case:
    """A row."""

    name: str
    recipe: str
    gpus: int
    settings: tuple[str, ...]
    precision: str = "bf16"

    @property
    def all_settings(self) -> tuple[str, ...]:
        """Changes to the recipe; at most one checkpoint would be written, and never is."""
        return (
            *self.settings,
            *(("precision.fp8=true",) if self.precision == "FP8" else ()),
            "optimizer.steps=1000",
            "optimizer.warmup_steps=10",
            "checkpoint.every=1000",
            "checkpoint.optimizer=false",
        )

    def __str__(self) -> str:
        return f"{self.name}, {self.precision}"


_SETTINGS = [
    Case("1B, plain", "recipes/1b.toml", 1, ("batch.sequences=8",)),
    Case("7B, ZeRO 3", "recipes/7b.toml", 2, ("batch.sequences=4",)),
    Case(
        "7B, ZeRO 3, a window of 131,072 for two GPUs",
        "recipes/7b.toml",
        2,
        (
            "batch.length=131072",
            "batch.sequences=1",
            "shape.context=131072",
            "parallel.context=2",
            "memory.activation_checkpointing=1",
        ),
    ),
]
CASES = [replace(case, precision=precision) for case in _SETTINGS for precision in ("bf16", "FP8")]


@dataclass(frozen=True)
class Measured:
    """What a run showed, or why it did not."""

    ready: float = float("nan")
    steps: tuple[dict[str, Any], ...] = ()
    failure: str = ""

    @property
    def seconds(self) -> list[float]:
        """Of the steps that count."""
        return [step["seconds"] for step in self.steps[WARM:]]

    @property
    def is_enough(self) -> bool:
        """Whether the run may end."""
        count = len(self.seconds)
        return count >= MOST or (count >= FEWEST and sum(self.seconds) > ENOUGH)


def measure(case: Case, tokens: Path, folder: Path, device: str = "auto") -> Measured:
    """Train until there are enough steps.

    Args:
        case: The recipe.
        tokens: Folder of `evo2 tokenize`.
        folder: An empty folder.
        device: As `--device`.
    """
    output, log = folder / "run", folder / "log"
    settings = [*case.all_settings, f'data.sources=[{{path="{tokens}"}}]']
    command = ["train", str(ROOT / case.recipe), "--output", str(output)]
    command += [] if device == "auto" else ["--device", device]
    command += [word for setting in settings for word in ("--set", setting)]
    begun = time.monotonic()
    measured = Measured()
    with started(command, case.gpus, log) as ranks:
        while time.monotonic() - begun < LIMIT:
            time.sleep(0.05)
            steps = read_steps(output / "metrics.jsonl")
            if steps and not measured.steps:
                measured = Measured(time.monotonic() - begun - steps[0]["seconds"])
            measured = replace(measured, steps=steps)
            if measured.is_enough:
                return measured
            if any(rank.poll() is not None for rank in ranks):
                last = log.read_text(encoding="utf-8").strip().splitlines()[-1:]
                return replace(measured, failure=f"ended: {''.join(last)[:200]}")
    return replace(measured, failure=f"{len(measured.steps)} steps in {LIMIT} s")


@contextmanager
def started(command: list[str], count: int, log: Path) -> Iterator[list[subprocess.Popen[bytes]]]:
    """The ranks of a command while the context lasts; at its end all their processes are killed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    ranks = []
    with log.open("wb") as said:
        try:
            for rank in range(count):
                own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
                path = os.pathsep.join([str(ROOT), *(entry for entry in sys.path if entry)])
                environment = {**os.environ, "PYTHONPATH": path}
                environment |= {**address, **own} if count > 1 else {}
                ranks.append(
                    subprocess.Popen(
                        [sys.executable, "-m", "evo2cli", *command],
                        stdout=subprocess.DEVNULL,
                        stderr=said,
                        env=environment,
                        start_new_session=True,
                    )
                )
            yield ranks
        finally:
            for process in ranks:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def read_steps(metrics: Path) -> tuple[dict[str, Any], ...]:
    """The steps that a run has logged; a line that is being written is left out."""
    if not metrics.is_file():
        return ()
    *lines, _ = metrics.read_text(encoding="utf-8").split("\n")
    return tuple(json.loads(line) for line in lines)


def row(case: Case, predicted: dict[str, Any], measured: Measured) -> dict[str, str]:
    """A row of the table."""
    facts = {"run": case.name, "GPUs": str(case.gpus), "products": case.precision}
    if measured.failure:
        return {**facts, "s a step": measured.failure}
    seconds = statistics.median(measured.seconds)
    plan = predicted["time"]["total"]
    tokens = predicted["mesh"]["tokens_per_step"] / case.gpus
    memory = measured.steps[-1].get("memory_gib", float("nan"))
    planned = predicted["memory"]["allocated"] / 2**30
    return {
        **facts,
        "s a step": cell(seconds, digits=3),
        "planned": cell(plan, digits=3),
        "over plan": cell(seconds / plan, digits=2),
        "slowest": cell(max(measured.seconds) / seconds, digits=2),
        "tokens/s/GPU": cell(tokens / seconds, digits=0),
        "MFU": cell(100 * predicted["run"]["mfu"] * plan / seconds, digits=1) + " %",
        "GiB": cell(memory, digits=1),
        "GiB planned": cell(planned, digits=1),
        "GiB over plan": cell(memory / planned, digits=2),
        "ready, s": cell(measured.ready, digits=0),
        "first step, s": cell(measured.steps[0]["seconds"], digits=1),
    }


def plan(case: Case) -> dict[str, Any]:
    """What `evo2 plan` says, for this GPU or an H200."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "h200"
    return plan_recipe(
        PlanOptions(recipe=ROOT / case.recipe, settings=case.all_settings, gpus=case.gpus, gpu=gpu)
    )


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random bases."""
    folder = tmp_path_factory.mktemp("tokens")
    bases = np.random.default_rng(0).choice(np.frombuffer(b"ACGT", np.uint8), BASES)
    (folder / "random.fa").write_bytes(b">random\n" + bases.tobytes() + b"\n")
    tokenize_files(
        TokenizeOptions(files=[folder / "random.fa"], output=folder / "set", valid_fraction=0.0)
    )
    return folder / "set"


@pytest.fixture(scope="module")
def report(request: pytest.FixtureRequest) -> Iterator[Report]:
    report = Report("plan.md", ABOUT, otherwise=request.path.parent / "results")
    yield report
    console.write(str(report))


@pytest.mark.benchmark
@pytest.mark.parametrize("case", CASES, ids=str)
def test_plan(case: Case, tokens: Path, tmp_path: Path, report: Report) -> None:
    if torch.cuda.device_count() < case.gpus:
        pytest.skip(f"it needs {case.gpus} GPUs")
    measured = measure(case, tokens, tmp_path)
    columns = row(case, plan(case), Measured(steps=({"seconds": 1.0},) * (WARM + 1)))
    cells = row(case, plan(case), measured)
    report.add("Steps", list(columns), [cells.get(column, "") for column in columns])
    assert not measured.failure


@pytest.mark.slow
@pytest.mark.parametrize("case", _SETTINGS, ids=str)
def test_a_toy_is_measured(
    case: Case, tokens: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every row on CPU ranks, with the toy's recipe and short windows."""
    pytest.importorskip("deepspeed", reason="several ranks need the extra `train`")
    monkeypatch.setattr(f"{__name__}.ENOUGH", 0.0)
    settings = (
        *(setting for setting in case.settings if setting.startswith("parallel.")),
        *(("parallel.zero=3",) if case.gpus > 1 else ()),
        "batch.length=64",
        "batch.sequences=2",
    )
    toy = replace(case, recipe="recipes/toy.toml", settings=settings)
    measured = measure(toy, tokens, tmp_path, device="cpu")
    assert not measured.failure
    assert measured.ready > 0
    cells = row(toy, plan(toy), measured)
    assert len(measured.seconds) >= FEWEST
    assert float(cells["s a step"]) == pytest.approx(statistics.median(measured.seconds), abs=1e-3)


def test_only_late_steps_count() -> None:
    case = Case("toy", "recipes/toy.toml", 2, ())
    predicted = {
        "time": {"total": 1.0},
        "memory": {"allocated": 2**31},
        "mesh": {"tokens_per_step": 4096},
        "run": {"mfu": 0.5},
    }
    seconds = [90.0, 9.0, 2.0, 4.0, 2.0]
    steps = tuple({"seconds": each, "memory_gib": 3.0} for each in seconds)
    assert not Measured(steps=steps).is_enough
    assert Measured(steps=(*steps, {"seconds": 2.1})).is_enough
    cells = row(case, predicted, Measured(ready=5.0, steps=steps))
    assert cells["s a step"] == "2.000"
    assert cells["over plan"] == "2.00"
    assert cells["slowest"] == "2.00"
    assert cells["tokens/s/GPU"] == "1,024"
    assert cells["MFU"] == "25.0 %"
    assert cells["GiB over plan"] == "1.50"
    assert cells["first step, s"] == "90.0"
