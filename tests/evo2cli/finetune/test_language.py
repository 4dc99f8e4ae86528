"""`evo2 finetune --task lm`: documents, tags, replay, and what the model forgets."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evo2cli.errors import UserError
from evo2cli.finetune.data import DataRecipe, read_data
from evo2cli.finetune.options import FinetuneOptions
from evo2cli.finetune.run import prepare
from evo2cli.models import open_model
from evo2cli.options import ModelOptions
from evo2cli.tokenize.options import TokenizeOptions
from evo2cli.tokenize.run import tokenize_files
from evo2cli.training.recipe_file import read_recipe
from tests.evo2cli.finetune.conftest import Run, random_dna


def fasta(path: Path, seed: int, *, unit: str = "", count: int = 12) -> Path:
    random = np.random.default_rng(seed)
    records = [(unit * 60 or random_dna(random, 180)) for _ in range(count)]
    path.write_text("".join(f">r{i}\n{record}\n" for i, record in enumerate(records)))
    return path


@pytest.mark.parametrize("method", ["lora", "full"])
def test_documents_are_learned_and_others_are_remembered(
    tune: Run, base: str, tmp_path: Path, method: str
) -> None:
    data = fasta(tmp_path / "x.fa", 0, unit="ACT")
    others = [fasta(tmp_path / f"{name}.fa", seed) for seed, name in enumerate("ab")]
    for other in others:
        options = TokenizeOptions(files=(other,), output=other.with_suffix(""), valid_fraction=0.5)
        tokenize_files(options)
    tokens = [other.with_suffix("") for other in others]
    report = tune(
        data,
        method=method,
        length=48,
        lr=5e-3,
        steps=12,
        split=None,
        valid=tokens[0],
        replay=tokens[0],
        replay_share=0.25,
        remember=(tokens[1],),
    )
    assert report["task"] == "lm"
    before, after = (report["results"][row] for row in ("base", "model"))
    assert before.keys() == after.keys() == {"bits per base", "a", "b"}
    assert before["b"][0] == pytest.approx(2, abs=0.2)
    recipe = read_recipe(tmp_path / "run" / "recipe.toml")
    assert [source.weight for source in recipe.data.sources] == [0.75, 0.25]
    if method == "lora":
        open_model(ModelOptions(model=base, adapter=tmp_path / "run", device="cpu"))
    else:
        open_model(ModelOptions(model=str(tmp_path / "run" / "final" / "model"), device="cpu"))


def test_a_tag_stands_before_every_sequence(tune: Run, tmp_path: Path) -> None:
    tag = "|d__Bacteria;s__E. coli|"
    tune(fasta(tmp_path / "x.fa", 0), split=None, length=64, tag=tag)
    lines = (tmp_path / "run" / "tagged.jsonl").read_text().splitlines()
    assert all(json.loads(line)["text"].startswith(tag) for line in lines)
    assert read_recipe(tmp_path / "run" / "recipe.toml").data.packing == "document"


@pytest.mark.parametrize("tags", [(None, None), ("|d__A|", "|d__A|"), ("|d__A|", "|d__B|")])
def test_a_run_never_goes_on_with_the_tokens_of_other_documents(
    tune: Run, tmp_path: Path, tags: tuple[str | None, str | None]
) -> None:
    """Neither of another file or tag, nor of one that has changed since."""
    data = fasta(tmp_path / "x.fa", 0)
    first, other = ({"split": None, "length": 64, "tag": tag} for tag in tags)
    report = tune(data, **first)
    assert tune(data, **first) == report
    if first == other:
        fasta(data, 1)
    with pytest.raises(UserError, match=r"run/tokens: has tokens of other files or options"):
        tune(data, **other)


def test_what_is_too_short_is_named_before_a_run_begins(tune: Run, tmp_path: Path) -> None:
    data = tmp_path / "x.fa"
    data.write_text(">a\nACGT\n")
    with pytest.raises(UserError, match=r"x.fa: its 5 tokens .* shorter window by --length"):
        tune(data, split=None, length=64)
    assert not (tmp_path / "run" / "recipe.toml").exists()
    tune(data, split=None, length=4)  # the same folder
    data.write_text("")
    with pytest.raises(UserError, match=r"x.fa: is empty; give a FASTA"):
        tune(data, split=None, task="lm")


def test_a_setting_of_the_window_changes_the_number_of_windows(base: str, tmp_path: Path) -> None:
    usual: dict[str, Any] = {
        "data": fasta(tmp_path / "x.fa", 1),
        "model": base,
        "device": "cpu",
        "task": "lm",
        "output": tmp_path / "run",
    }
    by_setting, _ = prepare(FinetuneOptions(**usual, settings=("batch.length=16",)))
    by_option, _ = prepare(FinetuneOptions(**usual, length=16))
    assert by_setting == by_option
    assert by_option.optimizer.steps > prepare(FinetuneOptions(**usual))[0].optimizer.steps


def test_a_head_needs_labels(tune: Run, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="lm has no head to train"):
        tune(fasta(tmp_path / "x.fa", 0), split=None, method="head")


def test_several_tables_for_one_part_are_refused(tune: Run, tmp_path: Path) -> None:
    tune(fasta(tmp_path / "x.fa", 0), split=None, length=64)
    path = tmp_path / "run" / "recipe.toml"
    recipe = read_recipe(path, ["data.sources=[{path='a.tsv'}, {path='b.tsv'}]"])
    with pytest.raises(UserError, match=r"only one table each; join b.tsv"):
        read_data(DataRecipe.of(recipe))
