"""How fast `evo2 tokenize` turns a plain FASTA into tokens, from start to exit.

Run: pytest -m benchmark -s tests/benchmarks/test_tokenize_speed.py; results/tokenize.md keeps rows.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from evo2cli import console
from evo2cli.data.tokens import TokenSet

RUNS = 3


def write_genome(path: Path, num_records: int, record: int, width: int) -> None:
    random = np.random.default_rng(0)
    letters = np.frombuffer(b"ACGTacgt", np.uint8)
    with path.open("wb") as file:
        for number in range(num_records):
            lines = letters[random.integers(0, 8, (record // width, width))]
            file.write(f">s{number}\n".encode())
            file.write(np.pad(lines, ((0, 0), (0, 1)), constant_values=ord("\n")).tobytes())


@pytest.mark.benchmark
@pytest.mark.parametrize(
    ("num_records", "record", "width"),
    [(4, 60_000_000, 60), (4, 60_000_000, 60_000_000), (240_000, 1_000, 50)],
    ids=["60-a-line", "one-line", "short-records"],
)
def test_speed(tmp_path: Path, num_records: int, record: int, width: int) -> None:
    genome = tmp_path / "genome.fa"
    write_genome(genome, num_records, record, width)
    command = [sys.executable, "-m", "evo2cli", "tokenize", str(genome), "-o"]
    seconds, processor = [], []
    for run in range(RUNS):
        before, started = os.times(), time.perf_counter()
        subprocess.run([*command, str(tmp_path / f"tokens{run}")], check=True, capture_output=True)
        seconds.append(time.perf_counter() - started)
        spent = np.subtract(os.times(), before)
        processor.append(spent[2] + spent[3])  # user and system time of finished children
    splits = TokenSet.open(tmp_path / "tokens0").manifest["splits"].values()
    assert sum(split["bases"] for split in splits) == num_records * record
    size = genome.stat().st_size / 1e6
    console.write(
        f"| {num_records:,} x {record:,} bases, {width:,} a line | {min(seconds):.2f} "
        f"| {size / min(seconds):,.0f} | {min(processor):.2f} | {size / min(processor):,.0f} |\n"
    )
