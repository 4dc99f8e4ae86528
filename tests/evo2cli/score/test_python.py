"""`score_variants` and `score_sequences` give the rows that the command writes."""

import json
from pathlib import Path

import pytest

from evo2cli.errors import UserError
from evo2cli.genome.fasta import read_records
from evo2cli.genome.reference import Reference
from evo2cli.genome.vcf import read_vcf
from evo2cli.score import score_sequences, score_variants
from evo2cli.score.options import ScoreOptions
from evo2cli.score.run import score
from stripedhyena2 import StripedHyena2
from tests.evo2cli.score.test_windows import letters, variants, write

GENOME = letters(400)


def written(checkpoint: str, source: Path, **options) -> list[dict]:
    output = source.with_name("out.jsonl")
    score(ScoreOptions(inputs=(source,), model=checkpoint, device="cpu", output=output, **options))
    return [json.loads(line) for line in output.read_text().splitlines()]


def test_rows_of_variants_are_those_of_the_command(
    tmp_path: Path, checkpoint: str, model: StripedHyena2, capsys
) -> None:
    unsorted = [(9, GENOME[9], "<DEL>"), *variants(GENOME, 6)[::-1]]
    source, fasta = write(tmp_path, GENOME, unsorted), tmp_path / "one.fa"
    expected = written(checkpoint, source, reference=fasta, window=64, score="all")
    capsys.readouterr()
    assert list(score_variants(source, fasta, checkpoint, device="cpu", window=64)) == expected
    with Reference.open(fasta) as genome:
        records = read_vcf(source).records
        assert list(score_variants(records, genome, model, window=64)) == expected
        named = f"one-{unsorted[1][0] + 1}-{unsorted[1][1]}-{unsorted[1][2]}"
        [row] = score_variants([named], genome, model, window=64, strand="fwd")
    assert row["EVO2_DELTA"] == row["EVO2_FWD"] == expected[1]["EVO2_FWD"]
    assert row["EVO2_RC"] is None
    told = capsys.readouterr()
    assert told.out + told.err == ""


def test_rows_of_sequences_are_those_of_the_command(
    tmp_path: Path, checkpoint: str, model: StripedHyena2, capsys
) -> None:
    source = tmp_path / "some.fa"
    source.write_text(f">a\n{GENOME[:90].lower()}\n>b\nA\n>c\n{GENOME[50:70]}\n")
    expected = written(checkpoint, source, strand="both")
    capsys.readouterr()
    pairs = [("a", GENOME[:90]), ("b", b"A"), ("c", GENOME[50:70])]
    for sequences in (source, read_records(source), pairs):
        assert list(score_sequences(sequences, model, strand="both")) == expected
    told = capsys.readouterr()
    assert told.out + told.err == ""


def test_errors_are_one_line_value_errors(tmp_path: Path, model: StripedHyena2) -> None:
    (tmp_path / "one.fa").write_text(f">one\n{GENOME}\n")
    fasta = tmp_path / "one.fa"
    for words, message in (
        ({"strand": "forward"}, "^strand forward: must be one of fwd, rc, both"),
        ({"windows": "middle"}, "^windows middle: must be one of centred, anchored"),
        ({"window": 1}, "^window 1: must be at least 2"),
        ({"after": 5, "windows": "anchored"}, "^after 5: cannot be .* with windows anchored"),
    ):
        with pytest.raises(ValueError, match=message):
            score_variants(["one-5-A-C"], fasta, model, **words)
    wrong = "C" if GENOME[4] != "C" else "G"
    for words, message in (  # while rows are read
        (
            {"on_ref_mismatch": "error"},
            "right build. on_ref_mismatch skip leaves such records without a",
        ),
        ({"after": 8191}, "^after 8191: leaves no base"),
    ):
        rows = score_variants([f"one-5-{wrong}-T"], fasta, model, **words)
        with pytest.raises(UserError, match=message):
            next(rows)
    for words, message in (  # also of a model that is not loaded yet
        ({"device": "tpu:0"}, "^device tpu:0: not available"),
        ({"dtype": "int4"}, "^dtype int4: must be one of auto, fp8"),
    ):
        with pytest.raises(UserError, match=message):
            next(score_variants(["one-5-A-C"], fasta, "nano", **words))
    with pytest.raises(UserError, match=r"variant 1: is tuple; give text such as"):
        list(score_variants(["one-5-A-C", ("one", 5, "A", "C")], fasta, model))  # type: ignore[list-item]
    with pytest.raises(UserError, match=r"one:5 A>C: needs a genome; give its FASTA file"):
        list(score_variants(["one-5-A-C"], None, model))
    with pytest.raises(UserError, match=r"^strand forward: must be one of fwd, rc, both"):
        score_sequences([], model, strand="forward")
    with pytest.raises(UserError, match=r"^tag ACGT: not a lineage"):
        score_sequences([], model, tag="ACGT")
    with pytest.raises(UserError, match="record 'a': '!' at position 2"):
        list(score_sequences([("a", "A!")], model))
    with pytest.raises(UserError, match=r"none\.fa: cannot be read"):
        score_variants(["one-5-A-C"], "none.fa", model)
