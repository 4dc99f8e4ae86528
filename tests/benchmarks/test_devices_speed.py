"""`evo2 score` and `evo2 saturate` on all GPUs of a machine against one.

Run: pytest -n 0 -m benchmark -s tests/benchmarks/test_devices_speed.py; it writes devices.md into
the folder EVO2_BENCHMARK_RESULTS.
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from evo2cli import console
from stripedhyena2.checkpoint import save_weights
from stripedhyena2.parametrization import folded_state
from tests.benchmarks.gpu import Report, cell
from tests.benchmarks.inference import model_of
from tests.shell import forked_evo2

ABOUT = """\
# Variants on several GPUs

Commands with `--device all` against `--device cuda:0`, with random weights of 7B's shape in bf16,
windows of 8,192 bases, both strands: SNVs of a random genome, far apart for `evo2 score` and all of
a region for `evo2 saturate`. Variants a second are those of a long run beyond those of a short one
over the difference in seconds, so that start and loading stay out. "same bytes" compares the two
output files.

Command: `pytest -n 0 -m benchmark -s tests/benchmarks/test_devices_speed.py`"""

WINDOW = 8_192
EVO2 = [sys.executable, "-m", "evo2cli"]
FEW, MANY = 32, 352  # variants of the two runs with several GPUs, multiples of 3


@dataclass(frozen=True)
class Genome:
    """A random genome, and SNVs of it as a table."""

    file: Path
    bases: str

    @classmethod
    def draw(cls, folder: Path, length: int) -> "Genome":
        """A contig named c."""
        bases = "".join(np.random.default_rng(0).choice(list("ACGT"), length))
        file = folder / "genome.fa"
        file.write_text(f">c\n{bases}\n", encoding="utf-8")
        return cls(file, bases)

    def command(self, name: str, count: int, folder: Path) -> list[str]:
        """Arguments of a command over `count` SNVs, without its model."""
        middle = len(self.bases) // 2
        if name == "saturate":
            what = f"c:{middle + 1}-{middle + count // 3}"
        else:
            step = len(self.bases) // count
            lines = ["chrom\tpos\tref\talt"]
            for place in range(step // 2, step * count, step):
                ref = self.bases[place]
                lines.append(f"c\t{place + 1}\t{ref}\t{'CA'[ref == 'C']}")
            table = folder / f"{count}.tsv"
            table.write_text("\n".join(lines) + "\n", encoding="utf-8")
            what = str(table)
        return [name, what, "--reference", str(self.file)]


def read_command(
    name: str, device: str, genome: Genome, folder: Path, *model: str
) -> tuple[float, bytes]:
    """Variants a second of a command, and the bytes of its longer output."""
    took, scored, output = [], [], folder / f"{name}.{device}.tsv"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    for count in (FEW, MANY):
        command = [*EVO2, *genome.command(name, count, folder)]
        command += ["--output", str(output), "--device", device, *model]
        started = time.perf_counter()
        subprocess.run(command, check=True, env=environment)
        took.append(time.perf_counter() - started)
        found = output.read_bytes()
        output.unlink()
        scored.append(found.count(b"\n") - 1)
    return (scored[1] - scored[0]) / (took[1] - took[0]), found


def add_devices(
    report: Report, name: str, alone: str, several: str, count: int, *settings: Any
) -> None:
    """A row: a command on several devices against one."""
    single, whole = read_command(name, alone, *settings)
    shared, same = read_command(name, several, *settings)
    columns = ["command", "GPUs", "variants/s of one", "of all", "speedup", "same bytes"]
    row = [name, str(count), cell(single, 2), cell(shared, 2), cell(shared / single, 2)]
    report.add("Several GPUs", columns, [*row, "yes" if same == whole else "no"])
    assert same == whole


@pytest.fixture(scope="module")
def report(request: pytest.FixtureRequest) -> Iterator[Report]:
    report = Report("devices.md", ABOUT, request.path.parent / "results")
    yield report
    console.say(f"{report.path}\n{report}")


@pytest.fixture(scope="module")
def saved_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """7B's shape in bf16: 13 GB."""
    folder = tmp_path_factory.mktemp("models") / "7b"
    model = model_of("evo2_7b")
    save_weights(model.config, {k: v.cpu() for k, v in folded_state(model).items()}, folder, {})
    model_of.cache_clear()
    del model
    torch.cuda.empty_cache()
    return folder


@pytest.mark.benchmark
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="it needs several GPUs")
@pytest.mark.parametrize("name", ["score", "saturate"])
def test_several_gpus(name: str, saved_model: Path, tmp_path: Path, report: Report) -> None:
    genome = Genome.draw(tmp_path, 400_000)
    model = ("--model", str(saved_model), "--window", str(WINDOW))
    count = torch.cuda.device_count()
    add_devices(report, name, "cuda:0", "all", count, genome, tmp_path, *model)


@pytest.mark.slow
def test_a_toy_on_several_devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On two processes of the CPU, with a small model and small windows."""
    monkeypatch.setattr(f"{__name__}.EVO2", [str(tmp_path / "evo2")])
    monkeypatch.setattr(f"{__name__}.FEW", 6)
    monkeypatch.setattr(f"{__name__}.MANY", 24)
    report = Report("devices.md", ABOUT, tmp_path)
    genome = Genome.draw(tmp_path, 4_000)
    model = ("--model", "nano", "--window", "64")
    with forked_evo2(tmp_path / "evo2"):
        add_devices(report, "saturate", "cpu", "cpu,cpu", 2, genome, tmp_path, *model)
    assert report.tables["Several GPUs"][1][-1] == "yes"


@pytest.mark.parametrize("count", [3, 30])
def test_snvs_of_the_table_are_far_apart_and_differ_from_the_genome(
    count: int, tmp_path: Path
) -> None:
    genome = Genome.draw(tmp_path, 1_000)
    _, table, *_ = genome.command("score", count, tmp_path)
    rows = [line.split("\t") for line in Path(table).read_text().splitlines()[1:]]
    places = [int(row[1]) for row in rows]
    assert len(places) == count
    assert {late - early for early, late in pairwise(places)} == {1_000 // count}
    assert all(genome.bases[int(pos) - 1] == ref != alt for _, pos, ref, alt in rows)
