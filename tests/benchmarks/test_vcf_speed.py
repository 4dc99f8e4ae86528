"""How fast variants are read and written, without a model.

Run: pytest -m benchmark -s tests/benchmarks/test_vcf_speed.py; results/vcf.md keeps the rows.
"""

import os
import resource
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from evo2cli import console
from evo2cli.genome.htslib import write_bcf
from evo2cli.genome.vcf import read_vcf
from evo2cli.score.input import count_shard, read_variants
from evo2cli.score.options import ScoreOptions

NUM_SAMPLES, NUM_RECORDS = 500, 50_000
OURS = "EVO2_DELTA=-1.234567;EVO2_REF=-8000.123456;EVO2_ALT=-8001.358023;EVO2_STATUS=OK"


def write_cohort(path: Path, num_records: int) -> Path:
    samples = "".join(f"\ts{i}" for i in range(NUM_SAMPLES))
    genotypes = "\tGT:DP" + "\t0/1:35" * NUM_SAMPLES + "\n"
    with path.open("w") as file:
        file.write(
            "##fileformat=VCFv4.2\n##contig=<ID=chr1>\n"
            '##INFO=<ID=AC,Number=A,Type=Integer,Description="x">\n'
            '##FORMAT=<ID=GT,Number=1,Type=String,Description="x">\n'
            '##FORMAT=<ID=DP,Number=1,Type=Integer,Description="x">\n'
            f"#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\tFORMAT{samples}\n"
        )
        for i in range(num_records):
            file.write(f"chr1\t{3 * i + 1}\trs{i}\tA\tC\t50\tPASS\tAC=500" + genotypes)
    return path


def test_a_cohort_is_read_whole(tmp_path: Path) -> None:
    records = list(read_vcf(write_cohort(tmp_path / "cohort.vcf", 20)).records)
    assert [record.start for record in records] == list(range(0, 60, 3))


@pytest.mark.benchmark
def test_a_cohort_of_500_samples(tmp_path: Path) -> None:
    source = write_cohort(tmp_path / "cohort.vcf", NUM_RECORDS)
    binary = tmp_path / "cohort.bcf"
    write_bcf(source, binary)

    def annotate() -> None:
        with (tmp_path / "out.vcf").open("wb") as file:
            file.writelines(record.with_info(OURS) for record in read_vcf(source).records)

    filtered = ScoreOptions(
        inputs=(source,), regions=("chr1:1-60000",), min_qual=30, pass_only=True
    )
    for label, work in (
        ("parsed", lambda: sum(1 for _ in read_vcf(source).records)),
        ("parsed and filtered", lambda: count_shard(filtered, partial(read_variants, filtered))),
        ("parsed, annotated and written", annotate),
        ("parsed from BCF", lambda: sum(1 for _ in read_vcf(binary).records)),
    ):
        times = []
        for _ in range(3):
            started = time.perf_counter()
            work()
            times.append(time.perf_counter() - started)
        console.say(f"{label}: {NUM_RECORDS / min(times):,.0f} records a second")


@pytest.mark.benchmark
@pytest.mark.parametrize("options", [["-O", "out.vcf.gz"], ["-O", "out.tsv", "--pass-only"]])
@pytest.mark.parametrize("num_records", [100_000, 1_000_000])
def test_memory_of_symbolic_alleles(tmp_path: Path, num_records: int, options: list[str]) -> None:
    """The peak of all commands so far: the large file comes last."""
    (tmp_path / "g.fa").write_text(f">1\n{'A' * 60}\n")
    with (tmp_path / "symbolic.vcf").open("w") as file:
        file.write("##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n")
        file.writelines(f"1\t{i + 1}\trs{i}\tA\t<DEL>\t50\t.\tDP={i}\n" for i in range(num_records))
    command = [sys.executable, "-m", "evo2cli", "score", "symbolic.vcf", "-R", "g.fa", *options]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**10
    console.say(f"{num_records:,} records, {' '.join(options)}: {peak:,.0f} MiB at most")
