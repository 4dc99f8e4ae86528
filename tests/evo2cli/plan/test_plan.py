"""`evo2 plan`: every shipped recipe passes it, and what cannot be is said in one line."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from evo2cli.app import app
from evo2cli.data.token_writer import Document, TokenWriter
from evo2cli.errors import UserError
from evo2cli.plan.options import PlanOptions
from evo2cli.plan.run import plan_recipe
from evo2cli.training.recipe_file import read_recipe

RECIPES = Path(__file__).parents[3] / "recipes"
SHIPPED = sorted(
    file.relative_to(RECIPES)
    for file in RECIPES.rglob("*.toml")
    if file.relative_to(RECIPES).parts[0] != "models"
)
GPUS = {"40b": (1024, 2048), "7b": (8, 256), "1b": (1, 8, 128)}


def numbers_of_gpus(recipe: Path) -> tuple[int, ...]:
    if recipe.parts[0] == "extend":
        stage = read_recipe(RECIPES / recipe)
        return (stage.parallel.context * stage.batch.sequences if stage.parallel.zero else 1,)
    return next((gpus for size, gpus in GPUS.items() if size in recipe.stem), (1,))


@pytest.mark.parametrize("recipe", SHIPPED, ids=str)
def test_every_shipped_recipe_fits_the_gpus_it_is_for(recipe: Path) -> None:
    for gpus in numbers_of_gpus(recipe):
        plan = plan_recipe(PlanOptions(recipe="recipes" / recipe, gpus=gpus))
        assert plan["fits"], plan["advice"]
        assert plan["memory"]["total"] < 0.95 * plan["memory"]["capacity"]


@pytest.mark.parametrize("recipe", SHIPPED, ids=str)
def test_a_shipped_recipe_says_first_what_it_trains_and_how(recipe: Path) -> None:
    comment = (RECIPES / recipe).read_text().split("\n\n")[0]
    assert comment.startswith("# ")
    command = "extend" if read_recipe(RECIPES / recipe).extend else "train"
    assert f"evo2 {command} recipes/{recipe}" in comment


def test_runs_write_to_folders_of_their_own() -> None:
    outputs = {read_recipe(RECIPES / recipe).output for recipe in SHIPPED}
    assert len(outputs) == len(SHIPPED)


def test_a_page_and_its_json_say_the_same() -> None:
    arguments = ["plan", "40b.toml", "--gpus", "1024", "--price-per-gpu-hour", "2"]
    runner = CliRunner()
    page = runner.invoke(app, arguments)
    plan = json.loads(runner.invoke(app, [*arguments, "--json"]).stdout)
    assert page.exit_code == 0
    assert "16,777,216 tokens per step" in " ".join(page.stdout.split())
    assert f"{plan['run']['dollars']:,.0f} dollars" in page.stdout
    assert plan["run"]["dollars"] == 2 * plan["run"]["gpu_hours"]
    assert "fits" in page.stdout


def test_the_page_tells_what_to_change() -> None:
    page = CliRunner().invoke(app, ["plan", "40b.toml", "--gpus", "256"])
    assert page.exit_code == 0
    assert "does not fit: set batch.micro_sequences = 4" in page.stdout


def test_sources_that_are_here_are_counted(tmp_path: Path) -> None:
    folder = tmp_path / "tokens"
    with TokenWriter(folder) as writer:
        writer.add("train", Document("chr", "a.fa", "+", b"ACGT" * 100, "0" * 64))
        writer.finish({})
    here, missing = f'{{path="{folder}", weight=3}}', '{path="nowhere", weight=1}'
    plan = plan_recipe(
        PlanOptions(recipe=Path("toy.toml"), settings=(f"data.sources=[{here}, {missing}]",))
    )
    found, absent = plan["sources"]
    assert (found["tokens"], found["share"]) == (401, 0.75)
    assert found["epochs"] == 0.75 * plan["run"]["tokens"] / 401
    assert (absent["found"], absent["epochs"], absent["share"]) == (False, None, 0.25)


@pytest.mark.parametrize(
    ("settings", "gpus", "gpu", "line"),
    [
        (["batch.lenght=1"], 1, "h200", "[batch] has no key 'lenght'; did you mean 'length'?"),
        (['batch.length="8k"'], 1, "h200", "batch.length = '8k': must be a valid integer"),
        (["optimizer.learning_rate=3"], 1, "h200", "optimizer.learning_rate = 3: must be"),
        (["batch.micro_sequences=3"], 1, "h200", "micro_sequences = 3 does not divide sequences"),
        ([], 96, "h200", "batch.sequences = 256 cannot be shared by 96 GPUs"),
        ([], 96, "h200", "the nearest possible numbers of GPUs are 64 and 128"),
        (["batch.length=16_384"], 1, "h200", "longer than the model's context of 8,192"),
        (["precision.fp8=true"], 1, "a100-80gb", "precision.fp8 = true: a100-80gb has no FP8"),
        (["optimizer.ema=0.99"], 8, "h200", "optimizer.ema needs whole weights in one process"),
    ],
)
def test_what_cannot_be_is_one_line_with_file_table_and_key(
    settings: list[str], gpus: int, gpu: str, line: str
) -> None:
    with pytest.raises(UserError) as error:
        plan_recipe(PlanOptions(recipe=Path("1b.toml"), gpus=gpus, gpu=gpu, settings=settings))
    message = str(error.value)
    assert line in message
    assert "1b.toml: " in message
    assert "\n" not in message


@pytest.mark.parametrize("size", ["1b", "40b"])
def test_without_a_number_the_fewest_gpus_that_fit_are_taken(size: str) -> None:
    plan = plan_recipe(PlanOptions(recipe=Path(f"{size}.toml")))
    assert plan["fits"]
    assert plan["mesh"]["gpus"] == {"1b": 1, "40b": 512}[size]
    if size == "40b":
        half = plan_recipe(PlanOptions(recipe=Path(f"{size}.toml"), gpus=256))
        assert not half["fits"]


def test_an_unknown_gpu_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UserError, match="--gpu tpu: unknown; choose one of b200, h200"):
        plan_recipe(PlanOptions(recipe=Path("1b.toml"), gpu="tpu"))
