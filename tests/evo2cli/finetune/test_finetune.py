"""`evo2 finetune`: every task and method from a table to a model that predicts, through kills."""

import json
import os
import shutil
import signal
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from evo2cli.errors import UserError
from evo2cli.finetune import frozen
from evo2cli.finetune.data import DataRecipe, read_data
from evo2cli.finetune.folder import FACTS, find_tuned, read_facts
from evo2cli.finetune.metrics import measure
from evo2cli.finetune.options import Base, FinetuneOptions, HeadKind, Method, ReadStrand, Weights
from evo2cli.finetune.run import prepare
from evo2cli.finetune.run import tune as run_recipe
from evo2cli.finetune.tasks import Cut, SplitBy, Task
from evo2cli.predict.run import predict_table
from evo2cli.training import space, state
from evo2cli.training.plan.disk import disk
from evo2cli.training.plan.estimate import count_sizes, make_setup
from evo2cli.training.recipe import Data, Finetune, LabelledData, Source
from evo2cli.training.recipe_file import read_recipe
from evo2cli.training.state import RunFolder
from stripedhyena2.checkpoint import read_checkpoint
from tests.evo2cli.finetune.conftest import SHAPE, Run, motifs, small_table, write_table
from tests.ranks import Hold, World

LABELS = {"multilabel": "y1,y2", "regress": "y1,y2"}
METHODS = ["lora", "full", "head"]
BEYOND_A_CHECKPOINT = Hold(RunFolder, "log", call=3)


def recipe_of(table: Path, *labels: str) -> DataRecipe:
    """A table that is divided by chance."""
    return DataRecipe(
        data=Data(sources=[Source(path=table)]),
        finetune=LabelledData(labels=list(labels), split="random"),
    )


KINDS = ["classify", "multilabel", "regress", "tokens", "pairs"]


@pytest.mark.parametrize(
    ("kind", "method"),
    [
        # What differs between tasks is the same for all methods.
        pytest.param(kind, method, marks=[] if method == METHODS[i % 3] else pytest.mark.slow)
        for i, kind in enumerate(KINDS)
        for method in METHODS
    ],
)
def test_a_table_becomes_a_model_that_predicts(
    tune: Run, tmp_path: Path, kind: str, method: str
) -> None:
    table = small_table(tmp_path / "x.tsv", kind)
    report = tune(table, method=method, label_cols=LABELS.get(kind))
    assert report["finished"]
    assert report["task"] == ("classify" if kind == "pairs" else kind)
    assert {"chance", "frozen probe", "model"} <= report["results"].keys()
    folder = tmp_path / "run" / "final"
    assert (folder / "adapter").is_dir() == (method == "lora")
    assert (folder / "model").is_dir() == (method == "full")

    # What is on disk predicts what the report says.
    labels = LABELS[kind].split(",") if kind in LABELS else []
    data = read_data(recipe_of(table, *labels), quiet=True)
    predicted = predict_table(tmp_path / "run", data.test, device="cpu")
    found = measure(data.labels, data.test.labels, predicted)
    for name, estimate in found.items():
        assert estimate.value == pytest.approx(report["results"]["model"][name][0], abs=1e-4), name


