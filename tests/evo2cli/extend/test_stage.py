"""Stages of an extension as recipes: the same as extending by hand, in a chain, through kills."""

import json
import re
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from evo2cli.app import app
from evo2cli.data.sources import open_source
from evo2cli.data.token_writer import Document, TokenWriter
from evo2cli.errors import UserError
from evo2cli.extend.checkpoint import extend_checkpoint
from evo2cli.extend.stage import find_stage
from evo2cli.extend.verification import held_out_windows
from evo2cli.training.options import RunOptions
from evo2cli.training.recipe_file import find_recipe, read_recipe, read_run, read_shape
from evo2cli.training.state import RunFolder
from stripedhyena2 import StripedHyena2, read_config, save
from stripedhyena2.checkpoint import read_checkpoint
from stripedhyena2.checkpoint.published import published_config
from tests.evo2cli.test_train import RECIPE, SHAPE, write_tokens
from tests.ranks import Hold, World

RECIPES = Path(__file__).parents[3] / "recipes"
FIRST = """
base = "recipe.toml"
init = "weights"
output = "first"
[extend]
to = "512"
[batch]
length = 512
sequences = 1
"""
SECOND = """
base = "first.toml"
init = "first.toml"
output = "second"
[extend]
to = "1k"
[batch]
length = 1_024
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with weights of 256 positions, two stages and their tokens; the current one."""
    (tmp_path / "tiny.toml").write_text(SHAPE)
    (tmp_path / "recipe.toml").write_text(RECIPE)
    (tmp_path / "first.toml").write_text(FIRST)
    (tmp_path / "second.toml").write_text(SECOND)
    config = read_config(tmp_path / "tiny.toml")
    save(StripedHyena2.from_seed(config, seed=0), tmp_path / "weights", {"license": "mine"})
    write_tokens(tmp_path / "tokens", bases=(3_000, 3_000))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def evo2(*arguments: str) -> Result:
    return CliRunner().invoke(app, [*arguments, "--json"])


def summary(result: Result) -> dict[str, Any]:
    assert result.exit_code == 0, (result.output, result.exception)
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def losses(folder: Path) -> list[float]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def test_extended_in_memory_is_extended_on_disk_and_trained(place: Path) -> None:
    summary(evo2("train", "first.toml"))
    extend_checkpoint("weights", place / "long", to=512)
    text = FIRST.replace('"weights"', '"long"').replace('[extend]\nto = "512"', "")
    (place / "by_hand.toml").write_text(text.replace('"first"', '"by_hand"'))
    summary(evo2("train", "by_hand.toml"))

    assert losses(place / "first") == losses(place / "by_hand")
    in_memory, by_hand = (read_checkpoint(place / run / "final") for run in ("first", "by_hand"))
    assert in_memory.config == by_hand.config
    assert (in_memory.config.context, in_memory.config.rotary_scale) == (512, 2)
    for name in ("config.toml", "model.safetensors"):
        files = [(place / run / "final" / name).read_bytes() for run in ("first", "by_hand")]
        assert files[0] == files[1], name
    on_disk = read_checkpoint(place / "long").provenance
    assert {key: in_memory.provenance[key] for key in on_disk} == on_disk
    assert "extended" not in by_hand.provenance


def test_what_has_the_context_already_is_left_as_it_is(place: Path) -> None:
    extend_checkpoint("weights", place / "long", to=512)
    arguments = ["first.toml", "--set", "init=long", "--output"]
    summary(evo2("train", *arguments, "as_it_is"))
    summary(evo2("train", "first.toml", "--output", "extended"))
    assert losses(place / "as_it_is") == losses(place / "extended")
    assert "extended" not in read_checkpoint(place / "as_it_is" / "final").provenance


