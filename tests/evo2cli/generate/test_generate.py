"""`evo2 generate`: what a sample depends on, how it ends, and what is written."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from evo2cli.app import app
from evo2cli.errors import UserError
from evo2cli.generate import run as workflow
from evo2cli.generate.options import GenerateOptions
from evo2cli.generate.prompts import Prompt, read_prompts
from evo2cli.genome.fasta import read_records
from stripedhyena2 import NonFiniteError, StripedHyena2, save

FLAT = ("--temperature", "9")  # nearly all bases are likely


def run(checkpoint: str, *arguments: str) -> str:
    result = CliRunner().invoke(app, ["generate", "--model", checkpoint, "-n", "40", *arguments])
    if result.exception:
        raise result.exception
    return result.stdout


def read(checkpoint: str, *arguments: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run(checkpoint, *arguments, "--json").splitlines()]


def test_fasta_of_the_given_length(checkpoint: str, tmp_path: Path) -> None:
    (tmp_path / "out.fa").write_text(
        run(checkpoint, "--prompt", "acgu", "--prompt", "T", "-n", "61")
    )
    first, second = read_records(tmp_path / "out.fa")
    assert (first.name, second.name) == ("prompt1", "prompt2")
    fields = dict(item.split("=") for item in first.description.split())
    assert fields["prompt"] == "4"
    assert fields["length"] == "61"
    assert fields["stop"] == "length"
    assert float(fields["mean_logprob"]) < 0
    assert "passed" not in fields
    assert len(first.sequence) == len(second.sequence) == 61
    assert not first.sequence.strip(b"ACGT")


def test_a_sample_depends_only_on_seed_prompt_and_number(checkpoint: str, tmp_path: Path) -> None:
    (tmp_path / "prompts.fa").write_text(">x\nACGTACGT\n>y\nGGG\n")
    (tmp_path / "turned.fa").write_text(">y\nGGG\n>x\nACGTACGT\n")
    prompts = ("--prompts", str(tmp_path / "prompts.fa"), "--num-samples", "3", "-n", "12")
    found = read(checkpoint, *prompts)
    assert [one["name"] for one in found] == ["x_1", "x_2", "x_3", "y_1", "y_2", "y_3"]
    assert len({one["sequence"] for one in found}) == 6
    turned = ("--prompts", str(tmp_path / "turned.fa"), "--num-samples", "3", "-n", "12")
    alone = read(checkpoint, "--prompt", "GGG", "--num-samples", "2", "-n", "12")
    assert [one["sequence"] for one in alone] == [one["sequence"] for one in found[3:5]]
    other = (*turned, "--batch-size", "2")
    assert {one["name"]: one["sequence"] for one in read(checkpoint, *other)} == {
        one["name"]: one["sequence"] for one in found
    }
    assert read(checkpoint, *prompts, "--seed", "1")[0]["sequence"] != found[0]["sequence"]


def test_json_has_the_log_probability_of_every_base(model: StripedHyena2, checkpoint: str) -> None:
    (one,) = read(checkpoint, "--prompt", "ACG", "--top-k", "2")
    text = "ACG" + one["sequence"]
    with torch.no_grad():
        logits = model(torch.tensor([list(text.encode())]))[0, 2:-1].double()
    picked = torch.tensor(list(one["sequence"].encode()))[:, None]
    expected = torch.log_softmax(logits, 1).gather(1, picked)[:, 0]
    torch.testing.assert_close(torch.tensor(one["logprobs"]).double(), expected, rtol=0, atol=1e-4)
    assert one["mean_logprob"] == pytest.approx(float(expected.mean()), abs=1e-5)
    pairs = torch.log_softmax(logits[:, list(b"ACGT")].topk(2, dim=1).values, 1)
    drawn = torch.tensor(one["drawn_logprobs"]).double()
    assert ((drawn[:, None] - pairs).abs().min(1).values < 1e-4).all()


def test_constraints_hold_and_are_named(checkpoint: str) -> None:
    asked = ("--forbid", "EcoRI", "--forbid", "GGNCC", "--max-homopolymer", "2")
    asked += ("--fix", "5:GATTACA", "--gc", "0.4-0.6", "--num-samples", "3", *FLAT)
    for one in read(checkpoint, "--prompt", "ACGAA", *asked):
        assert one["passed"] == ["forbid", "max-homopolymer", "fix", "gc"]
        assert one["sequence"][4:11] == "GATTACA"
        assert not re.search("GAATTC|GG.CC|A{3}|C{3}|G{3}|T{3}", "ACGAA" + one["sequence"])
        assert one["longest_run"] <= 2
        assert 0.4 <= one["gc"] <= 0.6


@pytest.mark.parametrize(("frame", "before"), [("prompt", "ATGC"), ("generated", "")])
def test_an_in_frame_stop_codon_ends_the_sequence(checkpoint: str, frame: str, before: str) -> None:
    stops = {"TAA", "TAG", "TGA"}
    asked = ("--stop-codon", frame, "--min-length", "6", "--num-samples", "4", *FLAT)
    samples = read(checkpoint, "--prompt", "ATGC", *asked)
    assert {one["stop"] for one in samples} >= {"stop-codon"}
    for one in samples:
        text = before + one["sequence"]
        codons = [text[at : at + 3] for at in range(0, len(text) - 2, 3)]
        assert len(one["sequence"]) >= 6
        assert not stops & set(codons[:-1])
        assert (codons[-1] in stops and len(text) % 3 == 0) == (one["stop"] == "stop-codon")


def test_a_motif_ends_the_sequence_even_if_it_begins_in_the_prompt(checkpoint: str) -> None:
    asked = ("--stop-motif", "GA{2,}TTC|GGGG", "--fix", "1:TTC", "--num-samples", "2")
    for one in read(checkpoint, "--prompt", "CCGAA", *asked):
        assert (one["sequence"], one["stop"]) == ("TTC", "stop-motif")
    with pytest.raises(UserError, match=r"no sequence of 4 to 40 bases .* --fix, --stop-motif"):
        run(checkpoint, "--prompt", "CCGAA", *asked, "--min-length", "4")


def test_the_end_of_document_token_ends_the_sequence(checkpoint: str) -> None:
    asked = ("--stop-at-eod", "--top-k", "0", "--num-samples", "4", "--min-length", "4", *FLAT)
    samples = read(checkpoint, "--prompt", "ACG", *asked)
    assert {one["stop"] for one in samples} >= {"eod"}
    for one in samples:
        assert 4 <= len(one["sequence"]) <= 40
        assert set(one["sequence"]) <= set("ACGT")
        assert len(one["logprobs"]) == len(one["sequence"])


def test_keys_and_values_in_float8_change_numbers_a_little(checkpoint: str) -> None:
    asked = ("--prompt", "ACGTTGCA" * 20, "--temperature", "0", "--json")
    plain, narrow = (
        json.loads(run(checkpoint, *asked, "--kv-cache", kind)) for kind in ("auto", "fp8")
    )
    first = plain["logprobs"][1], narrow["logprobs"][1]
    assert first[0] != first[1]
    assert first[0] == pytest.approx(first[1], abs=0.2)


def test_any_alphabet_is_valid_fasta(checkpoint: str, tmp_path: Path) -> None:
    asked = ("--alphabet", "any", "--top-k", "0", "--prompt", "A", *FLAT)
    run(checkpoint, *asked, "-O", str(tmp_path / "out.fa"))
    (record,) = read_records(tmp_path / "out.fa")
    assert len(record.sequence) == 40
    assert record.sequence.strip(b"ACGT")


def test_a_tag_is_put_before_every_prompt_or_used_alone(checkpoint: str) -> None:
    lineage = "d__Bacteria;p__Pseudomonadota;s__Escherichia coli"
    (tagged,) = read(checkpoint, "--tag", f"|{lineage}|", "--prompt", "ACG", "-n", "9")
    (alone,) = read(checkpoint, "--tag", lineage, "-n", "9")
    (without,) = read(checkpoint, "--prompt", "ACG", "-n", "9")
    assert tagged["tag"] == alone["tag"] == lineage.upper()
    assert (tagged["prompt"], alone["prompt"]) == ("ACG", "")
    assert len({one["sequence"] for one in (tagged, alone, without)}) == 3


def interrupt(monkeypatch: pytest.MonkeyPatch, *, at: int) -> list[Prompt]:
    """Raise Ctrl-C when the `at`-th sample is described; prompts are recorded in a list."""
    calls: list[Prompt] = []
    original = workflow.describe

    def describe(options: GenerateOptions, prompt: Prompt, *others: Any) -> Any:
        calls.append(prompt)
        if len(calls) == at:
            raise KeyboardInterrupt
        return original(options, prompt, *others)

    monkeypatch.setattr(workflow, "describe", describe)
    return calls


def test_an_interrupted_run_resumes(
    checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = (
        "--prompt",
        "ACG",
        "--prompt",
        "TT",
        "--num-samples",
        "2",
        "-n",
        "8",
        "--batch-size",
        "1",
    )
    output = tmp_path / "out.fa"
    whole = run(checkpoint, *asked)
    calls = interrupt(monkeypatch, at=4)
    with pytest.raises(SystemExit):
        run(checkpoint, *asked, "-O", str(output))
    assert not output.exists()
    assert run(checkpoint, *asked, "-O", str(output)) == ""
    assert len(calls) == 5  # three were kept, the fourth was generated again
    assert output.read_text() == whole
    assert [path.name for path in tmp_path.iterdir()] == ["out.fa"]


def test_prompts_of_equal_name_give_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "two.fa").write_text(">x\nACGT\n>x\nGGT\n")
    assert len(read_prompts([], tmp_path / "two.fa")) == 2
    assert "2 prompts are named x" in capsys.readouterr().err


def test_names_change_with_the_number_of_samples(
    checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An interrupted run of one sample is not resumed by a run of two, whose names have numbers."""
    asked = ("--prompt", "ACG", "--prompt", "TT", "-n", "8", "--batch-size", "1")
    output = tmp_path / "out.fa"
    calls = interrupt(monkeypatch, at=2)
    with pytest.raises(SystemExit):
        run(checkpoint, *asked, "-O", str(output))
    assert [prompt.text for prompt in calls] == [b"ACG", b"TT"]
    run(checkpoint, *asked, "--num-samples", "2", "-O", str(output))
    assert output.read_text() == run(checkpoint, *asked, "--num-samples", "2")


