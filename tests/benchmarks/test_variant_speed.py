"""Variants a second with models of 1B's and 7B's shape and built-in ones, and how busy a GPU is.

Run: pytest -n 0 -m benchmark -s tests/benchmarks/test_variant_speed.py; about four minutes on an
H200. results/variants.md keeps what it writes into the folder EVO2_BENCHMARK_RESULTS.
"""

import statistics
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest
import torch

from evo2cli import console
from evo2cli.genome.reference import Reference
from evo2cli.genome.vcf import VariantRecord, read_vcf
from evo2cli.saturate.options import SaturateOptions
from evo2cli.saturate.run import saturate
from evo2cli.score.alleles import VariantScorer
from evo2cli.score.options import AlleleOptions, ScoreOptions
from evo2cli.score.run import score
from stripedhyena2 import StripedHyena2, load
from stripedhyena2.checkpoint.built_in import built_in_models
from stripedhyena2.packing import Shapes
from tests.benchmarks.gpu import Report, cell, needs_gpu
from tests.benchmarks.inference import model_of
from tests.evo2cli.score.test_windows import letters, variants

ABOUT = """\
# Speed of variant scoring

Random weights of published shapes, and the built-in models; bf16, or FP8 where it says so; one GPU.
The variants are the first of 3,893 SNVs of BRCA1 (`brca1_sge.vcf`), in windows of 8,192 bases
(nano: 2,048), both strands, from the genome to the row. "VCF" is a whole run of `evo2 score`, and
"exons, TSV" one of `evo2 saturate --bed` on intervals of 150 bases, from loading the model to the
last byte. "computed" is what ran through the model, a variant, without padding. "forward" is one
plain forward pass in the same run: a sequence of 8,192 bases, or 32 of 2,048 for nano; "ratio" is
that of the two rates. Two windows a variant on both strands would be 32,768 bases (8,192).

Command: `pytest -n 0 -m benchmark -s tests/benchmarks/test_variant_speed.py`"""

EXON = 150  # bases
COLUMNS = ["model", "windows", "variants", "variants/s", "computed", "bases/s", "forward", "ratio"]
# Variants to time: about ten seconds of an H200.
VARIANTS = {
    ("evo2_1b_base fp8", "anchored"): 400,
    ("evo2_7b fp8", "centred"): 36,
    ("evo2_7b fp8", "anchored"): 96,
    ("mini", "centred"): 1500,
    ("mini", "anchored"): 3893,
    ("evo2_1b_base", "centred"): 180,
    ("evo2_1b_base", "anchored"): 400,
    ("evo2_7b", "centred"): 36,
    ("evo2_7b", "anchored"): 96,
    ("nano", "centred"): 3893,
    ("nano", "anchored"): 3893,
}


@pytest.fixture(scope="module")
def report(request: pytest.FixtureRequest) -> Iterator[Report]:
    report = Report("variants.md", ABOUT, request.path.parent / "results")
    yield report
    console.say(f"{report.path}\n{report}")


def wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def forward_rate(model: StripedHyena2, rows: int, window: int) -> float:
    """Bases a second of a plain forward pass: the median of five, after one."""
    ids = torch.randint(65, 85, (rows, window), device=model.embedding.weight.device)
    times = []
    with torch.inference_mode():
        for _ in range(6):
            wait()
            started = time.perf_counter()
            model(ids)
            wait()
            times.append(time.perf_counter() - started)
    return ids.numel() / statistics.median(times[1:])


def measured(scorer: VariantScorer, records: list[VariantRecord], plain: float) -> list[str]:
    """The cells of a row behind the model and the windows."""
    before = scorer.num_bases
    wait()
    started = time.perf_counter()
    for rows in scorer.score_all(records):
        assert all(row["EVO2_DELTA"] is not None for row in rows)
    took = time.perf_counter() - started
    bases, count = scorer.num_bases - before, len(records)
    rates = [cell(count / took, 1), cell(bases / count, 0), cell(bases / took, 0), cell(plain, 0)]
    return [cell(count, 0), *rates, cell(bases / took / plain, 2)]