def test_a_chain_has_the_shape_that_will_come_of_it(place: Path) -> None:
    second = place / "second.toml"
    shape = read_shape(read_recipe(second))
    assert shape == replace(
        read_config(place / "tiny.toml"), context=1024, base_context=256, rotary_scale=4
    )
    for arguments in (["plan", "second.toml"], ["train", "second.toml", "--dry-run"]):
        assert summary(evo2(*arguments))["mesh"]["length"] == 1024
    assert summary(evo2("info", "second.toml"))["shape"]["context"] == 1024


def test_a_chain_may_begin_with_pretraining_and_be_changed_elsewhere(place: Path) -> None:
    below = place / "below"
    below.mkdir()
    (below / "mine.toml").write_text('base = "../second.toml"\noutput = "mine"\n')
    from_scratch = FIRST.replace('"weights"', '"recipe.toml"')
    (place / "first.toml").write_text(from_scratch)
    recipe = read_recipe(below / "mine.toml")
    assert recipe.init == "../first.toml"
    assert read_shape(recipe).rotary_scale == 4
    assert read_shape(read_recipe(place / "recipe.toml")).context == 256


def test_a_missing_stage_is_told_with_what_to_run_first(place: Path) -> None:
    result = evo2("extend", "second.toml")
    assert isinstance(result.exception, UserError)
    assert str(result.exception) == (
        "second.toml: init: first.toml has not been trained yet, first/final is missing; "
        "first run evo2 extend first.toml"
    )
    assert not (place / "second").exists()
    (place / "first.toml").write_text(FIRST.replace('"weights"', '"recipe.toml"'))
    told = str(evo2("train", "second.toml").exception)
    assert told.endswith("first run evo2 train recipe.toml && evo2 extend first.toml")


def test_two_stages_run_whole_and_are_verified(place: Path) -> None:
    summary(evo2("extend", "first.toml"))
    found = summary(evo2("extend", "second.toml"))
    model = read_checkpoint(place / "second" / "final")
    assert (model.config.context, model.config.original_context) == (1024, 256)
    assert model.config.rotary_scale == 4
    records = model.provenance["extended"], model.provenance["before"]["extended"]
    assert [record["factor"] for record in records] == [2, 2]
    assert records[0]["source"] == "first/final"

    written = json.loads((place / "second" / "verification.json").read_text())
    assert found["verification"] == written
    context, needle = written["context"], written["needle"]
    assert (context["against"], context["length"], context["windows"]) == ("first/final", 1024, 2)
    parts = [(row["part"], row["start"], row["end"]) for row in context["rows"]]
    assert parts[-3:] == [("stretch", 512, 1024), ("short", 0, 256), ("all", 0, 1024)]
    for row in context["rows"]:
        assert row["difference"] == pytest.approx(row["loss"] - row["against"], abs=2e-6)
    assert [cell["length"] for cell in needle["cells"]] == [1024] * 3

    again = CliRunner().invoke(app, ["extend", "second.toml"])
    assert "already finished" in again.stderr
    assert "short: 0 - 256" in again.stderr
    assert "needles in 1,024 bases at 0 %, 50 %, 100 %: copied " in " ".join(again.stderr.split())
    assert again.stdout == ""
    assert json.loads((place / "second" / "verification.json").read_text()) == written


@pytest.mark.parametrize("name", ["genomes", 'g\udcff, "1"'], ids=["plain", "any-bytes"])
def test_a_stage_reads_a_folder_of_genomes(place: Path, name: str) -> None:
    """`--data` is that of `evo2 train`, and so are the windows that the stage is verified on."""
    for part, letters in (("train", "AC"), ("valid", "AT")):
        (place / name / part).mkdir(parents=True)
        (place / name / part / "x.fa").write_text(f">x\n{letters * 1_000}\n")
    corpus = 'corpus = { path = "nowhere", tokens = "of_genomes" }'
    text = RECIPE.replace('sources = [{ path = "tokens" }]', corpus)
    assert text != RECIPE
    (place / "recipe.toml").write_text(text)
    wrong = evo2("extend", "first.toml")
    assert str(wrong.exception).startswith("nowhere: no such folder of genomes; name it with --da")
    context = summary(evo2("extend", "first.toml", "--data", name))["verification"]["context"]
    assert context["windows"] == 2_000 // 512
    trained = open_source(place / "of_genomes" / "train" / "all", "train")
    assert trained is not None
    assert set(trained.read(0, 2_000).tobytes()) == set(b"AC")


