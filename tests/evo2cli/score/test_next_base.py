"""`--score next-base` and `--after`: other definitions of a score."""

import json
from pathlib import Path

import pytest
import torch

from evo2cli.errors import UserError
from evo2cli.genome.alphabet import reverse_complement
from evo2cli.genome.reference import Reference
from evo2cli.genome.vcf import VariantRecord
from evo2cli.score import score_variants
from evo2cli.score.alleles import VariantScorer
from evo2cli.score.options import AlleleOptions, ScoreOptions
from evo2cli.score.run import score
from stripedhyena2 import StripedHyena2
from tests.evo2cli.score.test_windows import letters, variants, write

WINDOW = 64
CONTIG = letters(200)


@torch.inference_mode()
def plain_prediction(model: StripedHyena2, bases: bytes, allele: bytes) -> float:
    """The definition: log P(allele) by the logits after the last of `bases`."""
    [logits_LV] = model(torch.tensor([list(bases)]))
    return (logits_LV[-1] - logits_LV[-1].logsumexp(0))[allele[0]].item()


def snvs(sites: range) -> list[VariantRecord]:
    return [
        VariantRecord.from_columns(
            "one", at + 1, CONTIG[at], ",".join(base for base in "ACGT" if base != CONTIG[at])
        )
        for at in sites
    ]


@pytest.fixture
def genome(tmp_path: Path) -> Path:
    write(tmp_path, CONTIG, [])
    return tmp_path / "one.fa"


@pytest.mark.parametrize("windows", ["centred", "anchored"])
def test_next_base_is_what_the_logits_before_it_say(tiny_model, genome, windows):
    rows = list(
        score_variants(
            snvs(range(90, 110)), genome, tiny_model, window=WINDOW, windows=windows,
            score="next-base",
        )
    )  # fmt: skip
    assert len(rows) == 60
    for row in rows:
        at, sequence = row["pos"] - 1, CONTIG.encode()
        start, end = row["window_start"], row["window_end"]
        assert windows == "anchored" or (start, end) == (at + 1 - WINDOW, at + 1)
        ref, alt = row["ref"].encode(), row["alt"].encode()
        forward = [plain_prediction(tiny_model, sequence[start:at], base) for base in (ref, alt)]
        assert row["EVO2_FWD"] == pytest.approx(forward[1] - forward[0], abs=2e-6)
        if windows == "centred":  # for anchored windows, the columns describe the forward one
            after = reverse_complement(sequence[at + 1 : at + WINDOW])
            ref, alt = reverse_complement(ref), reverse_complement(alt)
            reverse = [plain_prediction(tiny_model, after, base) for base in (ref, alt)]
            assert row["EVO2_RC"] == pytest.approx(reverse[1] - reverse[0], abs=2e-6)
            assert row["EVO2_REF"] == pytest.approx((forward[0] + reverse[0]) / 2, abs=2e-6)
            assert row["EVO2_ALT"] == pytest.approx((forward[1] + reverse[1]) / 2, abs=2e-6)


def test_next_base_is_the_delta_of_windows_that_end_with_the_variant(tiny_model, genome):
    records = snvs(range(90, 100))
    by_base = score_variants(records, genome, tiny_model, window=WINDOW, score="next-base")
    by_window = score_variants(records, genome, tiny_model, window=WINDOW, after=0)
    for one, other in zip(by_base, by_window, strict=True):
        assert one["EVO2_DELTA"] == pytest.approx(other["EVO2_DELTA"], abs=2e-6)


def test_one_pass_gives_all_alternates_of_a_site(tiny_model, genome):
    with Reference.open(genome) as opened:
        options = AlleleOptions(window=WINDOW, strand="fwd", score="next-base")
        scorer = VariantScorer(tiny_model, opened, options)
        [record] = snvs(range(100, 101))
        assert len(scorer.score(record)) == 3
        assert scorer.num_bases == WINDOW - 1


@pytest.mark.parametrize("strand", ["fwd", "rc"])
def test_bases_beyond_the_end_of_a_window_do_not_matter(tiny_model, tmp_path, strand):
    def deltas(sequence: str) -> list[object]:
        path = write(tmp_path, sequence, [(100, sequence[100], "A"), (100, sequence[100:103], "G")])
        rows = score_variants(
            path, tmp_path / "one.fa", tiny_model, window=WINDOW, strand=strand, after=5
        )
        return [row["EVO2_DELTA"] for row in rows]

    sequence = CONTIG[:100] + "CTT" + CONTIG[103:]
    far = {"fwd": slice(109, None), "rc": slice(None, 95)}[strand]
    other = list(sequence)
    other[far] = reversed(other[far])
    assert deltas(sequence) == deltas("".join(other))


def test_alleles_without_a_next_base_score_have_a_status(tmp_path, checkpoint):
    records = [(0, CONTIG[0], "ACGT"["ACGT".index(CONTIG[0]) - 1]), *variants(CONTIG, 30)]
    source = write(tmp_path, CONTIG, records)
    output = tmp_path / "out.jsonl"
    options = {"window": 32, "device": "cpu", "strand": "fwd", "score": "next-base"}
    inputs = {"inputs": (source,), "reference": tmp_path / "one.fa"}
    score(ScoreOptions(**inputs, model=checkpoint, output=output, **options))
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert rows[0]["EVO2_STATUS"] == "NO_CONTEXT"
    for row in rows[1:]:
        is_snv = len(row["ref"]) == len(row["alt"]) == 1
        assert (row["EVO2_STATUS"] != "NOT_SNV") == is_snv == (row["EVO2_DELTA"] is not None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"score": "next-base", "after": 3}, "reads only the bases before the variant"),
        ({"windows": "anchored", "after": 3}, "--windows anchored, which says where windows end"),
        ({"window": 10, "after": 9}, "leaves no base before the variant"),
        ({"after": -1}, "must be at least 0"),
    ],
)
def test_contradictory_options_are_refused_in_one_line(options, message):
    with pytest.raises(UserError, match=message):
        AlleleOptions(**options)
