"""`evo2 generate`: seeds repeat, prompts do not meet, output is FASTA or JSON."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from evo2cli.app import app
from evo2cli.errors import UserError
from evo2cli.genome.fasta import read_records
from stripedhyena2 import StripedHyena2, save


@pytest.fixture
def model(tiny_model: StripedHyena2, tmp_path: Path) -> str:
    save(tiny_model, tmp_path / "model", {})
    return str(tmp_path / "model")


def run(model: str, *arguments: str) -> str:
    result = CliRunner().invoke(app, ["generate", "--model", model, "-n", "70", *arguments])
    if result.exception:
        raise result.exception
    return result.stdout


def test_fasta_with_the_asked_length(model: str, tmp_path: Path) -> None:
    (tmp_path / "out.fa").write_text(run(model, "--prompt", "acgu", "--prompt", "T"))
    first, second = read_records(tmp_path / "out.fa")
    assert (first.name, second.name) == ("prompt1", "prompt2")
    assert "prompt=4" in first.description
    assert len(first.sequence) == len(second.sequence) == 70
    assert not first.sequence.strip(b"ACGT")


def test_a_seed_repeats(model: str) -> None:
    assert run(model, "--prompt", "ACG", "--seed", "5") == run(
        model, "--prompt", "ACG", "--seed", "5"
    )
    assert run(model, "--prompt", "ACG", "--seed", "5") != run(
        model, "--prompt", "ACG", "--seed", "6"
    )


def test_prompts_do_not_meet(model: str, tmp_path: Path) -> None:
    (tmp_path / "prompts.fa").write_text(">x\nACGTACGT\n>y\nGGG\n")
    both = run(model, "--prompts", str(tmp_path / "prompts.fa"), "--json").splitlines()
    alone = run(model, "--prompt", "GGG", "--json").splitlines()
    first, second, single = map(json.loads, [*both, *alone])
    assert (first["name"], second["name"]) == ("x", "y")
    assert second["sequence"] == single["sequence"]
    assert second["mean_logprob"] == single["mean_logprob"] < 0


def test_to_a_file(model: str, tmp_path: Path) -> None:
    text = run(model, "--prompt", "ACG")
    assert run(model, "--prompt", "ACG", "-O", str(tmp_path / "out.fa")) == ""
    assert (tmp_path / "out.fa").read_text() == text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no prompt"),
        (["--prompt", ""], "prompt is empty"),
        (["--prompt", "HELLO"], "'E' at position 2: this looks like protein"),
        (["--prompt", "A", "--temperature", "-1"], "temperature = -1"),
        (["--prompt", "A", "--top-p", "2"], "top_p = 2"),
        (["--prompt", "A", "--alphabet", "rna"], "--alphabet rna"),
        (["--prompts", "missing.fa"], "missing.fa: cannot be read"),
    ],
    ids=str,
)
def test_what_cannot_be_is_one_line(model: str, arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        run(model, *arguments)