@pytest.mark.parametrize(
    "path", sorted((RECIPES / "extend").glob("[mn]*.toml")), ids=lambda p: p.stem
)
def test_every_stage_of_the_built_in_models_reads_the_genomes_it_is_given(path: Path) -> None:
    """By the command that stands in its first lines."""
    shown = re.search(r"evo2 extend (recipes/extend/\S+) --data FOLDER", path.read_text())
    assert shown is not None
    assert (RECIPES.parent / shown[1]).samefile(path)
    recipe = read_run(RunOptions(recipe=path, data=Path("genomes")))
    assert recipe.data.corpus is not None
    assert recipe.data.corpus.path == Path("genomes")


@pytest.mark.slow
def test_kill_nine_and_the_same_command_give_the_same_stage(place: Path) -> None:
    command = ["extend", "first.toml", "--device", "cpu"]
    killed = World(1, place, "killed", command, Hold(RunFolder, "log", call=5))
    assert killed.end_held(signal.SIGKILL) == [-signal.SIGKILL]
    assert not (place / "first" / "final").exists()

    assert "resuming from step 4" in evo2(*command).stderr
    whole = ["train", "first.toml", "--output", "whole"]
    assert summary(evo2(*whole))["finished"]
    for name in ("model.safetensors", "provenance.json", "config.toml"):
        cut, uncut = (place / folder / "final" / name for folder in ("first", "whole"))
        assert cut.read_bytes() == uncut.read_bytes(), name


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("train first.toml --set batch.length=513", "batch.length = 513 is longer than extend.to"),
        ("train first.toml --set extend=3", "extend = 3: "),
        (
            "train by_hand.toml",
            "longer than the model's context of 256; lower it, or set extend.to",
        ),
        ("train first.toml --set extend.to=700", "extend.to: 700 positions are not a multiple of"),
        ("train first.toml --set extend.to=600 --set batch.length=100", "the next one is 768"),
        ("train first.toml --set extend.to=128 --set batch.length=8", "128 positions are not more"),
        (
            "train first.toml --set extend.to=32kb",
            r"extend\.to = '32kb': a context of 32kb: not a length",
        ),
        ("train first.toml --set extend.scheme=ntk", r"extend\.scheme = 'ntk': .*'interpolation'"),
        ("train first.toml --set extend.shceme=2", r"\[extend\] has no key 'shceme'; did you mean"),
        ("train recipe.toml --set extend.to=512", r"\[extend\] needs init"),
        ("train first.toml --set init=first.toml", "init: first.toml would start from its own"),
        ("train first.toml --set init=second.toml", "init: first.toml would start from its own"),
        (
            "train first.toml --set init=none.toml",
            "init: none.toml: no such recipe; .* such as .*toy.toml",
        ),
        ("train first.toml --set init=nobody", "init: no model 'nobody'"),
        ("extend recipe.toml", r"no table \[extend\]; `evo2 train recipe.toml` trains it"),
        ("extend first.toml --to 1k", "says this itself; drop --to$"),
        ("extend first.toml -O x --scheme none", "says this itself; drop --output and --scheme"),
        ("extend weights", "a checkpoint needs --to, the new context, and --output"),
        ("extend weights --to 1k -O x --set seed=1", r"is not a recipe \(.toml\); drop --set"),
        ("extend weights --to 1k -O x --data y", r"is not a recipe \(.toml\); drop --data"),
        ("extend first.toml --data y", r"--data y: first.toml has no table \[data.corpus\]"),
        ("extend none.toml", "none.toml: no such recipe; .* such as .*toy.toml"),
    ],
)
def test_what_cannot_be_is_one_line(place: Path, command: str, message: str) -> None:
    (place / "by_hand.toml").write_text(FIRST.replace('[extend]\nto = "512"', ""))
    result = evo2(*command.split())
    assert isinstance(result.exception, UserError), result.output
    assert "\n" not in str(result.exception)
    with pytest.raises(UserError, match=message):
        raise result.exception
    assert not list(place.glob("*/run.json"))


