"""Tables with the columns ref_seq and var_seq, which need no genome."""

import csv
import json
from pathlib import Path

import pytest

from evo2cli.errors import UserError
from evo2cli.genome.reference import Reference
from evo2cli.genome.vcf import read_vcf
from evo2cli.score import score_variants
from evo2cli.score.alleles import VariantScorer
from evo2cli.score.options import AlleleOptions, ScoreOptions
from evo2cli.score.run import score
from tests.evo2cli.score.test_windows import letters, variants, write

WINDOW = 48
CONTIG = letters(160)


@pytest.fixture
def table(tmp_path: Path, tiny_model) -> Path:
    """The windows of variants, as `evo2 score` cuts them, as a table."""
    source = write(tmp_path, CONTIG, variants(CONTIG, 20))
    path = tmp_path / "pairs.csv"
    options = AlleleOptions(window=WINDOW, strand="fwd")
    with Reference.open(tmp_path / "one.fa") as genome, path.open("w") as file:
        scorer = VariantScorer(tiny_model, genome, options)
        lines = csv.writer(file)
        lines.writerow(["chrom", "pos", "ref", "alt", "class", "ref_seq", "var_seq"])
        for record in read_vcf(source).records:
            [alternate] = record.alternates
            [pair] = scorer.windows(record, alternate)
            sequences = (pair.reference.sequence.decode(), pair.alternate.sequence.decode())
            alleles = (record.reference.decode(), alternate.decode())
            lines.writerow([record.contig, record.start + 1, *alleles, "LOF", *sequences])
    return path


@pytest.mark.parametrize("strand", ["fwd", "both"])
def test_given_windows_have_the_scores_of_the_same_windows_of_a_genome(table, tiny_model, strand):
    words = {"window": WINDOW, "strand": strand}
    of_genome = list(score_variants(table, table.with_name("one.fa"), tiny_model, **words))
    alone = list(score_variants(table, None, tiny_model, strand=strand))
    assert len(alone) == len(table.read_text().splitlines()) - 1
    for one, other in zip(of_genome, alone, strict=True):
        assert (one["chrom"], one["pos"]) == (other["chrom"], other["pos"])
        for field in ("EVO2_DELTA", "EVO2_REF", "EVO2_ALT", "EVO2_FWD", "EVO2_RC"):
            assert other[field] == pytest.approx(one[field], abs=3e-6)


def test_the_next_base_of_given_windows_is_that_of_a_genome(table, tiny_model):
    words = {"strand": "fwd", "score": "next-base"}
    # A centred window has half its length before the variant; here that is the whole context.
    genome = table.with_name("one.fa")
    of_genome = score_variants(table, genome, tiny_model, window=WINDOW // 2 + 1, **words)
    alone = score_variants(table, None, tiny_model, **words)
    compared = 0
    for one, other in zip(of_genome, alone, strict=True):
        if one["EVO2_STATUS"] == "OK" and WINDOW // 2 < one["pos"] < len(CONTIG) - WINDOW // 2:
            assert other["EVO2_DELTA"] == pytest.approx(one["EVO2_DELTA"], abs=3e-6)
            compared += 1
    assert compared


def test_the_command_needs_no_genome_and_copies_the_columns(table, checkpoint):
    output = table.with_name("out.jsonl")
    words = {"inputs": (table,), "model": checkpoint, "device": "cpu", "output": output}
    score(ScoreOptions(**words))
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert all(row["EVO2_STATUS"] == "OK" and row["class"] == "LOF" for row in rows)
    for flags, told in (
        ({"window": 64}, "--window"),
        ({"windows": "anchored"}, "--windows"),
        ({"background": table.with_name("null.jsonl")}, "--background"),
    ):
        with pytest.raises(UserError, match=f"^{told}: only with a genome"):
            score(ScoreOptions(**words, **flags))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('1,5,A,"C,G",ACGT,ACGC', "line 2: alt 'C,G': var_seq is of one allele"),
        ("1,5,A,C,AC-T,ACGC", "line 2: ref_seq is not a sequence of DNA"),
        ("1,5,A,C,ACT,", "line 2: var_seq is not a sequence of DNA"),
    ],
)
def test_invalid_pairs_are_refused_in_one_line(tmp_path, checkpoint, row, message):
    path = tmp_path / "x.csv"
    path.write_text(f"chrom,pos,ref,alt,ref_seq,var_seq\n{row}\n")
    with pytest.raises(UserError, match=message):
        score(ScoreOptions(inputs=(path,), model=checkpoint, device="cpu"))
