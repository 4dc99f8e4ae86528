"""`evo2 info`: says what a thing is, in text and as JSON, or why it is none."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from evo2cli.app import app
from evo2cli.errors import UserError
from evo2cli.finetune.folder import Description, write_facts
from evo2cli.finetune.tasks import Labels, Task
from evo2cli.info import describe
from evo2cli.tokenize.options import TokenizeOptions
from evo2cli.tokenize.run import tokenize_files
from stripedhyena2 import InputError, ModelConfig, StripedHyena2, save
from stripedhyena2.checkpoint import precision

ROOT = Path(__file__).parents[2]


def info(*arguments: str) -> Any:
    result = CliRunner().invoke(app, ["info", *arguments, "--json"])
    if result.exception:
        raise result.exception
    return json.loads(result.stdout)


def test_a_model(tiny_model: StripedHyena2, tiny_config: ModelConfig, tmp_path: Path) -> None:
    save(tiny_model, tmp_path / "model", {"license": "mine"})
    found = info(str(tmp_path / "model"))
    assert found["stripes"] == tiny_config.stripes
    assert found["parameters"] == sum(p.numel() for p in tiny_model.parameters())
    assert found["provenance"] == {"license": "mine"}


def test_a_fine_tuning_run(tmp_path: Path) -> None:
    labels = Labels(Task.CLASSIFY, ("high", "low"))
    description = Description(labels, method="head", base="nano", base_fingerprint="f", length=41)
    (tmp_path / "run" / "final").mkdir(parents=True)
    write_facts(tmp_path / "run" / "final" / "finetune.json", description.facts)
    for folder in ("run", "run/final"):
        found = info(str(tmp_path / folder))
        assert (found["kind"], found["task"]) == ("fine-tuned model", "classify")
        assert (found["classes"], found["base"]) == (["high", "low"], "nano")


def test_a_scored_vcf_says_what_scored_it(tmp_path: Path) -> None:
    text = (ROOT / "examples" / "phix174.vcf").read_text()
    line = '##evo2Command=evo2 score\n##INFO=<ID=EVO2_DELTA,Number=A,Type=Float,Description="">\n'
    scored = text.replace("#CHROM", f"{line}#CHROM").replace("GENE=", "EVO2_DELTA=1;GENE=")
    (tmp_path / "scored.vcf").write_text(scored)
    found = info(str(tmp_path / "scored.vcf"))
    assert found.pop("evo2Command") == "evo2 score"
    expected = info(str(ROOT / "examples" / "phix174.vcf"))
    assert found == {**expected, "name": str(tmp_path / "scored.vcf")}


def test_what_a_released_model_lacks_is_told(
    tiny_model: StripedHyena2, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tiny_model, tmp_path / "model", {"layout": "released"})
    assert "warning" not in info(str(tmp_path / "model"))
    monkeypatch.setattr(precision, "needed_precision", lambda _: precision.Precision.FP8)
    found = info(str(tmp_path / "model"))
    assert (found["needs"], found["fp8_projections"]) == ("fp8", 0)
    assert "whose scales this file lacks" in found["warning"]


def test_the_state_is_what_the_cache_holds(tiny_model: StripedHyena2) -> None:
    import torch

    from stripedhyena2.costs import state_bytes

    cache, length = tiny_model.new_cache(1), 50
    with torch.no_grad():
        tiny_model(torch.zeros(1, length, dtype=torch.long), cache=cache)
    held = 0
    for kind, past in zip(tiny_model.config.stripes, cache.pasts, strict=True):
        for name, tensor in vars(past).items():
            modes = kind == "L" and name == "inner"
            held += tensor.numel() * (4 if modes else 2)
    assert state_bytes(tiny_model.config, length) == held


def test_a_published_name_needs_no_network() -> None:
    found = info("evo2_40b@main")
    assert found["needs"] == "fp8, Hopper"
    assert found["parameters"] == 41_117_574_144
    assert found["hub"] == "arcinstitute/evo2_40b"


def test_a_recipe_and_a_shape() -> None:
    recipe = info(str(ROOT / "recipes" / "toy.toml"))
    assert recipe["kind"] == "recipe"
    assert recipe["shape"]["stripes"] == "SMLA"
    shape = info(str(ROOT / "recipes" / "models" / "evo2_7b.toml"))
    assert shape["parameters"] == 6_581_722_880


def test_tokens_and_fasta(tmp_path: Path) -> None:
    (tmp_path / "g.fa").write_text(">a\nACGT\n>b\nGG\n")
    tokenize_files(
        TokenizeOptions(files=(tmp_path / "g.fa",), output=tmp_path / "tokens", valid_fraction=0)
    )
    assert info(str(tmp_path / "tokens"))["splits"]["train"]["bases"] == 6
    fasta = info(str(tmp_path / "g.fa"))
    assert (fasta["kind"], fasta["records"], fasta["bases"]) == ("FASTA", 2, 6)


def test_text_shows_every_stripe() -> None:
    result = CliRunner().invoke(app, ["info", "evo2_7b"])
    assert result.exit_code == 0
    assert "SMLASMLSMLASMLSMLASMLSMLASMLSMLA" in result.stdout
    assert "6,581,722,880" in result.stdout


def test_variants_are_counted_by_kind(tmp_path: Path) -> None:
    body = [("2", "A", "C,AC"), ("9", "AC", "GT"), ("9", "ACA", "A,<DEL>"), ("9", "AC", "ACC")]
    header = (
        "##contig=<ID=chr1,length=249250621>\n#CHROM POS ID REF ALT QUAL FILTER INFO FORMAT s t"
    )
    lines = [f"chr1 {pos} . {ref} {alt} . . . GT 0 0" for pos, ref, alt in body]
    vcf, table = tmp_path / "x.vcf", tmp_path / "x.tsv"
    vcf.write_text("##fileformat=VCFv4.2\n" + "\n".join([header, *lines, ""]).replace(" ", "\t"))
    table.write_text(
        "chrom\tpos\tref\talt\n" + "".join(f"chr1\t{pos}\t{ref}\t{alt}\n" for pos, ref, alt in body)
    )
    counts = {
        "records": 4,
        "alleles": 6,
        "contigs": 1,
        "snvs": 1,
        "mnvs": 1,
        "insertions": 2,
        "deletions": 1,
        "not_spelled_in_bases": 1,
        "not_left_aligned": 1,
    }
    found = describe(str(vcf))
    assert found == {
        "kind": "VCF",
        "name": str(vcf),
        "samples": 2,
        "build": "GRCh37 (hg19)",
        **counts,
    }
    assert describe(str(table)) == {
        "kind": "table of variants",
        "name": str(table),
        **counts,
    }


def test_the_awkward_files(shared: Path) -> None:
    for file in sorted((shared / "data" / "zoo").glob("*/*")):
        try:
            found = describe(str(file))
        except UserError as error:
            assert file.name in str(error), file.name  # noqa: PT017 # either outcome is right
        else:
            assert found["kind"] in ("FASTA", "VCF", "table of variants"), file.name


@pytest.mark.parametrize("name", ["nothing", "nothing.toml", "."])
def test_what_is_nothing_is_named(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        (UserError, InputError), match=name if name != "." else "has no config.toml"
    ):
        describe(name)
