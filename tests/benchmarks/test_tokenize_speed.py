"""How fast `evo2 tokenize` turns a plain FASTA into tokens, from start to exit, and by workers.

Run: pytest -m benchmark -s tests/benchmarks/test_tokenize_speed.py; results/tokenize.md keeps rows.
"""

import gzip
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from evo2cli import console
from evo2cli.data.tokens import TokenSet
from evo2cli.tokenize.options import TokenizeOptions
from evo2cli.tokenize.run import tokenize_files

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


@pytest.mark.benchmark
@pytest.mark.parametrize("kind", ["chromosomes", "short-records", "json-lines"])
def test_speed_by_workers(tmp_path: Path, shared: Path, kind: str) -> None:
    """What workers do is shared; what the command itself does bounds how many of them help."""
    file = tmp_path / "input"
    if kind == "chromosomes":
        human = shared / "data/corpus/train/vertebrate_Homo_sapiens_GRCh37_chr20.fa.gz"
        file.write_bytes(gzip.decompress(human.read_bytes()) * 32)
    else:
        write_genome(file, 960_000, 1000, 1000)
    if kind == "json-lines":
        records = file.read_bytes().split(b"\n")[1::2]
        file.write_bytes(b"".join(b'{"text": "%s"}\n' % record for record in records))
    size = file.stat().st_size / 1e6
    for workers in (1, 2, 4, 8):
        if workers > (os.cpu_count() or 1):
            continue
        before, started = os.times(), time.perf_counter()
        folder = tmp_path / f"by{workers}"
        tokenize_files(TokenizeOptions(files=(file,), output=folder, workers=workers))
        seconds = time.perf_counter() - started
        spent = np.subtract(os.times(), before)
        own, shared_out = spent[0] + spent[1], spent[2] + spent[3]
        shutil.rmtree(folder)
        console.write(
            f"| {kind} | {workers} | {seconds:.2f} | {size / seconds:,.0f} | {own:.2f} "
            f"| {size / own:,.0f} | {shared_out:.2f} |\n"
        )
