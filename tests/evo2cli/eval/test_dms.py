"""`evo2 eval dms`: deltas of codons by a forward pass, and correlations by their definitions."""

import json
import math
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest
import torch

from evo2cli.errors import UserError
from evo2cli.eval.dms import MutantScorer, dms_page, evaluate_dms
from evo2cli.eval.draws import draw_bases
from evo2cli.eval.options import DMSOptions
from evo2cli.genome.alphabet import reverse_complement
from evo2cli.genome.coding import AMINO_ACIDS, CODONS
from stripedhyena2 import StripedHyena2
from stripedhyena2.errors import NonFiniteError
from tests.evo2cli.eval.test_eval import opener

CDS = draw_bases(90, "coding")
PROTEIN = "".join(AMINO_ACIDS[CDS[at : at + 3]] for at in range(0, 90, 3))


def logprob(model: StripedHyena2, bases: bytes) -> float:
    """Of all bases but the first, in nats."""
    ids = torch.tensor([list(bases)])
    with torch.no_grad():
        logits = model(ids)[0, :-1]
    return -torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum").item()


def mutants() -> list[str]:
    """Single and double changes, not in the order of their sites."""
    draw = np.random.default_rng(0)
    found = []
    for number in range(24):
        sites = draw.choice(30, size=1 + (number % 4 == 0), replace=False)
        letters = [(site, draw.choice([a for a in "ADEFHIKM*" if a != PROTEIN[site]]))
                   for site in sites]  # fmt: skip
        found.append(":".join(f"{PROTEIN[site]}{site + 1}{new}" for site, new in letters))
    return found


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "scan.csv"
    (tmp_path / "cds.fa").write_bytes(b">gene\n" + CDS.lower() + b"\n")
    draw = np.random.default_rng(1)
    lines = ["mutant,mutated_sequence,DMS_score,DMS_score_bin"]
    for index, mutant in enumerate(mutants()):
        score = "" if index == 5 else round(float(draw.normal()), 1)
        lines.append(f"{mutant},MK,{score},{'' if index == 5 else int(score > 0)}")
    path.write_text("\n".join(lines) + "\n")
    return path


def evaluate(model: StripedHyena2, table: Path, **words: Any) -> dict[str, Any]:
    words = {"cds": table.with_name("cds.fa")} | words
    return evaluate_dms(DMSOptions(source=table, **words), opener(model))


def edits(mutant: str, choice: str) -> list[bytes]:
    """The coding sequences with a mutant, by plain replacement."""
    found = [CDS]
    for change in mutant.split(":"):
        at = 3 * (int(change[1:-1]) - 1)
        others = [codon for codon in CODONS[change[-1]] if codon != CDS[at : at + 3]]
        if choice == "nearest":
            far = {o: sum(a != b for a, b in zip(o, CDS[at:], strict=False)) for o in others}
            others = [o for o in others if far[o] == min(far.values())][:1]
        found = [bases[:at] + other + bases[at + 3 :] for bases in found for other in others]
    return found


def ranks(values: list[float]) -> list[float]:
    """1 plus the number that is lower, ties sharing their mean."""
    return [
        1 + sum(other < value for other in values) + (values.count(value) - 1) / 2
        for value in values
    ]


@pytest.mark.parametrize(("choice", "strand"), [("nearest", "fwd"), ("all", "both")])
def test_scores_and_correlations_are_those_of_the_logits(
    tiny_model: StripedHyena2, table: Path, choice: str, strand: str
) -> None:
    scored = table.with_name("scored.tsv")
    result = evaluate(tiny_model, table, codons=choice, strand=strand, scored=scored)
    reads = [bytes] if strand == "fwd" else [bytes, reverse_complement]
    wild = [logprob(tiny_model, read(CDS)) for read in reads]
    header, *lines = (line.split("\t") for line in scored.read_text().splitlines())
    assert header == ["mutant", "mutated_sequence", "DMS_score", "DMS_score_bin", "EVO2_DELTA"]
    deltas = []
    for mutant, line in zip(mutants(), lines, strict=True):
        assert line[0] == mutant
        expected = fmean(
            fmean(logprob(tiny_model, read(edit)) - own for edit in edits(mutant, choice))
            for read, own in zip(reads, wild, strict=True)
        )
        deltas.append(float(line[-1]))
        assert deltas[-1] == pytest.approx(expected, abs=1e-6)
    assert (result["left_out"], result["unscored"]) == (1, 0)
    rows = {row["group"]: row for row in result["rows"]}
    assert list(rows) == ["all", "1 change", "2 changes"]
    for group, row in rows.items():
        own = [
            (float(line[2]), delta)
            for line, delta in zip(lines, deltas, strict=True)
            if line[2] and group in ("all", "2 changes" if ":" in line[0] else "1 change")
        ]
        assert row["variants"] == len(own)
        one, other = (ranks([pair[side] for pair in own]) for side in (0, 1))
        assert row["spearman"] == pytest.approx(np.corrcoef(one, other)[0, 1], abs=1e-6)
        assert row["spearman_low"] <= row["spearman"] <= row["spearman_high"]
        fit, unfit = ([d for s, d in own if (s > 0) == side] for side in (True, False))
        assert (row["positive"], row["negative"]) == (len(fit), len(unfit))
        if min(len(fit), len(unfit)) < 5:
            assert row["auroc"] is None
            continue
        wins = sum((a > b) + (a == b) / 2 for a in fit for b in unfit)
        assert row["auroc"] == pytest.approx(wins / len(fit) / len(unfit), abs=1e-6)
    assert dms_page(result)