def test_nan_names_its_layer(model: StripedHyena2, tmp_path: Path) -> None:
    broken = StripedHyena2(model.config)
    broken.load_state_dict(model.state_dict())
    with torch.no_grad():
        broken.blocks[3].mlp.up.weight[0, 0] = torch.nan
    save(broken, tmp_path / "broken", {})
    message = r"prompt1, sample 1: .*token 1 after the prompt.*first in layer blocks\.3\.mlp\.up"
    with pytest.raises(NonFiniteError, match=message):
        run(str(tmp_path / "broken"), "--prompt", "ACGT", "-O", str(tmp_path / "out.fa"))
    assert not (tmp_path / "out.fa").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no prompt"),
        (["--prompt", ""], "prompt is empty"),
        (["--prompt", "HELLO"], "'E' at position 2: this looks like protein"),
        (["--prompts", "missing.fa"], "missing.fa: cannot be read"),
        (["--prompt", "A!", "--prompts", "x.fa"], "--prompt: record 'prompt1': '!' at position 2"),
        (["--prompt", "A", "-O", "/"], "--output /: is a folder; name a file"),
        (["--prompt", "A", "-O", ""], "--output .: is a folder"),
        (["--prompt", "A", "-O", "nowhere/x.fa"], "the folder nowhere is missing"),
        (["--tag", "ACGT"], "--tag ACGT: not a lineage"),
        (["--prompt", "A", "--temperature", "-1"], "--temperature -1"),
        (["--prompt", "A", "--top-p", "2"], "--top-p 2"),
        (["--prompt", "A", "--top-p", "0"], "top_p = 0.0 must be above 0"),
        (["--prompt", "A", "--alphabet", "rna"], "'rna' is not one of"),
        (["--prompt", "A", "--alphabet", "any", "--gc", "0-1"], "--gc constrains bases"),
        (["--prompt", "A", "--min-length", "41"], "--min-length 41 is more than --tokens 40"),
        (["--prompt", "A", "--kv-cache", "int4"], "'int4' is not one of"),
        (["--prompt", "A", "--stop-codon", "2"], "'2' is not one of"),
        (["--prompt", "A", "--stop-motif", "A**|"], "--stop-motif A"),
        (["--prompt", "A", "--stop-motif", "A*"], "matches the empty sequence"),
        (["--prompt", "A", "--forbid", "EcoRIX"], "EcoRIX: neither a restriction enzyme"),
        (["--prompt", "A", "--forbid", "AN{40}A"], "more than 65,536 states"),
        (["--prompt", "A", "--fix", "0:A"], "--fix 0:A: must be a position and bases"),
        (["--prompt", "A", "--fix", "40:AC"], "ends at 41, after --tokens 40"),
        (["--prompt", "A", "--fix", "3:AC", "--fix", "4:R"], "different base at position 4"),
        (["--prompt", "A", "--gc", "30-65"], "must be two fractions"),
        (["--prompt", "A", "--gc", "0.6-0.3"], "must be two fractions"),
        (["--prompt", "A", "--gc-window", "9"], "--gc-window needs --gc"),
        (
            ["--prompt", "A", "--forbid", "N"],
            "no sequence of 1 to 40 bases was found that satisfies --forbid",
        ),
    ],
    ids=str,
)
def test_invalid_options_are_one_line(
    command_line: Callable[..., tuple[int, str, str]],
    checkpoint: str,
    arguments: list[str],
    message: str,
) -> None:
    code, data, talk = command_line("generate", "--model", checkpoint, "-n", "40", *arguments)
    assert (code, data) == (2, "")
    assert message in talk
    assert len(talk.splitlines()) == 1
