"""`evo2 eval variants`: labels mean what is said, and groups are what they say."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from evo2cli.app import app
from evo2cli.errors import UserError
from evo2cli.eval.labels import Preset
from evo2cli.eval.options import VariantsOptions
from evo2cli.eval.variants import evaluate_variants, variants_page
from evo2cli.genome.htslib import write_bcf
from stripedhyena2 import save

HEADER = """##fileformat=VCFv4.2
##evo2Model=SMLA, 1 parameters, float32, fingerprint 0123456789ab
##INFO=<ID=CLASS,Number=A,Type=String,Description="Functional class: FUNC, INT or LOF">
##INFO=<ID=CLNSIG,Number=.,Type=String,Description="Aggregate classification">
##INFO=<ID=CSQ,Number=A,Type=String,Description="Consequence">
##INFO=<ID=EVO2_DELTA,Number=A,Type=Float,Description="delta">
##INFO=<ID=EVO2_STATUS,Number=A,Type=String,Description="status">
#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO
"""


def write(path: Path, *records: str) -> Path:
    path.write_text(HEADER + "".join(f"c\t{line}\n" for line in records))
    return path


def evaluate(source: Path, preset: str | None = "brca1", **options: Any) -> dict[str, Any]:
    return evaluate_variants(VariantsOptions(source=source, preset=preset, **options))


@pytest.fixture
def scored(tmp_path: Path) -> Path:
    """200 SNVs of three consequences, LOF a little lower than the others."""
    draw = np.random.default_rng(1)
    lines = []
    for index in range(200):
        label = draw.choice(["LOF", "FUNC", "INT"])
        effect = draw.choice(["Missense", "Nonsense", "Intronic"])
        delta = round(draw.normal(-1 if label == "LOF" else 0), 1)
        info = f"CLASS={label};CSQ={effect};EVO2_DELTA={delta};EVO2_STATUS=OK"
        lines.append(f"{index + 1}\t.\tA\tC\t.\t.\t{info}")
    return write(tmp_path / "scored.vcf", *lines)


def by_group(result: dict) -> dict:
    return {row["group"]: row for row in result["rows"]}


# --- labels


@pytest.mark.parametrize(
    ("value", "meaning"),
    [
        ("Pathogenic", True),
        ("Pathogenic/Likely_pathogenic", True),
        ("Likely_pathogenic,_low_penetrance", True),
        ("Pathogenic|drug_response", True),
        ("likely_benign", False),
        ("Benign/Likely_benign|other", False),
        ("Conflicting_classifications_of_pathogenicity", None),
        ("Conflicting_interpretations_of_pathogenicity|risk_factor", None),
        ("Uncertain_significance", None),
        ("Benign|Pathogenic", None),
        (None, None),
    ],
)
def test_what_clinvar_says(value: str | None, meaning: bool | None) -> None:
    assert Preset.CLINVAR.labels.classify(value) is meaning


def test_clinvar_leaves_out_and_counts_what_is_neither(tmp_path: Path) -> None:
    lines = [
        f"{index + 1}\t.\tA\tC\t.\t.\tCLNSIG={value};EVO2_DELTA={delta}"
        for index, (value, delta) in enumerate(
            [("Pathogenic", -2), ("Likely_pathogenic", -1)] * 3
            + [("Benign", 1), ("Likely_benign", 2), ("Uncertain_significance", -9)] * 3
            + [("Conflicting_classifications_of_pathogenicity", -9)]
        )
    ]
    lines += ["90\t.\tA\t<DEL>\t.\t.\tCLNSIG=Benign;EVO2_DELTA=.;EVO2_STATUS=SYMBOLIC"]
    lines += ["91\t.\tA\tC\t.\t.\tEVO2_DELTA=-9"]
    result = evaluate(write(tmp_path / "v.vcf", *lines), "clinvar")
    [row] = result["rows"]
    assert (row["num_positive"], row["num_negative"], row["auroc"], row["auprc"]) == (6, 6, 1, 1)
    assert result["left_out"] == {
        "Uncertain_significance": 3,
        "Conflicting_classifications_of_pathogenicity": 1,
        "no label": 1,
    }
    assert result["unscored"] == {"SYMBOLIC": 1}


def test_alleles_of_one_record_have_their_own_label_delta_and_class(tmp_path: Path) -> None:
    line = "{}\t.\tA\tC,AT\t.\t.\tCLASS=LOF,FUNC;EVO2_DELTA=-1,2;CSQ=Missense,Frameshift"
    source = write(tmp_path / "v.vcf", *(line.format(index) for index in range(1, 7)))
    groups = by_group(evaluate(source))
    assert groups["all"]["auroc"] == 1
    assert (groups["SNV"]["num_positive"], groups["SNV"]["num_negative"]) == (6, 0)
    assert (groups["insertion"]["num_positive"], groups["insertion"]["num_negative"]) == (0, 6)
    assert groups["Missense"]["num_positive"] == 6
    assert groups["insertion"]["auroc"] is None
    assert "coding" not in groups  # all of them are


def test_values_can_be_said(scored: Path) -> None:
    result = evaluate(scored, positive="func", negative="INT,LOF")
    groups = by_group(result)
    assert result["positive"] == ["func"]
    assert groups["all"]["num_positive"] < groups["all"]["num_negative"]
    [turned] = [row for row in evaluate(scored, negative="FUNC")["rows"] if row["kind"] == "all"]
    assert turned["num_negative"] == groups["all"]["num_positive"]


def test_a_preset_is_a_name_for_its_labels(scored: Path) -> None:
    said = evaluate(scored, preset=None, label="CLASS", positive="LOF", negative="FUNC,INT")
    named = evaluate(scored)
    assert (said.pop("preset"), named.pop("preset")) == (None, "brca1")
    assert said == named


# --- groups


def test_groups_divide_the_whole_and_do_not_depend_on_it(scored: Path, tmp_path: Path) -> None:
    groups = by_group(evaluate(scored))
    for names in (("Missense", "Nonsense", "Intronic"), ("coding", "noncoding")):
        for count in ("num_positive", "num_negative"):
            assert sum(groups[name][count] for name in names) == groups["all"][count]
    assert groups["noncoding"]["auroc"] == groups["Intronic"]["auroc"]
    lines = scored.read_text().splitlines(keepends=True)
    fewer = tmp_path / "fewer.vcf"
    fewer.write_text("".join(line for line in lines if "CSQ=Nonsense" not in line))
    assert by_group(evaluate(fewer))["Missense"] == groups["Missense"]


def test_order_changes_nothing_and_seeds_only_intervals(scored: Path, tmp_path: Path) -> None:
    *header, first, second = scored.read_text().rpartition("INFO\n")
    body = second.splitlines(keepends=True)
    other = tmp_path / "other.vcf"
    other.write_text("".join([*header, first, *reversed(body)]))
    rows = evaluate(scored)["rows"]
    assert evaluate(other)["rows"] == rows
    reseeded = evaluate(scored, seed=1)["rows"]
    assert reseeded != rows
    assert [row["auroc"] for row in reseeded] == [row["auroc"] for row in rows]


def test_groups_by_columns_are_those_of_their_rows(tmp_path: Path) -> None:
    """A table as ClinVar's is given by others, with a label, a region and a type of variant."""
    draw = np.random.default_rng(3)
    lines, found = ["chrom\tpos\tref\talt\tlabel\tregion\tvariant_type\tEVO2_DELTA"], []
    for at in range(1, 241):
        label, region = draw.choice(["1", "0"]), draw.choice(["exon", "intron", "utr", ""])
        kind, delta = draw.choice(["SNV", "indel"]), round(float(draw.normal()), 1)
        found.append((label == "1", str(region), str(kind), delta))
        alternate = "C" if kind == "SNV" else "AG"
        lines.append(f"c\t{at}\tA\t{alternate}\t{label}\t{region}\t{kind}\t{delta}")
    table = tmp_path / "clinvar.tsv"
    table.write_text("\n".join(lines) + "\n")
    asked = {"preset": None, "label": "label", "positive": "1", "negative": "0"}
    result = evaluate(table, by="region,variant_type", **asked)
    rows = {(row["kind"], row["group"]): row for row in result["rows"]}
    wanted = {("region", name) for name in ("exon", "intron", "utr")}
    wanted |= {("variant_type", name) for name in ("SNV", "indel")}
    wanted |= {("class", name) for name in ("SNV", "insertion")}
    assert set(rows) == wanted | {("all", "all")}
    for (kind, name), row in rows.items():
        at = {"region": 1, "variant_type": 2}.get(kind)
        own = [one for one in found if at is None or one[at] == name]
        if kind == "class":
            own = [one for one in found if (one[2] == "SNV") == (name == "SNV")]
        harmful = [-delta for is_harmful, *_, delta in own if is_harmful]
        harmless = [-delta for is_harmful, *_, delta in own if not is_harmful]
        assert (row["num_positive"], row["num_negative"]) == (len(harmful), len(harmless))
        wins = sum((a > b) + (a == b) / 2 for a in harmful for b in harmless)
        assert row["auroc"] == pytest.approx(wins / len(harmful) / len(harmless), abs=1e-6)
        assert row["auroc_low"] <= row["auroc"] <= row["auroc_high"]
        assert row["auprc_low"] < row["auprc_high"]
    assert "by variant_type" in shown(result)
    assert [row["kind"] for row in evaluate(table, **asked)["rows"]] == ["all", "class", "class"]