def test_a_stage_is_meant_by_its_file_or_its_name(place: Path) -> None:
    assert find_stage("first.toml") == Path("first.toml")
    stage = find_stage("nano-8k")
    assert stage is not None
    assert stage.samefile(RECIPES / "extend" / "nano-8k.toml")
    (place / "nano-8k").mkdir()
    for checkpoint in ("weights", "nano", "evo2_7b", "nano-8k"):
        assert find_stage(checkpoint) is None


def test_held_out_windows_lie_in_documents_and_hold_dna_alone(place: Path) -> None:
    letters = b"ACGT" * 16
    documents = [letters + b"N" + b"acgt" * 16, b"AAAA" * 25, b"CC", b"G" * 32 * 9]
    with TokenWriter(place / "held") as writer:
        writer.add("train", Document("t", "a.fa", "+", letters * 20, "0" * 64))
        for index, text in enumerate(documents):
            writer.add("valid", Document(f"v{index}", "a.fa", "+", text, f"{index}" * 64))
        writer.finish({})
    recipe = read_recipe(Path("first.toml"), ["data.sources=[{path='held'}]"])
    every = held_out_windows(recipe, 32, 100)
    inside = [b"ACGT" * 8] * 2 + [b"TACGTACG" * 4]  # the third holds the N, and is left out
    assert every == [*inside, *[b"A" * 32] * 3, *[b"G" * 32] * 9]
    assert held_out_windows(recipe, 32, 2) == [b"ACGT" * 8, b"G" * 32]
    assert held_out_windows(recipe, 300, 5) == []


@pytest.mark.parametrize(("size", "released"), [("7b", "evo2_7b"), ("40b", "evo2_40b")])
def test_the_published_stages_end_at_the_released_models(
    size: str, released: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nothing is fetched to tell so."""
    monkeypatch.setattr("stripedhyena2.checkpoint.hub.fetch", None)
    path = find_recipe(Path(f"extend/{size}-1m.toml"))
    end, base = published_config(released), published_config(f"{released}_base")
    assert read_shape(read_recipe(path)) == replace(end, mlp_width=base.mlp_width)


STAGES = sorted((RECIPES / "extend").glob("[0-9]*.toml"))


@pytest.mark.parametrize("path", STAGES, ids=lambda path: path.stem)
def test_a_published_stage_has_the_published_numbers(path: Path) -> None:
    size, _, name = path.stem.partition("-")
    recipe = read_recipe(path)
    shape = read_shape(recipe)
    assert recipe.extend is not None
    assert recipe.extend.to == recipe.batch.length == shape.context
    assert shape.rotary_scale == shape.context / 8_192
    assert shape.rotary_base == (10_000 if size == "7b" else 1_000_000)
    tokens = {"40b-32k": 2**20, "40b-1m": 2**23}.get(path.stem, 2**22 if size == "7b" else 2**24)
    assert recipe.batch.tokens == tokens
    optimizer = recipe.optimizer
    assert (optimizer.steps, optimizer.warmup_steps) == (12_500, 0.05 * 12_500)
    assert (optimizer.learning_rate, optimizer.min_learning_rate) == (3e-5, 3e-6)
    recomputed = {"40b-32k": 2, "7b-32k": 4, "7b-64k": 4, "7b-1m": 1}
    every = recomputed.get(path.stem, 2 if size == "7b" else 1)
    assert recipe.memory.activation_checkpointing == every
    assert sum(source.weight or 0 for source in recipe.data.sources) == pytest.approx(1, abs=2e-3)
    assert recipe.output.name == path.stem
    assert name == f"{recipe.batch.length // 1024}k".replace("1024k", "1m")
