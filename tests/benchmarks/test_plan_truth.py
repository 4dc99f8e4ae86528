"""What `evo2 plan` predicts of a step against what `evo2 train` measures, from 1B to 40B.

Run: pytest -n 0 -m benchmark -s tests/benchmarks/test_plan_truth.py; it writes results/plan.md,
or into the folder EVO2_BENCHMARK_RESULTS, after every row. A row that needs more GPUs than there
are is skipped; `-k` leaves some out, as in `-k "7B and x4 and FP8"`. Without a GPU,
pytest -n 0 -s -k plans tests/benchmarks/test_plan_truth.py prints the plan of every row for H200s.
"""

import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
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
from tests.ranks import forked, free_port

ABOUT = """\
# The plan against measurements

`evo2 train` on random bases, killed after some steps, and what `evo2 plan` says of the same recipe
and settings. Medians of the steps from the third on; "slowest" is the slowest of them over their
median. GiB is the peak of torch's allocator on the fullest GPU, before the weights are written.
"ready" is the time from the start of the command to its first step, and "first step" that step.
"host GiB" is the most memory that all ranks together had without a file behind it. Slow steps are
fewer: see `Case` in the benchmark.

Under "Checkpoints" a run is killed after its first checkpoint, and another goes on from there: the
same command, or one with a new optimizer if only weights were written. "write" is the time from the
step to the checkpoint, "ready again" as "ready", of the second run.

Command: `pytest -m benchmark -s tests/benchmarks/test_plan_truth.py`"""

ROOT = Path(__file__).parents[2]
WARM = 2  # steps that are not counted
FEWEST, MOST, ENOUGH = 3, 10, 10.0  # steps that are, and seconds of them that suffice
LIMIT = 280  # seconds until a run is given up
LOOK = 0.5  # seconds between two looks at the memory of the ranks
BASES = 4_000_000


@dataclass(frozen=True)
class Case:
    """A row.

    Attributes:
        name: Of the row.
        recipe: The file.
        gpus: Ranks.
        settings: Changes to the recipe.
        precision: Of products, bf16 or FP8.
        warm: Steps that are not counted.
        fewest: Steps that are, at least.
        limit: Seconds until a run is given up.
        fits: What the plan for H200s says.
    """

    name: str
    recipe: str
    gpus: int
    settings: tuple[str, ...]
    precision: str = "bf16"
    warm: int = WARM
    fewest: int = FEWEST
    limit: float = LIMIT
    fits: bool = True

    @property
    def all_settings(self) -> tuple[str, ...]:
        """Changes to the recipe; without any of a checkpoint, none would be written in time."""
        return (
            "optimizer.steps=1000",
            "optimizer.warmup_steps=10",
            "checkpoint.every=1000",
            "checkpoint.optimizer=false",
            *(("precision.fp8=true",) if self.precision == "FP8" else ()),
            *self.settings,
        )

    def __str__(self) -> str:
        """Words for `-k`, such as 7B-ZeRO-3-x4-bf16."""
        words = self.name.replace(", ", " ").replace(",", "").replace(" ", "-")
        return f"{words}-x{self.gpus}-{self.precision}"


def _shared_window(length: int, gpus: int, groups: int = 1, **others: Any) -> Case:
    """7B with a window of `length` positions for every group of GPUs."""
    each = gpus // groups
    windows = "a window" if groups == 1 else f"{groups} windows"
    settings = (
        f"batch.length={length}",
        f"batch.sequences={groups}",
        f"shape.context={length}",
        f"parallel.context={each}",
        "memory.activation_checkpointing=1",
    )
    name = f"7B, ZeRO 3, {windows} of {length:,} for {each} GPUs"
    return Case(name, "recipes/7b.toml", gpus, settings, **others)