def shown(result: dict[str, Any]) -> str:
    console = Console(width=200)
    with console.capture() as captured:
        console.print(variants_page(result))
    return captured.get()


# --- the command


def test_a_vcf_without_deltas_is_scored_first(tiny_model, tmp_path: Path, capsys) -> None:
    save(tiny_model, tmp_path / "tiny", {})
    genome = "".join(np.random.default_rng(0).choice(list("ACGT"), 400))
    (tmp_path / "g.fa").write_text(f">c\n{genome}\n")
    lines = [
        f"{position}\t.\t{genome[position - 1]}\t{'A' if genome[position - 1] != 'A' else 'C'}"
        f"\t.\t.\tCLASS={'LOF' if position % 2 else 'FUNC'}"
        for position in range(100, 112)
    ]
    plain = tmp_path / "plain.vcf"
    plain.write_text(
        "##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"
        + "".join(f"c\t{line}\n" for line in lines)
    )
    kept = tmp_path / "kept.vcf"
    result = evaluate(
        plain,
        model=str(tmp_path / "tiny"),
        reference=tmp_path / "g.fa",
        window=64,
        scored=kept,
        device="cpu",
    )
    assert "fingerprint" in result["model"]
    again = evaluate(kept)
    assert "nothing is scored" in capsys.readouterr().err
    assert again["rows"] == result["rows"]
    assert again["model"] == result["model"]


