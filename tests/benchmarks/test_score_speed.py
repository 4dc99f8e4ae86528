"""How long `evo2 score` takes on 3,893 real variants, and what nano can tell of them.

Run: pytest -m benchmark -s tests/benchmarks/test_score_speed.py; results/score.md keeps the rows.
"""

import json
import time
from pathlib import Path

import numpy as np
import pytest

from evo2cli import console
from evo2cli.genome.vcf import read_vcf
from evo2cli.workflows.score import score
from evo2cli.workflows.score_options import ScoreOptions


def area_under_curve(positive: list[float], negative: list[float]) -> float:
    """The chance that a positive stands above a negative, ties counting half."""
    both = np.array([*positive, *negative])
    ranks = np.array([(both < value).sum() + ((both == value).sum() + 1) / 2 for value in both])
    wins = ranks[: len(positive)].sum() - len(positive) * (len(positive) + 1) / 2
    return float(wins / (len(positive) * len(negative)))


def test_the_area_is_its_definition() -> None:
    assert area_under_curve([3.0, 2.0], [1.0, 2.0]) == pytest.approx(3.5 / 4)


@pytest.mark.benchmark
def test_brca1_saturation_genome_editing(shared: Path, tmp_path: Path) -> None:
    source = shared / "data" / "variants" / "brca1_sge.vcf"
    output = tmp_path / "out.jsonl"
    started = time.perf_counter()
    score(ScoreOptions(source=source, reference=source.with_name("brca1_region.fa"), output=output))
    seconds = time.perf_counter() - started
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    classes = [
        dict(field.partition("=")[::2] for field in record.line.split(b"\t")[7].decode().split(";"))
        for record in read_vcf(source).records
    ]
    loss = [-r["EVO2_DELTA"] for r, c in zip(rows, classes, strict=True) if c["CLASS"] == "LOF"]
    other = [-r["EVO2_DELTA"] for r, c in zip(rows, classes, strict=True) if c["CLASS"] != "LOF"]
    console.say(
        f"{len(rows):,} alleles in {seconds:.0f} s, {len(rows) / seconds:.1f} a second; "
        f"AUROC of -EVO2_DELTA for loss of function {area_under_curve(loss, other):.3f}"
    )
    assert all(row["EVO2_STATUS"] for row in rows)