_FEW_SLOW_STEPS: dict[str, Any] = {"warm": 1, "fewest": 1, "limit": 560}
_SETTINGS = [
    Case("1B, plain", "recipes/1b.toml", 1, ("batch.sequences=8",)),
    Case("7B, ZeRO 3", "recipes/7b.toml", 2, ("batch.sequences=4",)),
    Case(
        "7B, ZeRO 3, micro-batches of 2",
        "recipes/7b.toml",
        2,
        ("batch.sequences=4", "batch.micro_sequences=2"),
    ),
    _shared_window(131_072, 2),
    *(
        Case(
            f"7B, ZeRO {zero}",
            "recipes/7b.toml",
            4,
            ("batch.sequences=8", f"parallel.zero={zero}"),
        )
        for zero in (1, 2, 3)
    ),
    _shared_window(131_072, 4, groups=2),
    _shared_window(524_288, 4, warm=1, fewest=2),
    _shared_window(1_048_576, 4, fits=False, **_FEW_SLOW_STEPS),
    _shared_window(1_048_576, 8, **_FEW_SLOW_STEPS),
    Case("40B, ZeRO 3", "recipes/40b.toml", 8, ("batch.sequences=8",), fewest=18, limit=420),
]
CASES = [replace(case, precision=precision) for case in _SETTINGS for precision in ("bf16", "FP8")]
# All state of 40B is more than the disks of many machines hold: 645 GB.
CHECKPOINTS = [
    Case(
        "40B, its first 10 blocks, all state",
        "recipes/40b.toml",
        8,
        (
            "batch.sequences=8",
            'shape.stripes="SMLASMLSML"',
            "checkpoint.every=2",
            "checkpoint.optimizer=true",
        ),
    ),
    Case(
        "40B, weights alone",
        "recipes/40b.toml",
        8,
        ("batch.sequences=8", "checkpoint.every=2"),
        limit=420,
    ),
]


@dataclass(frozen=True)
class Measured:
    """What a run showed, or why it did not."""

    ready: float = float("nan")
    steps: tuple[dict[str, Any], ...] = ()
    host: int = 0  # bytes
    failure: str = ""

    def seconds(self, case: Case) -> list[float]:
        """Of the steps that count."""
        return [step["seconds"] for step in self.steps[case.warm :]]

    def is_enough(self, case: Case) -> bool:
        """Whether the run may end."""
        seconds = self.seconds(case)
        if len(seconds) < case.fewest:
            return False
        return len(seconds) >= MOST or sum(seconds) > ENOUGH


def measure(
    case: Case,
    tokens: Path,
    folder: Path,
    device: str = "auto",
    *,
    done: Callable[[Measured], bool] | None = None,
) -> Measured:
    """Train until there are enough steps.

    Args:
        case: The recipe.
        tokens: Folder of `evo2 tokenize`.
        folder: Holds the run, and an earlier one that goes on.
        device: As `--device`.
        done: Whether the run may end, if not by its steps.
    """
    output, log = folder / "run", folder / "log"
    settings = [*case.all_settings, f'data.sources=[{{path="{tokens}"}}]']
    command = ["train", str(ROOT / case.recipe), "--output", str(output)]
    command += [] if device == "auto" else ["--device", device]
    command += [word for setting in settings for word in ("--set", setting)]
    earlier = len(read_steps(output / "metrics.jsonl"))
    begun = looked = time.monotonic()
    measured = Measured()
    with started(command, case.gpus, log) as ranks:
        while time.monotonic() - begun < case.limit:
            time.sleep(0.05)
            steps = read_steps(output / "metrics.jsonl")[earlier:]
            if steps and not measured.steps:
                ready = time.monotonic() - begun - steps[0]["seconds"]
                measured = replace(measured, ready=ready)
            measured = replace(measured, steps=steps)
            if time.monotonic() - looked > LOOK:
                host = sum(memory_of(rank.pid) for rank in ranks)
                measured = replace(measured, host=max(host, measured.host))
                looked = time.monotonic()
            if done(measured) if done else measured.is_enough(case):
                return measured
            if any(rank.poll() is not None for rank in ranks):
                last = log.read_text(encoding="utf-8").strip().splitlines()[-1:]
                return replace(measured, failure=f"ended: {''.join(last)[:200]}")
    return replace(measured, failure=f"{len(measured.steps)} steps in {case.limit:.0f} s")


def memory_of(process: int) -> int:
    """Bytes of a process and those that it started, without what files back; 0 if it has ended."""
    try:
        status = Path(f"/proc/{process}/status").read_text(encoding="utf-8")
        children = Path(f"/proc/{process}/task/{process}/children").read_text(encoding="utf-8")
    except OSError:
        return 0
    own = re.findall(r"^Rss(?:Anon|Shmem):\s+(\d+) kB$", status, re.MULTILINE)
    return 1024 * sum(map(int, own)) + sum(memory_of(int(child)) for child in children.split())