@pytest.mark.parametrize("suffix", [".vcf", ".tsv", ".csv"])
def test_a_table_is_evaluated_as_its_vcf(tiny_model, tmp_path: Path, capsys, suffix: str) -> None:
    save(tiny_model, tmp_path / "tiny", {})
    genome = "".join(np.random.default_rng(0).choice(list("ACGT"), 400))
    (tmp_path / "g.fa").write_text(f">c\n{genome}\n")
    variants = [
        (at, genome[at - 1], "A" if genome[at - 1] != "A" else "C", "LOF" if at % 2 else "FUNC")
        for at in range(100, 112)
    ]
    vcf, table = tmp_path / "x.vcf", tmp_path / f"table{suffix}"
    vcf.write_text(
        "##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"
        + "".join(f"c\t{p}\t.\t{r}\t{a}\t.\t.\tCLASS={k}\n" for p, r, a, k in variants)
    )
    separator = "," if suffix == ".csv" else "\t"
    rows = [("chrom", "pos", "ref", "alt", "CLASS"), *(("c", p - 1, *v) for p, *v in variants)]
    table.write_text("".join(separator.join(map(str, row)) + "\n" for row in rows))
    asked = {
        "model": str(tmp_path / "tiny"),
        "reference": tmp_path / "g.fa",
        "window": 64,
        "device": "cpu",
    }
    expected = evaluate(vcf, **asked)["rows"]
    if suffix == ".vcf":
        bcf = tmp_path / "x.bcf"
        write_bcf(vcf, bcf)
        assert evaluate(bcf, **asked)["rows"] == expected
        return
    kept = tmp_path / "kept.tsv"
    assert evaluate(table, shift=1, scored=kept, **asked)["rows"] == expected
    capsys.readouterr()
    assert evaluate(kept)["rows"] == expected
    assert "nothing is scored" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"no record has CLS in the table, which holds CLASS"):
        evaluate(table, label="CLS", shift=1)
    with pytest.raises(UserError, match=r"--scored .*needs the suffix \.tsv or \.tsv\.gz"):
        evaluate(table, shift=1, scored=tmp_path / "x.vcf")


