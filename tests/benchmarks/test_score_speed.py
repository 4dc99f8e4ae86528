"""How long `evo2 score` takes on 3,893 real variants, what of it the model does not take, and what
nano can tell of them.

Run: pytest -m benchmark -s tests/benchmarks/test_score_speed.py; results/score.md keeps the rows.
"""

import gc
import json
import time
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from evo2cli import console
from evo2cli.genome.reference import Reference
from evo2cli.genome.vcf import VariantRecord, read_vcf
from evo2cli.score.alleles import VariantScorer
from evo2cli.score.options import ScoreOptions
from evo2cli.score.run import score
from stripedhyena2 import StripedHyena2, load
from stripedhyena2.cache import Launch
from stripedhyena2.packing import Packer, Shapes
from stripedhyena2.scoring import ScoringState

NUM_SHARED = 60  # of the variants, for each kind of windows


def read_twice(scorer: VariantScorer, model: StripedHyena2, record: VariantRecord) -> int:
    """Read both windows of an allele from their first base on; returns their bases."""
    pairs = scorer.windows(record, record.alternates[0])
    assert isinstance(pairs, list)
    windows = [window.sequence for pair in pairs for window in (pair.reference, pair.alternate)]
    for window in windows:
        ScoringState.start(model).extend(window)
    return sum(map(len, windows))


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
    reference = source.with_name("brca1_region.fa")
    score(ScoreOptions(inputs=(source,), reference=reference, output=output, strand="fwd"))
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


@pytest.mark.benchmark
@pytest.mark.parametrize("windows", ["two a record", "centred", "anchored"])
def test_windows_of_8192(shared: Path, windows: str) -> None:
    folder = shared / "data" / "variants"
    source = folder / "brca1_sge.vcf"
    kind = "centred" if windows == "two a record" else windows
    options = ScoreOptions(inputs=(source,), window=8192, windows=kind, strand="fwd")
    model = load("nano").eval()
    with Reference.open(folder / "brca1_region.fa") as genome:
        scorer = VariantScorer(model, genome, options)
        bases = 0
        started = time.process_time()  # other work on the machine does not count
        for record in islice(read_vcf(source).records, NUM_SHARED):
            if windows == "two a record":
                bases += read_twice(scorer, model, record)
            else:
                assert scorer.score(record)[0]["EVO2_DELTA"] is not None
                bases = scorer.num_bases
        seconds = time.process_time() - started
    console.say(
        f"{windows}: {NUM_SHARED} SNVs, forward strand, {bases:,} bases in {seconds:.0f} seconds "
        "of CPU"
    )


@pytest.mark.benchmark
@pytest.mark.parametrize("windows", ["centred", "anchored"])
def test_all_but_the_model(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, windows: str
) -> None:
    """A whole run whose rows are packed as for a GPU, and answered by zeros."""
    source = shared / "data" / "variants" / "brca1_sge.vcf"

    def nothing(packer: Packer, ids_BL: Tensor, _lengths_B: Tensor, _launch: Launch) -> Tensor:
        if packer._next_SV is None:
            packer._next_SV = torch.zeros(packer._num_states, 512)
        return torch.zeros(1, 1, dtype=torch.float64).expand(ids_BL.shape)

    monkeypatch.setattr(Packer, "_logprobs", nothing)
    monkeypatch.setattr(Shapes, "of", lambda _: Shapes(65_536))

    def seconds(limit: int) -> float:
        reference, output = source.with_name("brca1_region.fa"), tmp_path / "x.vcf"
        started = time.process_time()  # other work on the machine does not count
        score(
            ScoreOptions(
                inputs=(source,),
                reference=reference,
                output=output,
                windows=windows,
                device="cpu",
                limit=limit,
            )
        )
        return time.process_time() - started

    seconds(100)
    gc.freeze()  # a command does not search what pytest keeps
    few, many = (min(seconds(limit) for _ in range(3)) for limit in (100, 3100))
    console.say(f"{windows}: {(many - few) / 3:.3f} milliseconds of CPU a variant")
