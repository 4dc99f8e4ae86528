"""Adapters in other commands: merged is unmerged, and the folder is `peft`'s."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from evo2cli.finetune.folder import HEAD
from evo2cli.models import open_model
from evo2cli.options import ModelOptions
from stripedhyena2 import load
from tests.evo2cli.finetune.conftest import Run, base, small_table, tune

__all__ = ["base", "tune"]  # fixtures

Command = Callable[..., tuple[int, str, str]]
IDS = torch.tensor([list(b"ACGTTGCAACGGTTACCAGT")])


@pytest.fixture
def run(tune: Run, tmp_path: Path) -> Path:
    tune(small_table(tmp_path / "x.tsv", "classify"), method="lora", lr=1e-2)
    return tmp_path / "run"


def test_merged_is_unmerged(run: Path, base: str, tmp_path: Path, command_line: Command) -> None:
    merged = tmp_path / "merged"
    code, out, err = command_line("merge-adapter", str(run), "-O", str(merged), "--json")
    assert code == 0, err
    assert json.loads(out)["base"] == base
    unmerged = open_model(ModelOptions(model=base, adapter=run, device="cpu"))
    expected, plain = unmerged(IDS), load(base)(IDS)
    assert (expected - plain).abs().max() > 1e-3
    torch.testing.assert_close(load(merged)(IDS), expected, rtol=0, atol=1e-5)


def test_scores_with_an_adapter_are_those_of_the_merged_model(
    run: Path, base: str, tmp_path: Path, command_line: Command
) -> None:
    fasta, merged = tmp_path / "x.fa", tmp_path / "merged"
    fasta.write_text(">a\nACGTTGCAACGGTTACCAGT\n")
    assert command_line("merge-adapter", str(run), "-O", str(merged))[0] == 0
    words = ("score", str(fasta), "--device", "cpu", "--model")
    _, adapted, err = command_line(*words, base, "--adapter", str(run))
    _, of_merged, _ = command_line(*words, str(merged))
    _, of_base, _ = command_line(*words, base)
    assert adapted == of_merged, err
    assert adapted != of_base


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--adapter", "nowhere"], "nowhere: has no adapter"),
        (["--adapter", "run", "--model", "nano"], "belongs to the model .*use it with "),
    ],
)
def test_what_is_no_adapter_of_this_model_is_said(
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command_line: Command,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(run.parent)
    (tmp_path / "x.fa").write_text(">a\nACGTACGTAA\n")
    code, _, err = command_line("score", "x.fa", *arguments)
    assert code == 2
    assert len(err.splitlines()) == 1
    assert re.search(message, err)


def test_a_model_that_was_trained_whole_is_named(
    tune: Run, tmp_path: Path, command_line: Command
) -> None:
    tune(small_table(tmp_path / "x.tsv", "classify"), method="full")
    code, _, err = command_line("merge-adapter", str(tmp_path / "run"), "-O", str(tmp_path / "m"))
    assert code == 2
    assert "was trained whole and has no adapter; give --model" in err


def test_a_run_of_a_head_alone_is_named(tmp_path: Path, command_line: Command) -> None:
    (tmp_path / "final").mkdir()
    (tmp_path / "final" / HEAD).touch()
    code, _, err = command_line("merge-adapter", str(tmp_path), "-O", str(tmp_path / "merged"))
    assert code == 2
    assert f"{tmp_path}: only a head was trained" in err
    assert "`evo2 predict` uses the head" in err