@pytest.mark.benchmark
@needs_gpu
@pytest.mark.parametrize(("name", "windows"), VARIANTS)
def test_variants(shared: Path, name: str, windows: str, report: Report) -> None:
    folder = shared / "data" / "variants"
    if name in built_in_models():
        model = load(name, device="cuda", dtype=torch.bfloat16).eval()
    else:
        model = model_of(name.removesuffix(" fp8"), float8=name.endswith(" fp8"))
    window = min(model.config.context, 8192)
    options = AlleleOptions(window=window, windows=windows)
    records = list(islice(read_vcf(folder / "brca1_sge.vcf").records, VARIANTS[name, windows]))
    with Reference.open(folder / "brca1_region.fa") as genome:
        # Compiles, and grows the pools; a part of the same variants, so all lengths occur.
        warm = VariantScorer(model, genome, options)
        for _ in warm.score_all(records[:: max(len(records) // 6, 1)]):
            pass
        plain = forward_rate(model, 32 if name == "nano" else 1, window)
        row = measured(VariantScorer(model, genome, options), records, plain)
    report.add("Variants", COLUMNS, [name, windows, *row])


@pytest.mark.benchmark
@needs_gpu
@pytest.mark.parametrize("windows", ["centred", "anchored"])
def test_a_whole_run(shared: Path, tmp_path: Path, windows: str, report: Report) -> None:
    """`evo2 score` with nano, after a run that compiles."""
    source = shared / "data" / "variants" / "brca1_sge.vcf"
    took = 0.0
    for number in range(2):
        options = ScoreOptions(
            inputs=(source,),
            reference=source.with_name("brca1_region.fa"),
            output=tmp_path / f"{number}.vcf",
            windows=windows,
        )
        started = time.perf_counter()
        score(options)
        took = time.perf_counter() - started
    count = VARIANTS["nano", windows]
    row = ["nano", f"{windows}, VCF", cell(count, 0), cell(count / took, 1), "", "", "", ""]
    report.add("Variants", COLUMNS, row)


@pytest.mark.benchmark
@needs_gpu
def test_exons(shared: Path, tmp_path: Path, report: Report) -> None:
    """`evo2 saturate --bed` with mini, after a run that compiles."""
    bed, count = tmp_path / "exons.bed", 24
    starts = range(20_000, 20_000 + 5_000 * count, 5_000)
    bed.write_text("".join(f"brca1_region\t{start}\t{start + EXON}\n" for start in starts))
    took = 0.0
    for number in range(2):
        options = SaturateOptions(
            bed=bed,
            reference=shared / "data" / "variants" / "brca1_region.fa",
            model="mini",
            output=tmp_path / f"{number}.tsv",
            windows="anchored",
        )
        started = time.perf_counter()
        saturate(options)
        took = time.perf_counter() - started
    count *= 3 * EXON
    row = ["mini", "anchored, exons, TSV", cell(count, 0), cell(count / took, 1), "", "", "", ""]
    report.add("Variants", COLUMNS, row)


@pytest.mark.parametrize("windows", ["centred", "anchored"])
def test_a_row_of_a_tiny_model(tiny_model: StripedHyena2, windows: str) -> None:
    """On any device: the cells are there, and count what was computed."""
    sequence = letters(500)
    records = [
        VariantRecord.from_columns("one", at + 1, ref, alt)
        for at, ref, alt in variants(sequence, 12)
    ]
    genome = Reference.from_sequences({"one": sequence.encode()})
    options = AlleleOptions(window=256, windows=windows)
    scorer = VariantScorer(tiny_model, genome, options, shapes=Shapes(1024))
    row = measured(scorer, records, forward_rate(tiny_model, 1, 256))
    assert len(["tiny", windows, *row]) == len(COLUMNS)
    assert float(row[2].replace(",", "")) == pytest.approx(scorer.num_bases / len(records), abs=1)
    assert all(float(each.replace(",", "")) > 0 for each in row)
