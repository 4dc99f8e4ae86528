"""`evo2 train --data FOLDER`: genomes by domain, converted once, and nothing held out in train."""

import gzip
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner, Result

from evo2cli.commands.train import train
from evo2cli.data.loader import WindowLoader
from evo2cli.data.sources import open_source
from evo2cli.genome.alphabet import reverse_complement
from evo2cli.training.recipe_file import read_recipe
from tests.evo2cli import tiny

RECIPE = f"""{re.sub(r"sources = .*", "", tiny.RECIPE)}[data.corpus]
path = "corpus"
tokens = "tokens"
[data.corpus.domains]
fungus = 3
fungus_yeast = 1
plant = 4
[precision]
compute = "fp32"
"""
FILES = {
    "train": ("fungus_a.fa", "fungus_b.fasta", "fungus_yeast.fna", "plant.fa.gz", "virus.fa"),
    "valid": ("plant_c.fa", "worm.fa"),
}


def dna(seed: int, bases: int = 300) -> bytes:
    return bytes(np.random.default_rng(seed).choice(list(b"ACGTacgt"), bases).astype(np.uint8))


def write_fasta(file: Path, sequence: bytes, name: str = "x") -> None:
    text = f">{name}\n".encode() + sequence + b"\n"
    file.write_bytes(gzip.compress(text) if file.suffix == ".gz" else text)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a recipe, its shape and a corpus; the current one."""
    (tmp_path / "tiny.toml").write_text(tiny.SHAPE)
    (tmp_path / "recipe.toml").write_text(RECIPE)
    for number, (part, names) in enumerate(FILES.items()):
        (tmp_path / "corpus" / part).mkdir(parents=True)
        for at, name in enumerate(names):
            write_fasta(tmp_path / "corpus" / part / name, dna(10 * number + at))
    (tmp_path / "corpus" / "train" / "SOURCES.tsv").write_text("file\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str) -> Result:
    app = typer.Typer()
    app.command()(train)
    return CliRunner().invoke(app, ["recipe.toml", *arguments])


def files_of(tokens: str) -> list[str]:
    manifest = json.loads((Path("tokens") / tokens / "manifest.json").read_text())
    return [source["name"] for source in manifest["sources"]]


def test_a_corpus_is_split_by_the_longest_domain_and_validated_by_domain(place: Path) -> None:
    result = run("--json")
    assert result.exit_code == 0, result.output
    assert "left out, since they belong to no domain of the recipe: virus.fa\n" in result.stderr
    assert files_of("train/fungus") == ["fungus_a.fa", "fungus_b.fasta"]
    assert files_of("train/fungus_yeast") == ["fungus_yeast.fna"]
    assert files_of("train/plant") == ["plant.fa.gz"]
    assert files_of("valid/plant") == ["plant_c.fa"]
    assert files_of("valid/other") == ["worm.fa"]
    last = json.loads((place / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert set(last["valid_bits_of"]) == {"tokens/valid/plant", "tokens/valid/other"}
    assert json.loads(result.stdout)["valid_bits"] == pytest.approx(
        np.mean(list(last["valid_bits_of"].values()))
    )


def test_windows_come_from_domains_in_proportion_to_their_weights(place: Path) -> None:
    run()
    data = read_recipe(place / "recipe.toml").data
    sources = [open_source(source.path, "train") for source in data.train_sources]
    known = [source for source in sources if source is not None]
    loader = WindowLoader(known, data.weights, length=32, sequences=4, seed=0)
    passes = np.array(loader.epochs(1000))
    counts = np.array([(source.num_tokens // 32 - 1) for source in known])
    np.testing.assert_allclose(passes * counts, [1500, 500, 2000])


def test_the_order_of_the_domains_in_a_recipe_changes_nothing(place: Path) -> None:
    arguments = ("--set", "validation.every=8", "--json")
    run(*arguments, "--output", "first")
    swapped = RECIPE.replace("fungus = 3\n", "").replace("plant = 4\n", "plant = 4\nfungus = 3\n")
    assert swapped != RECIPE
    (place / "recipe.toml").write_text(swapped)
    run(*arguments, "--output", "second")
    weights = [(place / name / "final" / "model.safetensors") for name in ("first", "second")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_without_domains_every_window_is_read_once_a_pass(place: Path) -> None:
    text = RECIPE.partition("[data.corpus.domains]")
    (place / "recipe.toml").write_text(
        f"{text[0]}[precision]\n{text[2].partition('[precision]')[2]}"
    )
    result = run("--json")
    assert result.exit_code == 0, result.output
    assert files_of("train/all") == sorted(FILES["train"])
    assert read_recipe(place / "recipe.toml").data.weights is None


def test_a_run_goes_on_with_the_same_genomes_elsewhere_and_with_no_others(place: Path) -> None:
    assert run("--set", "optimizer.steps=8").exit_code == 0
    (place / "corpus").rename(place / "moved")
    second = run("--data", "moved", "--json")
    assert second.exit_code == 0, second.output
    assert "already finished" in second.stderr
    assert not re.search("tokenize|hash|already exists", second.stderr)
    write_fasta(place / "moved" / "train" / "plant.fa.gz", dna(99))
    assert_refused(run("--data", "moved"), "tokens/train/plant: has tokens of other files")
    shutil.rmtree("tokens")
    assert_refused(run("--data", "moved"), r"run: has a run with tokens\..*plant\.manifest")


Disguise = Callable[[bytes], bytes]
DISGUISES: list[Disguise] = [
    bytes,
    bytes.upper,
    reverse_complement,
    lambda s: reverse_complement(s.lower()),
]


@pytest.mark.parametrize("name", ["plant_new.fa", "plant_new.fa.gz"])
@pytest.mark.parametrize("disguise", DISGUISES)
def test_a_held_out_genome_in_train_is_refused(place: Path, name: str, disguise: Disguise) -> None:
    leak = place / "corpus" / "train" / name
    sequence = dna(10)  # of valid/plant_c.fa
    text = b">a\n" + dna(50) + b"\n>b\n" + disguise(sequence) + b"\n"
    leak.write_bytes(gzip.compress(text) if leak.suffix == ".gz" else text)
    result = run()
    assert_refused(
        result,
        f"corpus/train/{name}: its sequence b is in corpus/valid/plant_c.fa as well, which is held"
        " out; remove one of the two files",
    )
    assert not (place / "tokens" / "train" / "plant").exists()
    assert not (place / "run").exists()
    leak.unlink()
    assert run().exit_code == 0


@pytest.mark.usefixtures("place")
def test_a_sequence_held_out_later_is_refused() -> None:
    assert run().exit_code == 0
    shutil.copy("corpus/train/fungus_a.fa", "corpus/valid/fungus_z.fa")
    assert_refused(run(), r"corpus/train/fungus_a.fa: .* is in corpus/valid/fungus_z.fa as well")


def test_tokens_of_genomes_that_are_gone_are_refused(place: Path) -> None:
    assert run().exit_code == 0
    (place / "corpus" / "valid" / "worm.fa").unlink()
    assert_refused(run(), "tokens/valid/other: has tokens of other genomes; remove tokens, or")


@pytest.mark.parametrize(
    ("damage", "arguments", "message"),
    [
        (lambda: None, ["--data", "nowhere"], "nowhere: no such folder of genomes; name it with"),
        (lambda: None, ["--data", "corpus/valid"], r"corpus/valid: has no genomes; put FASTA .*"),
        (lambda: shutil.rmtree("corpus/train"), [], "corpus: has no genomes; put FASTA"),
        (
            lambda: Path("corpus/train/plant.fa.gz").unlink(),
            [],
            "corpus/train: no file name begins with plant, which the recipe has ",
        ),
        (
            lambda: Path("corpus/train/plant.fa.gz").write_bytes(b">x\nACGT\n>y\nAC!T\n"),
            [],
            "plant.fa.gz: .*'!'",
        ),
        (
            lambda: None,
            ["--set", "data.sources=[{path='tokens'}]"],
            "data: needs either sources or corpus",
        ),
        (
            lambda: None,
            ["--set", "data.corpus.domains={'../x'=1}"],
            r"data\.corpus\.domains\.\.\./x",
        ),
        (
            lambda: Path("recipe.toml").write_text(tiny.RECIPE),
            ["--data", "corpus"],
            r"--data corpus: recipe.toml has no table \[data.corpus\]",
        ),
    ],
)
def test_bad_corpora_are_refused_in_one_line(
    place: Path, damage: Callable[[], object], arguments: list[str], message: str
) -> None:
    damage()
    assert_refused(run(*arguments), message)
    assert not (place / "run").exists()


def assert_refused(result: Result, message: str) -> None:
    assert isinstance(result.exception, ValueError), result.output
    assert re.search(message, str(result.exception)), result.exception
    assert "\n" not in str(result.exception)