def start(command: list[str], environment: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
    """A rank in a session of its own."""
    with log.open("ab") as said:
        return subprocess.Popen(
            [sys.executable, "-m", "evo2cli", *command],
            stdout=subprocess.DEVNULL,
            stderr=said,
            env=environment,
            start_new_session=True,
        )


class ForkedRank:
    """What `start` returns, forked from a process that has imported what a rank needs."""

    def __init__(self, command: list[str], environment: dict[str, str], log: Path) -> None:
        self._process = forked(log, run_in_session, command, environment)
        self.pid = self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self) -> None:
        self._process.join()


def run_in_session(command: list[str], environment: dict[str, str]) -> None:
    from evo2cli.app import main

    os.setsid()
    os.environ.update(environment)
    sys.argv = ["evo2", *command]
    main()


@contextmanager
def started(command: list[str], count: int, log: Path) -> Iterator[list[subprocess.Popen[bytes]]]:
    """The ranks of a command while the context lasts; at its end all their processes are killed."""
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    ranks = []
    # A benchmark that `timeout` ends leaves no ranks behind.
    usual = signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))
    try:
        for rank in range(count):
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
            path = os.pathsep.join([str(ROOT), *(entry for entry in sys.path if entry)])
            environment = {**os.environ, "PYTHONPATH": path}
            environment |= {**address, **own} if count > 1 else {}
            environment["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // count))
            ranks.append(start(command, environment, log))
        yield ranks
    finally:
        for process in ranks:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        signal.signal(signal.SIGTERM, usual)


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
    counted = measured.seconds(case)
    seconds = statistics.median(counted)
    plan = predicted["time"]["total"]
    tokens = predicted["mesh"]["tokens_per_step"] / case.gpus
    memory = measured.steps[-1].get("memory_gib", float("nan"))
    planned = predicted["memory"]["allocated"] / 2**30
    return {
        **facts,
        "s a step": cell(seconds, digits=3),
        "planned": cell(plan, digits=3),
        "over plan": cell(seconds / plan, digits=2),
        "slowest": cell(max(counted) / seconds, digits=2),
        "tokens/s/GPU": cell(tokens / seconds, digits=0),
        "MFU": cell(100 * predicted["run"]["mfu"] * plan / seconds, digits=1) + " %",
        "GiB": cell(memory, digits=1),
        "GiB planned": cell(planned, digits=1),
        "GiB over plan": cell(memory / planned, digits=2),
        "ready, s": cell(measured.ready, digits=0),
        "first step, s": cell(measured.steps[0]["seconds"], digits=1),
        "host GiB": cell(measured.host / 2**30, digits=0),
    }


def resumed(case: Case, tokens: Path, folder: Path, device: str = "auto") -> dict[str, str]:
    """A row: a run that is killed after its first checkpoint, and one that goes on from it."""
    output = folder / "run"
    written = float("nan")

    def has_checkpoint(measured: Measured) -> bool:
        nonlocal written
        if len(measured.steps) >= 2 and written != written:
            written = time.monotonic()
        return (output / "step-000000002").is_dir()

    before = measure(case, tokens, folder, device, done=has_checkpoint)
    assert not before.failure
    written = time.monotonic() - written
    size = sum(file.stat().st_size for file in output.rglob("*") if file.is_file())
    again = replace(case, settings=(*case.settings, "checkpoint.every=1000"))
    if "checkpoint.optimizer=true" not in case.settings:
        weights = output.rename(folder / "weights") / "step-000000002"
        text = (ROOT / case.recipe).read_text(encoding="utf-8")
        text = re.sub(r"^model .*$", f'init = "{weights}"', text, flags=re.MULTILINE)
        recipe = folder / "again.toml"
        recipe.write_text(text, encoding="utf-8")
        again = replace(again, recipe=str(recipe))
    after = measure(again, tokens, folder, device, done=lambda measured: bool(measured.steps))
    shutil.rmtree(folder / "weights", ignore_errors=True)
    assert not after.failure
    return {
        "run": case.name,
        "GPUs": str(case.gpus),
        "GB": cell(size / 1e9, digits=1),
        "ready, s": cell(before.ready, digits=0),
        "write, s": cell(written, digits=1),
        "ready again, s": cell(after.ready, digits=0),
        # Of the step that wrote the checkpoint; the run may have gone on before it was killed.
        "loss before": cell(before.steps[1]["loss"], digits=4),
        "loss after": cell(after.steps[0]["loss"], digits=4),
        "host GiB": cell(max(before.host, after.host) / 2**30, digits=0),
    }


def plan(case: Case, gpu: str | None = None) -> dict[str, Any]:
    """What `evo2 plan` says, for a kind of GPU: by default this one or an H200."""
    if gpu is None:
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


@pytest.fixture(scope="module")
def plans(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Report]:
    """What is planned; shown, not kept."""
    report = Report("plans.md", "# Plans", otherwise=tmp_path_factory.mktemp("plans"))
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
    assert not measured.failure or not case.fits


@pytest.mark.benchmark
@pytest.mark.parametrize("case", CHECKPOINTS, ids=str)
def test_resume(case: Case, tokens: Path, tmp_path: Path, report: Report) -> None:
    if torch.cuda.device_count() < case.gpus:
        pytest.skip(f"it needs {case.gpus} GPUs")
    cells = resumed(case, tokens, tmp_path)
    report.add("Checkpoints", list(cells), list(cells.values()))


@pytest.mark.slow
@pytest.mark.parametrize("case", CHECKPOINTS, ids=str)
def test_a_toy_resumes(
    case: Case, tokens: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the CPU; the second run goes on, and does not begin with the loss of a new model."""
    monkeypatch.setattr(f"{__name__}.start", ForkedRank)
    settings = ("batch.length=64", "batch.sequences=2", "checkpoint.every=2")
    settings += tuple(s for s in case.settings if s == "checkpoint.optimizer=true")
    toy = replace(case, recipe="recipes/toy.toml", gpus=1, settings=settings)
    cells = resumed(toy, tokens, tmp_path, device="cpu")
    assert float(cells["loss after"]) < float(cells["loss before"]) - 0.1


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_plans_are_known(case: Case, plans: Report) -> None:
    found = plan(case, "h200")
    memory, run = found["memory"], found["run"]
    cells = {
        "run": case.name,
        "GPUs": str(case.gpus),
        "products": case.precision,
        "fits": "yes" if found["fits"] else f"no: {found['advice']}",
        "GiB": cell(memory["total"] / 2**30, digits=1),
        "of it activations": cell(memory["activations"] / 2**30, digits=1),
        "s a step": cell(found["time"]["total"], digits=2),
        "tokens/s/GPU": cell(run["tokens_per_second_per_gpu"], digits=0),
        "MFU": cell(100 * run["mfu"], digits=0) + " %",
    }
    plans.add("Plans for H200s", list(cells), list(cells.values()))
    assert found["fits"] == case.fits


@pytest.mark.slow
@pytest.mark.parametrize("case", [_SETTINGS[0], _shared_window(131_072, 2)], ids=str)
def test_a_toy_is_measured(
    case: Case, tokens: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One CPU rank, and two that share a window, with the toy's recipe and short windows."""
    pytest.importorskip("deepspeed", reason="several ranks need the extra `train`")
    monkeypatch.setattr(f"{__name__}.start", ForkedRank)
    monkeypatch.setattr(f"{__name__}.ENOUGH", 0.0)
    monkeypatch.setattr(f"{__name__}.LOOK", 0.0)
    settings = (
        *(setting for setting in case.settings if setting.startswith("parallel.")),
        *(("parallel.zero=3",) if case.gpus > 1 else ()),
        "batch.length=64",
        f"batch.sequences={max(2, case.gpus)}",
    )
    toy = replace(case, recipe="recipes/toy.toml", settings=settings)
    measured = measure(toy, tokens, tmp_path, device="cpu")
    assert not measured.failure
    assert measured.ready > 0
    cells = row(toy, plan(toy), measured)
    seconds = measured.seconds(toy)
    assert len(seconds) >= toy.fewest
    assert float(cells["s a step"]) == pytest.approx(statistics.median(seconds), abs=1e-3)
    assert 2**20 < measured.host / case.gpus < 2**34


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
    assert not Measured(steps=steps).is_enough(case)
    assert Measured(steps=(*steps, {"seconds": 2.1})).is_enough(case)
    assert Measured(steps=steps).is_enough(replace(case, warm=1))
    assert not Measured(steps=(*steps, {"seconds": 2.1})).is_enough(replace(case, fewest=5))
    cells = row(case, predicted, Measured(ready=5.0, steps=steps))
    assert cells["s a step"] == "2.000"
    assert cells["over plan"] == "2.00"
    assert cells["slowest"] == "2.00"
    assert cells["tokens/s/GPU"] == "1,024"
    assert cells["MFU"] == "25.0 %"
    assert cells["GiB over plan"] == "1.50"
    assert cells["first step, s"] == "90.0"