def test_the_command_writes_a_page_json_tables_and_a_figure(scored: Path, tmp_path: Path) -> None:
    table, document, figure = (tmp_path / f"x.{suffix}" for suffix in ("tsv", "json", "png"))
    arguments = ["eval", "variants", str(scored), "--preset", "brca1", "--plot", str(figure)]
    page = CliRunner().invoke(app, [*arguments, "-O", str(table)])
    assert page.exit_code == 0, page.output
    assert "CLASS LOF (positive) against FUNC, INT" in page.stdout
    assert figure.read_bytes().startswith(b"\x89PNG")
    shown = CliRunner().invoke(app, [*arguments, "--json", "-O", str(document)])
    result = json.loads(shown.stdout)
    assert json.loads(document.read_text()) == result
    lines = [line.split("\t") for line in table.read_text().splitlines()]
    assert lines[0] == list(result["rows"][0])
    assert len(lines) == 1 + len(result["rows"])
    assert f"{result['rows'][0]['auroc']:.3f}" in page.stdout


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label": "CLS"}, "no record has CLS in INFO, which holds CLASS, CSQ, EVO2_DELTA"),
        (
            {"positive": "Loss"},
            "no allele is positive (Loss); the values of CLASS are INT (73), LOF (67)",
        ),
        ({"negative": "Func"}, None),
        ({"negative": "lof"}, "--positive and --negative both contain lof"),
        ({"consequence": "MC"}, "no record has MC in INFO, which holds CLASS, CSQ,"),
        ({"by": "CSQ,region"}, "EVO2_STATUS; choose another with --by"),
        ({"preset": "brca2"}, "--preset brca2: must be one of brca1, clinvar"),
        (
            {"preset": None},
            "give --preset brca1 or --preset clinvar, or all of --label, --positive",
        ),
        (
            {"preset": None, "label": "CLASS", "positive": "LOF"},
            "which variants are harmful is not defined",
        ),
        ({"window": 1}, "--window 1: must be at least 2"),
        ({"output": Path("x.csv")}, "--output x.csv: needs the suffix .tsv or .json"),
        ({"seed": -1}, "--seed -1: must be at least 0"),
    ],
)
def test_what_cannot_be_is_one_line(scored: Path, changes: dict, message: str | None) -> None:
    if message is None:
        evaluate(scored, **changes)
        return
    with pytest.raises(UserError) as error:
        evaluate(scored, **changes)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("preset", ["brca1", "clinvar"])
def test_a_preset_is_no_longer_a_command(
    preset: str, command_line: Callable[..., tuple[int, str, str]]
) -> None:
    code, data, talk = command_line("eval", preset, "v.vcf", "--window", "512")
    assert (code, data) == (2, "")
    assert talk.endswith(f"; run evo2 eval variants v.vcf --window 512 --preset {preset}\n")


@pytest.mark.parametrize("delta", ["nan", "-inf", "abc"])
def test_a_delta_that_is_no_number_is_none(tmp_path: Path, delta: str) -> None:
    lines = [
        f"{place}\t.\tA\tC\t.\t.\tCLASS={label};EVO2_DELTA={value}"
        for place, label, value in ((1, "LOF", delta), (2, "FUNC", "0.5"))
    ]
    with pytest.raises(UserError, match=f"c:1: EVO2_DELTA={delta} is not a finite number"):
        evaluate(write(tmp_path / "scored.vcf", *lines))


def test_a_kept_vcf_is_called_one(scored: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--scored .*needs the suffix \.vcf or \.vcf\.gz"):
        evaluate(scored, scored=tmp_path / "x.tsv")


def test_without_matplotlib_there_is_no_figure(
    scored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UserError, match=r"--plot needs matplotlib"):
        evaluate(scored, plot=tmp_path / "x.png")


def test_what_is_told_apart_makes_no_groups(scored: Path) -> None:
    """The label may stand in a key of consequences; that then says nothing more."""
    result = evaluate(scored, label="CSQ", positive="Nonsense", negative="Missense")
    assert result["consequence"] is None
    assert [row["kind"] for row in result["rows"]] == ["all"]
