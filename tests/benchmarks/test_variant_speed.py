"""Variants a second on a GPU with a model of 7B's shape, and how busy they keep it.

Run: pytest -m benchmark -s tests/benchmarks/test_variant_speed.py; results/variants.md keeps what
it writes into the folder EVO2_BENCHMARK_RESULTS.
"""

import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest
import torch

from evo2cli import console
from evo2cli.genome.reference import Reference
from evo2cli.genome.vcf import read_vcf
from evo2cli.score.alleles import VariantScorer
from evo2cli.score.options import ScoreOptions
from tests.benchmarks.gpu import Report, cell, needs_gpu
from tests.benchmarks.inference import ids_of, model_of, seconds

ABOUT = """\
# Speed of variant scoring

Random weights of published shapes, bf16, one GPU. The variants are the first of 3,893 SNVs of BRCA1
(`brca1_sge.vcf`), in windows of 8,192 bases, both strands. "computed" is what ran through the
model, a variant; "of a forward" is bases a second over those of one plain forward pass of 8,192
bases in the same run. Two windows a variant on both strands would be 32,768 bases.

Command: `pytest -m benchmark -s tests/benchmarks/test_variant_speed.py`"""

WINDOW, WARM, TIMED = 8_192, 12, 200


@pytest.fixture(scope="module")
def report(request: pytest.FixtureRequest) -> Iterator[Report]:
    report = Report("variants.md", ABOUT, request.path.parent / "results")
    yield report
    console.say(f"{report.path}\n{report}")


@pytest.mark.benchmark
@needs_gpu
@pytest.mark.parametrize("windows", ["centred", "anchored"])
@pytest.mark.parametrize("name", ["evo2_1b_base", "evo2_7b"])
def test_variants(shared: Path, name: str, windows: str, report: Report) -> None:
    folder, model, ids = shared / "data" / "variants", model_of(name), ids_of(1, WINDOW)
    source = folder / "brca1_sge.vcf"
    options = ScoreOptions(inputs=(source,), window=WINDOW, windows=windows)
    with torch.inference_mode():
        plain = WINDOW / min(seconds(lambda: model(ids), 5), seconds(lambda: model(ids), 5))
    with Reference.open(folder / "brca1_region.fa") as genome:
        scorer = VariantScorer(model, genome, options)
        records = read_vcf(source).records
        for record in islice(records, WARM):
            scorer.score(record)
        before = scorer.num_bases
        torch.cuda.synchronize()
        started = time.perf_counter()
        for record in islice(records, TIMED):
            assert scorer.score(record)[0]["EVO2_DELTA"] is not None
        took = time.perf_counter() - started
    bases = scorer.num_bases - before
    columns = ["model", "windows", "variants/s", "computed", "bases/s", "of a forward"]
    row = [name, windows, cell(TIMED / took, 1), cell(bases / TIMED, 0), cell(bases / took, 0)]
    report.add("Variants", columns, [*row, cell(bases / took / plain, 2)])