def test_a_scored_table_is_not_scored_again(
    tiny_model: StripedHyena2, table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scored = table.with_name("scored.tsv")
    rows = evaluate(tiny_model, table, scored=scored)["rows"]
    again = evaluate_dms(DMSOptions(source=scored), opener())
    assert "nothing is scored" in capsys.readouterr().err
    assert again["rows"] == rows
    assert again["model"] is None


@pytest.mark.parametrize("strand", ["+", "-"])
def test_in_a_genome_windows_are_read_as_the_gene_is(
    tiny_model: StripedHyena2, table: Path, strand: str
) -> None:
    """The gene lies in one piece in the middle of a contig, so its windows are easy to cut."""
    left, right = draw_bases(200, "left"), draw_bases(200, "right")
    gene = left + CDS + right
    contig = gene if strand == "+" else reverse_complement(gene)
    genome, gff = table.with_name("g.fa"), table.with_name("g.gff3")
    genome.write_bytes(b">c\n" + contig + b"\n")
    gff.write_text(f"c\t.\tCDS\t201\t290\t.\t{strand}\t0\tID=x\n")
    lines = [line for line in table.read_text().splitlines() if ":" not in line]
    table.write_text("\n".join(lines) + "\n")
    scored = table.with_name("scored.tsv")
    evaluate(tiny_model, table, cds=gff, reference=genome, window=60, scored=scored)
    for line in scored.read_text().splitlines()[1:]:
        mutant, *_, delta = line.split("\t")
        [edit] = edits(mutant, "nearest")
        at = 200 + 3 * (int(mutant[1:-1]) - 1)
        # Half a window before the codon on the forward strand of the genome.
        start = at - 30 if strand == "+" else at + 3 - 30
        plain, changed = gene[start : start + 60], (left + edit + right)[start : start + 60]
        expected = logprob(tiny_model, changed) - logprob(tiny_model, plain)
        assert float(delta) == pytest.approx(expected, abs=1e-6)


def test_codons_far_apart_have_no_score(tiny_model: StripedHyena2, table: Path) -> None:
    genome, gff = table.with_name("g.fa"), table.with_name("g.gff3")
    genome.write_bytes(b">c\n" + CDS + b"\n")
    gff.write_text("c\t.\tCDS\t1\t90\t.\t+\t0\tID=x\n")
    result = evaluate(tiny_model, table, cds=gff, reference=genome, window=16)
    far = [
        mutant
        for mutant in mutants()
        if ":" in mutant
        and abs(int(mutant.split(":")[0][1:-1]) - int(mutant.split(":")[1][1:-1])) > 1
    ]
    assert result["unscored"] == len(far) > 0


def test_a_killed_run_resumes_with_the_same_bytes(
    tiny_model: StripedHyena2, table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, output = table.with_name("whole.tsv"), table.with_name("x.tsv")
    evaluate(tiny_model, table, scored=whole)
    mean, calls = MutantScorer._mean, []

    def watched(self: MutantScorer, pairs: Any, name: str) -> float:
        calls.append(name)
        if len(calls) == 10:
            raise KeyboardInterrupt
        return mean(self, pairs, name)

    monkeypatch.setattr(MutantScorer, "_mean", watched)
    with pytest.raises(KeyboardInterrupt):
        evaluate(tiny_model, table, scored=output)
    assert not output.exists()
    evaluate(tiny_model, table, scored=output)
    assert output.read_bytes() == whole.read_bytes()
    assert len(calls) == 25
    assert [file.name for file in table.parent.glob("x.tsv*")] == ["x.tsv"]


def test_no_variant_depends_on_others(tiny_model: StripedHyena2, table: Path) -> None:
    model = StripedHyena2(tiny_model.config).eval()  # fp32, where another order would show
    model.load_state_dict(tiny_model.state_dict())
    scored = table.with_name("scored.tsv")
    evaluate(model, table, scored=scored)
    whole = scored.read_text().splitlines()
    header, *lines = table.read_text().splitlines()
    table.write_text("\n".join([header, *lines[:4:-2]]) + "\n")
    evaluate(model, table, scored=scored)
    assert scored.read_text().splitlines()[1:] == whole[1:][:4:-2]


def test_the_command_shows_what_it_writes(table: Path, checkpoint: str, command_line) -> None:
    output = table.with_name("x.json")
    code, page, _ = command_line(
        *("eval", "dms", str(table), "--cds", str(table.with_name("cds.fa"))),
        *("--model", checkpoint, "-O", str(output)),
    )
    assert code == 0
    row = json.loads(output.read_text())["rows"][0]
    assert f"{row['spearman']:.3f}" in page
    assert "left out, without a measurement: 1" in page


def test_what_is_not_a_number_is_not_counted(tiny_model: StripedHyena2, table: Path) -> None:
    model = StripedHyena2(tiny_model.config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(math.nan)
    with pytest.raises(NonFiniteError, match="the log-likelihood is nan"):
        evaluate(model, table)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("A1B,,1,1", "line 2: mutant 'A1B' is not a change of amino acids"),
        ("{wild}31A,,1,1", "mutant .*31A: .*cds.fa: gene has 30 codons"),
        ("{other}1A,,1,1", "codon 1 of .*cds.fa: gene is .*, not {other}; is this its coding"),
        ("{wild}1A,,high,1", "line 2: DMS_score 'high' is not a number"),
        ("{wild}1A,,inf,1", "line 2: DMS_score inf is not a finite number"),
        ("{wild}1A,,-1e308,1", "line 2: DMS_score -1e[+]308 is not a finite number of at most"),
        ("{wild}1A,,1,2", "line 2: DMS_score_bin '2' is not a label"),
        ("{wild}1A,,,", "no variant has both a measurement and a delta"),
        ("", "has no variants"),
    ],
)
def test_a_bad_row_is_one_line(
    tiny_model: StripedHyena2, table: Path, line: str, message: str
) -> None:
    letters = {"wild": PROTEIN[0], "other": "W" if PROTEIN[0] != "W" else "Y"}
    header = table.read_text().splitlines()[0]
    table.write_text(f"{header}\n{line.format(**letters)}\n")
    with pytest.raises(UserError, match=message.format(**letters)) as error:
        evaluate(tiny_model, table)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"cds": None}, "has no EVO2_DELTA; give the coding sequence with --cds"),
        ({"mutant": "hgvs"}, "has no column 'hgvs'; its columns: mutant, .* name it by --mutant"),
        ({"measured": "y"}, "has no column 'y'; .* name it by --measured"),
        ({"label": "y"}, "has no column 'y'; .* name it by --label"),
        ({"window": 100}, "--window 100: needs --reference"),
        ({"codons": "best"}, "--codons best: must be one of nearest, all"),
        ({"scored": Path("x.vcf")}, "--scored x.vcf: needs the suffix .tsv"),
        ({"scored": Path("x.tsv"), "output": Path("x.tsv")}, "is also --output"),
        ({"cds_name": "other"}, "has no coding sequence named 'other'"),
    ],
)
def test_what_cannot_be_is_one_line(
    tiny_model: StripedHyena2, table: Path, words: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        evaluate(tiny_model, table, **words)


def test_a_scored_table_never_replaces_its_input(tiny_model: StripedHyena2, table: Path) -> None:
    source = table.rename(table.with_suffix(".tsv"))
    with pytest.raises(UserError, match=r"^--scored .*: would overwrite"):
        evaluate(tiny_model, source, scored=source)


def test_too_many_codons_are_told(tiny_model: StripedHyena2, table: Path) -> None:
    sites = [site for site in range(30) if PROTEIN[site] not in "LRS"][:4]
    mutant = ":".join(f"{PROTEIN[site]}{site + 1}L" for site in sites)
    table.write_text(f"mutant,DMS_score\n{mutant},1\n")
    with pytest.raises(UserError, match=r"has 1,296 combinations of codons, more than 256; use"):
        evaluate(tiny_model, table, codons="all")
    assert evaluate(tiny_model, table)["rows"][0]["spearman"] is None