@pytest.mark.parametrize(
    "options",
    [
        {"pool": "attention"},
        {"pool": "max", "strand": "both"},
        {"pool": "center:6", "layer": "blocks.1.mlp.up", "head": "mlp"},
        {"base": "fp8", "rslora": True, "weights": "balanced", "targets": ".*project_in"},
        *(
            pytest.param(options, marks=pytest.mark.slow)
            for options in (
                {"pool": "last", "layer": "norm"},
                {"layer": "0", "dora": True, "dropout": 0.2},
                {"base": "bf16"},
            )
        ),
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_models_differ_as_asked_and_predict(
    tune: Run, tmp_path: Path, options: dict[str, Any]
) -> None:
    table = small_table(tmp_path / "x.tsv", "classify")
    report = tune(table, method="lora", lr=1e-3, **options)
    data = read_data(recipe_of(table), quiet=True)
    predicted = predict_table(tmp_path / "run", data.test, device="cpu")
    found = measure(data.labels, data.test.labels, predicted)
    within = 1e-4 if "base" not in options else 0.3
    assert found["auroc"].value == pytest.approx(report["results"]["model"]["auroc"][0], abs=within)


@pytest.mark.parametrize(
    ("kind", "pool"), [("classify", "mean"), ("classify", "center:5"), ("tokens", "mean")]
)
def test_both_strands_do_not_depend_on_the_strand_given(
    tune: Run, tmp_path: Path, kind: str, pool: str
) -> None:
    table = small_table(tmp_path / "x.tsv", kind)
    tune(table, method="lora", strand="both", pool=pool, lr=1e-2)
    examples = read_data(recipe_of(table), quiet=True).examples
    complement = str.maketrans("ACGT", "TGCA")
    mirrored = [sequence.translate(complement)[::-1] for sequence in examples.sequences]
    turned = type(examples)(examples.names, mirrored)
    forward, backward = (
        predict_table(tmp_path / "run", each, device="cpu") for each in (examples, turned)
    )
    for one, other in zip(forward, backward, strict=True):
        there = other[::-1] if kind == "tokens" else other
        np.testing.assert_allclose(one, there, atol=1e-5)


def test_the_best_layer_is_chosen_by_training_examples(tune: Run, tmp_path: Path) -> None:
    report = tune(small_table(tmp_path / "x.tsv", "classify"), method="head", layer="best")
    scores = {row["layer"]: row["score"] for row in report["base"]["layers"]}
    assert list(scores) == [f"blocks.{index}" for index in range(SHAPE.depth)]
    assert report["base"]["layer"] == max(scores, key=scores.__getitem__)


class KilledError(Exception):
    """Stands for the end of the process."""


@pytest.mark.parametrize("method", METHODS)
def test_a_killed_run_goes_on_to_the_same_end(
    tune: Run, tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = small_table(tmp_path / "x.tsv", "classify")
    options = {"method": method, "dropout": 0.2, "head": "mlp", "steps": 6, "validations": 3}
    whole = tune(table, "whole", **options)
    log, calls = RunFolder.log, iter(range(100))

    def killed(folder: RunFolder, record: dict[str, Any]) -> None:
        if next(calls) == 3:
            raise KilledError
        log(folder, record)

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "log", killed)
        with pytest.raises(KilledError):
            tune(table, "cut", **options)
    assert not (tmp_path / "cut" / "final").exists()
    cut = tune(table, "cut", **options)
    same(tmp_path / "cut", tmp_path / "whole")
    assert {**cut, "output": 0, "seconds": 0} == {**whole, "output": 0, "seconds": 0}


def same(one: Path, other: Path) -> None:
    """Both runs have the same weights, bit for bit."""
    files = sorted(file.relative_to(one / "final") for file in (one / "final").rglob("*.safe*"))
    assert files
    for file in files:
        torch.testing.assert_close(
            load_file(one / "final" / file), load_file(other / "final" / file), rtol=0, atol=0
        )


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_kill_nine_and_the_same_command_give_the_same_weights(
    base: str, tmp_path: Path, method: str
) -> None:
    small_table(tmp_path / "x.tsv", "classify", count=100)

    def command(output: str) -> list[str]:
        words = f"finetune x.tsv --model {base} --method {method} -O {output} --device cpu"
        return [
            *words.split(),
            *["--split", "random", "--steps", "8", "--validations", "4", "--batch", "8"],
        ]

    killed = World(1, tmp_path, "killed", command("cut"), BEYOND_A_CHECKPOINT)
    assert killed.end_held(signal.SIGKILL) == [-signal.SIGKILL]
    assert not (tmp_path / "cut" / "final").exists()
    for output in ("cut", "whole"):
        codes, said = World(1, tmp_path, f"{output}-log", command(output)).finish()
        assert not any(codes), said
        assert ("resuming from step" in said) == (output == "cut")
    same(tmp_path / "cut", tmp_path / "whole")


@pytest.mark.slow
def test_other_ranks_go_on_with_a_run(base: str, tmp_path: Path) -> None:
    small_table(tmp_path / "x.tsv", "classify", count=100)
    words = f"finetune x.tsv --model {base} --method lora -O run --device cpu --split random"
    command = [*words.split(), "--steps", "8", "--validations", "4", "--batch", "8"]
    World(1, tmp_path, "killed", command, BEYOND_A_CHECKPOINT).end_held(signal.SIGKILL)
    codes, said = World(2, tmp_path, "two", command).finish()
    assert not any(codes), said
    assert "was written by 1 x plain with ZeRO 0, now 2 x plain" in said


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a table, where runs of a single process are kept by their method."""
    folder = tmp_path_factory.mktemp("ranks")
    small_table(folder / "x.tsv", "classify", count=100)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("lora", []),
        ("lora", ["--set", "parallel.context=2"]),
        ("full", []),
        ("full", ["--set", "parallel.zero=3"]),
    ],
    ids=["data", "context", "zero1", "zero3"],
)
def test_two_ranks_are_one(
    place: Path, base: str, tmp_path: Path, method: str, settings: list[str]
) -> None:
    if method == "full":
        pytest.importorskip("deepspeed")
    words = f"finetune x.tsv --model {base} --method {method} --device cpu --split random --steps 4"
    command = [*words.split(), "--batch", "8", "--lr", "5e-4", "--validations", "2"]
    one, two = place / method, tmp_path / "two"
    if not one.exists():
        codes, said = World(1, place, method, [*command, "-O", str(one)]).finish()
        assert not any(codes), said
    codes, said = World(2, place, "two", [*command, "-O", str(two), *settings]).finish()
    assert not any(codes), said
    alone, shared = (json.loads((run / "report.json").read_text()) for run in (one, two))
    assert shared["best"]["value"] == pytest.approx(alone["best"]["value"], abs=1e-4)
    heads = [load_file(run / "final" / "head.safetensors") for run in (one, two)]
    torch.testing.assert_close(heads[1], heads[0], rtol=1e-3, atol=1e-5)


def test_train_runs_the_recipe_that_was_written(
    tune: Run, tmp_path: Path, command_line: Callable[..., tuple[int, str, str]]
) -> None:
    tune(small_table(tmp_path / "x.tsv", "classify"), method="lora")
    recipe, again = tmp_path / "run" / "recipe.toml", tmp_path / "again"
    arguments = ("train", str(recipe), "-O", str(again), "--device", "cpu", "--json")
    code, out, err = command_line(*arguments)
    assert code == 0, err
    assert json.loads(out)["finished"]
    same(again, tmp_path / "run")
    code, out, err = command_line(*arguments)
    assert "already finished" in err


@pytest.mark.parametrize("method", METHODS)
def test_the_base_may_be_the_result_of_another_recipe(
    tune: Run, base: str, tmp_path: Path, method: str
) -> None:
    tune(small_table(tmp_path / "x.tsv", "classify"), method=method)
    path = tmp_path / "run" / "recipe.toml"
    earlier = path.read_text().replace(str(tmp_path / "run"), str(tmp_path / "earlier"))
    (tmp_path / "earlier.toml").write_text(earlier)
    shutil.copytree(base, tmp_path / "earlier" / "final")
    output = f"output={str(tmp_path / 'again')!r}"
    recipe = read_recipe(path, [f"init={str(tmp_path / 'earlier.toml')!r}", output])
    report = run_recipe(recipe, "cpu")
    assert report["base"]["model"] == str(tmp_path / "earlier" / "final")
    same(tmp_path / "again", tmp_path / "run")
    predicted, again = (
        predict_table(tmp_path / run, read_data(recipe_of(tmp_path / "x.tsv")).test, device="cpu")
        for run in ("run", "again")
    )
    np.testing.assert_array_equal(predicted, again)


@pytest.mark.parametrize(
    ("key", "choices"),
    [
        ("task", [*Task]),
        ("split", [*SplitBy]),
        ("cut", [*Cut]),
        ("method", [*Method]),
        ("strand", [*ReadStrand]),
        ("head", [*HeadKind]),
        ("weights", [*Weights]),
        ("base", [base for base in Base if base is not Base.AUTO]),
    ],
)
def test_options_and_recipes_have_the_same_choices(key: str, choices: list[str]) -> None:
    kind: Any = Finetune.model_fields[key].annotation
    plain = next((part for part in get_args(kind) if get_args(part)), kind)  # without None
    assert sorted(get_args(plain)) == sorted(map(str, choices))


def test_the_recipe_says_which_examples_the_run_had(tune: Run, tmp_path: Path) -> None:
    """Also where a setting changes how they are read and divided."""
    table = small_table(tmp_path / "x.tsv", "classify")
    settings = ("finetune.fractions=[0.5, 0.3, 0.2]", "finetune.cut=end", "batch.length=22")
    report = tune(table, method="head", settings=("seed=3", *settings))
    recipe = read_recipe(tmp_path / "run" / "recipe.toml")
    data = read_data(DataRecipe.of(recipe), quiet=True)
    assert report["examples"] == data.sizes == {"train": 30, "valid": 18, "test": 12}
    assert report["split"] == data.split.explanation
    assert json.loads((tmp_path / "run" / "run.json").read_text())["examples"] == data.digest
    assert data.longest == 22


@pytest.mark.parametrize(
    ("setting", "option"),
    [
        ("optimizer.steps=10", {"steps": 10}),
        ("optimizer.learning_rate=1e-5", {"lr": 1e-5}),
        ("batch.sequences=4", {"batch": 4}),
        ("batch.length=22", {"length": 22}),
        ("finetune.method=full", {"method": "full"}),
    ],
)
def test_a_setting_gives_the_recipe_of_the_option(
    base: str, tmp_path: Path, setting: str, option: dict[str, Any]
) -> None:
    """So warmup, number of steps, intervals and rates that are derived from it follow it, too."""
    usual: dict[str, Any] = {
        "data": small_table(tmp_path / "x.tsv", "classify"),
        "model": base,
        "device": "cpu",
        "split": "random",
        "output": tmp_path / "run",
    }
    by_setting, _ = prepare(FinetuneOptions(**usual, settings=(setting,)))
    by_option, _ = prepare(FinetuneOptions(**usual, **option))
    assert by_setting == by_option
    assert by_option != prepare(FinetuneOptions(**usual))[0]


def test_the_best_weights_are_kept_and_a_run_gives_up(tune: Run, tmp_path: Path) -> None:
    options = {"lr": 1e-9, "steps": 12, "validations": 12, "patience": 3}
    report = tune(small_table(tmp_path / "x.tsv", "classify"), method="lora", **options)
    assert report["steps"] == 4  # the first, and three that were not better
    assert report["best"]["step"] == 1
    assert read_facts(find_tuned(tmp_path / "run") / FACTS)["step"] == 1


@pytest.mark.slow
def test_adapters_learn_what_a_frozen_probe_cannot(tune: Run, tmp_path: Path) -> None:
    table = write_table(tmp_path / "x.tsv", ["sequence", "label"], motifs(1000))
    report = tune(table, method="lora", lr=5e-3, steps=400, batch=32, validations=10)
    accuracy = {row: metrics["accuracy"][0] for row, metrics in report["results"].items()}
    assert accuracy["frozen probe"] < 0.7
    assert accuracy["model"] > 0.85


def test_scratch_starts_from_other_weights(tune: Run, tmp_path: Path) -> None:
    table = small_table(tmp_path / "x.tsv", "classify")
    losses = {}
    for scratch in (False, True):
        report = tune(table, f"run-{scratch}", method="full", scratch=scratch)
        losses[scratch] = report["base"]["loss"]
    assert losses[False] < 1.6
    assert losses[True] > 2


def table_of(tmp_path: Path, text: str) -> Path:
    (tmp_path / "x.tsv").write_text(text)
    return tmp_path / "x.tsv"


SEQUENCES = ["ACGTTGCA", "TTGACCAG", "GGATCCAT", "CATTAGCA", "TGCCATTG", "AACCGTAT"] * 4


def rows(labels: list[str]) -> str:
    pairs = zip(SEQUENCES, labels * 30, strict=False)
    return "sequence\tlabel\n" + "".join(
        f"{'ACGT'[i % 4]}{'TGCA'[i // 4 % 4]}{'CA'[i // 16]}{s}\t{label}\n"
        for i, (s, label) in enumerate(pairs)
    )


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("seq_id\tlabel\na\tb\n", {}, "its columns: seq_id, label"),
        (rows(["a"]), {}, "at least two classes"),
        (rows(["a", "b"]), {"layer": "blocks.77"}, "no such layer"),
        (rows(["a", "b"]), {"layer": "0,1"}, "reads one layer, not 2"),
        (rows(["a", "b"]), {"pool": "median"}, "--pool median: must be one of mean"),
        (rows(["a", "b"]), {"targets": "dense", "method": "lora"}, "no module matches"),
        (rows(["a", "b"]), {"settings": ("batch.length=500",)}, "longer than the model's context"),
        (rows(["a", "b"]), {"settings": ("optimizer.steps=ten",)}, r"optimizer\.steps"),
    ],
)
def test_what_cannot_be_learned_is_said_in_one_line(
    tune: Run, tmp_path: Path, text: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        tune(table_of(tmp_path, text), **{"method": "head", **options})
    assert "\n" not in str(raised.value)


def test_a_name_that_no_recipe_can_hold_is_refused(tune: Run, tmp_path: Path) -> None:
    table = table_of(tmp_path, rows(["a", "b"])).rename(tmp_path / os.fsdecode(b"\xff.tsv"))
    with pytest.raises(UserError, match=r"^path = .*tsv.: a name that is not UTF-8") as raised:
        tune(table, method="head")
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "run").exists()


@pytest.fixture
def genome(tmp_path: Path) -> Path:
    """Three contigs, of which each run of G and C is a feature of genes.bed."""
    random, lines = np.random.default_rng(3), []
    with (tmp_path / "genome.fa").open("w") as file:
        for name in ("chr1", "chr2", "chr3"):
            text = "".join(random.choice(list("ACGT"), 900))
            file.write(f">{name}\n{text}\n")
            lines += [f"{name}\t{i}\t{i + 1}\n" for i, base in enumerate(text) if base in "GC"]
    (tmp_path / "genes.bed").write_text("".join(lines))
    return tmp_path / "genome.fa"


def test_contigs_of_an_annotated_genome_are_held_out(
    tune: Run, tmp_path: Path, genome: Path
) -> None:
    options = {"features": tmp_path / "genes.bed", "length": 30, "method": "head", "split": None}
    report = tune(genome, **options, valid_contigs="2", test_contigs="chr3")
    assert report["examples"] == {"train": 30, "valid": 30, "test": 30}
    assert report["split"] == "split by contig: 2 for valid, chr3 for test"
    # Everything is told by the base itself, which a baseline sees.
    assert report["results"]["4-mers, linear"]["f1 feature"][0] > 0.95
    recipe = read_recipe(tmp_path / "run" / "recipe.toml")
    data = read_data(DataRecipe.of(recipe), quiet=True)
    assert set(data.test.chromosomes or []) == {"chr3"}
    assert set(data.valid.chromosomes or []) == {"chr2"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"split": SplitBy.RANDOM},
            "--split random: the data are already split by contigs .2,3.",
        ),
        ({"test": Path("x.tsv")}, "--test x.tsv: the data are already split by contigs .2,3."),
        (
            {"valid": Path("x.tsv"), "valid_contigs": None, "test_contigs": None},
            "--valid x.tsv: not with --features, .* split .*genome.fa with",
        ),
        (
            {"features": None, "task": Task.LM},
            "2: --valid-contigs and .* for --task lm, give held-out",
        ),
    ],
)
def test_a_genome_is_divided_in_one_way(
    tune: Run, tmp_path: Path, genome: Path, options: dict[str, Any], message: str
) -> None:
    usual = {"features": tmp_path / "genes.bed", "valid_contigs": "2", "test_contigs": "3"}
    with pytest.raises(UserError, match=message) as raised:
        tune(genome, **{**usual, "split": None, **options})
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "run").exists()


def test_a_base_that_was_not_loaded_is_noticed(
    tune: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frozen, "base_loss", lambda *_: 6.24)
    with pytest.raises(UserError, match=r"6.24 nats per base is worse than guessing \(1.39\)"):
        tune(small_table(tmp_path / "x.tsv", "classify"))


def test_another_run_in_the_folder_stays_as_it_is(tune: Run, tmp_path: Path) -> None:
    table = small_table(tmp_path / "x.tsv", "classify")
    tune(table, method="head")
    before = (tmp_path / "run" / "recipe.toml").read_bytes()
    with pytest.raises(UserError, match=r"has a run with .*choose another"):
        tune(table, method="head", seed=3)
    assert (tmp_path / "run" / "recipe.toml").read_bytes() == before
    shutil.rmtree(tmp_path / "run" / "final")


def test_the_best_weights_are_counted_before_a_run_starts(
    tune: Run, tmp_path: Path, base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As large as they are on disk, and not again once they are there."""
    table = small_table(tmp_path / "x.tsv", "classify")
    tune(table, method="lora")
    recipe = read_recipe(tmp_path / "run" / "recipe.toml")
    config = read_checkpoint(base).config
    needed = disk(recipe, count_sizes(recipe, config), make_setup(recipe, config, 1))
    file = tmp_path / "run" / "final" / "adapter" / "adapter_model.safetensors"
    assert needed.best == sum(tensor.nbytes for tensor in load_file(file).values())
    again = recipe.model_copy(update={"output": tmp_path / "again"})
    monkeypatch.setattr(space, "free_bytes", lambda _folder: needed.peak)
    space.check_output(again, config, 1)
    monkeypatch.setattr(space, "free_bytes", lambda _folder: needed.peak - 1)
    with pytest.raises(UserError, match="and the best model need"):
        space.check_output(again, config, 1)
    (again.output / "best").mkdir(parents=True)
    space.check_output(again, config, 1)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("classify", {"method": "head"}),
        ("classify", {"method": "lora"}),
        ("classify", {"method": "head", "layer": "blocks.1.mlp.up", "strand": "both"}),
        ("tokens", {"method": "head", "layer": "blocks.1.mixer.project_in"}),
        ("tokens", {"method": "lora"}),
        ("pairs", {"method": "head", "layer": "best"}),
    ],
    ids=["head", "probe", "wide", "bases", "some-bases", "pairs"],
)
def test_features_are_counted_before_a_run_starts(
    tune: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    options: dict[str, Any],
) -> None:
    """To the byte, and not again once they are there."""
    table = small_table(tmp_path / "x.tsv", kind)
    asked: list[int] = []
    check = space.check_output

    def note(*given: Any, others: int) -> None:
        asked.append(others)
        check(*given, others=others)

    monkeypatch.setattr(state, "check_output", note)
    tune(table, **options)
    written = [load_file(file) for file in (tmp_path / "run").glob("features-*.safetensors")]
    assert asked == [sum(tensor.nbytes for part in written for tensor in part.values())]
    (tmp_path / "run" / "final").rename(tmp_path / "run" / "best")  # as if it were not finished
    tune(table, **options)
    assert asked[1] == 0
    monkeypatch.setattr(space, "free_bytes", lambda _folder: 0)
    with pytest.raises(
        UserError, match=r"the best model and \S+ [kM]B of features of the base need"
    ):
        tune(table, output="again", **options)
    assert not (tmp_path / "again").exists()


def test_a_disk_takes_checkpoints_and_features(tune: Run, tmp_path: Path, base: str) -> None:
    """A byte less than both is too little."""
    tune(small_table(tmp_path / "x.tsv", "classify"), method="head", head="mlp")
    recipe = read_recipe(tmp_path / "run" / "recipe.toml")
    config = read_checkpoint(base).config
    needed = disk(recipe, count_sizes(recipe, config), make_setup(recipe, config, 1))
    weights = load_file(tmp_path / "run" / "final" / "head.safetensors")
    trained = sum(tensor.nbytes for name, tensor in weights.items() if not name.endswith("_F"))
    assert needed.best == pytest.approx(trained, rel=0.05)  # classes and biases are not counted
    again = recipe.model_copy(update={"output": tmp_path / "again"})
    for spare, fits in ((0, True), (-1, False)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(space, "free_bytes", lambda _, spare=spare: needed.peak + 1000 + spare)
            with nullcontext() if fits else pytest.raises(UserError, match="of features of the"):
                space.check_output(again, config, 1, others=1000)
