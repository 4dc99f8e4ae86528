"""A recipe is checked before anything runs, and what is wrong is said in one line."""

import copy
import os
import pickle
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest
import tomli_w
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from evo2cli.errors import UserError
from evo2cli.training.recipe import Recipe
from evo2cli.training.recipe_file import find_recipe, read_recipe, read_shape
from stripedhyena2 import ConfigError, InputError, ModelConfig, StripedHyena2, save
from tests.hostile import hostile, refusal, values

RECIPES = Path(__file__).parents[3] / "recipes"
GOOD = """
model = "tiny"
output = "run"
[data]
sources = [{ path = "tokens" }]
[batch]
length = 32
sequences = 4
[optimizer]
steps = 10
warmup_steps = 2
learning_rate = 1e-3
min_learning_rate = 1e-4
"""
SHAPE = """
stripes = "SM"
width = 8
num_heads = 2
mlp_width = 8
num_short_filter_groups = 2
num_medium_filter_groups = 2
context = 256
"""


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    (tmp_path / "tiny.toml").write_text(SHAPE)
    file = tmp_path / "recipe.toml"
    file.write_text(GOOD)
    return file


def num_parameters(recipe_path: Path) -> int:
    config = read_shape(read_recipe(recipe_path))
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in StripedHyena2(config).parameters())


SHIPPED = sorted(file for file in RECIPES.rglob("*.toml") if file.parent.name != "models")


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_recipe_reads_and_its_shape_builds(path: Path) -> None:
    recipe = read_recipe(path)
    assert recipe.batch.length <= read_shape(recipe).context
    assert num_parameters(path) > 0


def test_the_built_in_models_and_the_toy_are_as_small_as_promised() -> None:
    assert num_parameters(RECIPES / "nano.toml") <= 2_000_000  # 4 MB in bf16
    assert 12_000_000 <= num_parameters(RECIPES / "mini.toml") <= 16_000_000  # 32 MB
    assert num_parameters(RECIPES / "toy.toml") <= 300_000


def test_layouts_that_are_compared_differ_in_layout_alone() -> None:
    """As many parameters within 1 %, the same depth, and the same run."""
    names = ("se-mr-li", "li-li-li", "se-se-li", "mr", "transformer")
    paths = [RECIPES / "ablations" / f"mini-{name}.toml" for name in names]
    sizes = [num_parameters(path) for path in paths]
    assert max(sizes) <= 1.01 * min(sizes)
    assert sizes[0] == num_parameters(RECIPES / "mini.toml")
    recipes = [read_recipe(path) for path in paths]
    stripes = {read_shape(recipe).stripes for recipe in recipes}
    assert len(stripes) == len(names)
    assert len({len(text) for text in stripes}) == 1
    rest = [recipe.model_dump(exclude={"output", "shape"}) for recipe in recipes]
    assert all(values == rest[0] for values in rest)
    assert recipes[0].optimizer.steps * recipes[0].batch.tokens >= 500_000_000


@pytest.mark.parametrize(("name", "millions"), [("1.5m", 1.5), ("5m", 5), ("15m", 15)])
def test_the_sizes_of_the_scaling_line_are_as_named_on_equal_tokens(
    name: str, millions: float
) -> None:
    path = RECIPES / "ablations" / f"scale-{name}.toml"
    assert num_parameters(path) == pytest.approx(millions * 1e6, rel=0.03)
    recipe, first = read_recipe(path), read_recipe(RECIPES / "ablations" / "mini-se-mr-li.toml")
    assert (recipe.batch, recipe.data) == (first.batch, first.data)
    assert recipe.optimizer.steps == first.optimizer.steps


def test_a_recipe_is_found_by_path_and_else_among_the_shipped(
    recipe_file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_recipe(recipe_file) == recipe_file
    assert find_recipe(Path("recipes/toy.toml")).samefile(RECIPES / "toy.toml")
    with pytest.raises(
        UserError, match=r"recipes/tao.toml: no such recipe; \d+ are shipped, such as toy.toml, "
    ):
        find_recipe(Path("recipes/tao.toml"))
    assert find_recipe(Path("toy")).samefile(RECIPES / "toy.toml")
    with pytest.raises(UserError, match="is a folder, not a recipe"):
        find_recipe(tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["batch.lenght=5"], r"\[batch\] has no key 'lenght'; did you mean 'length'\?"),
        (
            ["optimizer.learning_rate=nan"],
            r"optimizer.learning_rate = nan: must be a finite number",
        ),
        ([r'output="a\u0000b"'], r"output = .*: a path cannot contain the character NUL"),
        (["batch.sequences=9999999999"], r"batch\.sequences = 9999999999: .*1048576"),
        (
            ["batch.sequences=1000000", "batch.length=1000000"],
            r"sequences = 1000000 of length = 1000000 are 1,000,000,000,000 positions per step",
        ),
        (["modle='x'"], r"the recipe has no key 'modle'; did you mean 'model'\?"),
        (["batch.zzz=1"], r"\[batch\] has no key 'zzz'; its keys are length, sequences"),
        (["batch.sequences=0"], r"batch\.sequences = 0: "),
        (["batch.micro_sequences=3"], "micro_sequences = 3 does not divide sequences = 4"),
        (
            ["batch.length=256", "data.longest_repeat=129"],
            "data.longest_repeat = 129 is more than half of batch.length = 256",
        ),
        (["optimizer.warmup_steps=10"], "warmup_steps = 10 must be below steps = 10"),
        (["optimizer.min_learning_rate=0.5"], r"min_learning_rate = 0\.5 is above"),
        (["optimizer.betas=[0.9, 1.0]"], r"optimizer\.betas\.1 = 1\.0: "),
        (["precision.compute='fp4'"], r"precision\.compute = 'fp4': "),
        (["data.sources=[]"], r"data\.sources = \[\]: "),
        (["data=3"], r"data = 3: "),
        (["data.sources=[{path='a', wieght=1}]"], r"\[data.sources.0\] .*did you mean 'weight'\?"),
        (["data.sources=[{path='a', weight=1}, {path='b'}]"], "source b has no weight, but others"),
        (["data.sources=[{path='a', weight=0}]"], r"data\.sources\.0\.weight = 0: "),
        (["precision.fp8=true", "precision.compute='fp32'"], 'fp8 = true needs compute = "bf16"'),
        (["optimizer.ema=0.9", "parallel.zero=1"], r"ema needs whole .* but parallel\.zero = 1"),
        (["parallel.zero=4"], r"parallel\.zero = 4: "),
        (["batch.length='8k'"], r"batch\.length = '8k': .*integer"),
        (["init='nano'"], "needs either model .* or init"),
        (["seed=-1"], r"seed = -1: "),
        (["seed.x=1", "seed=1"], r"seed\.x=1"),
    ],
)
def test_what_cannot_be_is_one_line_with_file_table_and_key(
    recipe_file: Path, settings: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        read_recipe(recipe_file, ["seed=0", *settings])
    assert "\n" not in str(caught.value)


def number_keys(table: type[BaseModel], *prefix: str) -> Iterator[tuple[str, ...]]:
    """The keys of a table, and of the tables in it, whose values are single numbers."""
    for key, field in table.model_fields.items():
        if get_origin(field.annotation) in (list, tuple, dict):
            continue
        of_union = [getattr(each, "__origin__", each) for each in get_args(field.annotation)]
        values = {field.annotation, *of_union}  # without what is annotated
        if values & {int, float} or 0 in values:
            yield (*prefix, key)
        for inner in values:
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                yield from number_keys(inner, *prefix, key)


@pytest.mark.parametrize("key", [*number_keys(Recipe)], ids=".".join)
def test_true_is_not_a_number(key: tuple[str, ...]) -> None:
    values: Any = True
    for part in reversed(key):
        values = {part: values}
    with pytest.raises(ValidationError) as caught:
        Recipe.model_validate(values)
    (message,) = (error["msg"] for error in caught.value.errors() if error["loc"] == key)
    assert "must be a number, not true or false" in message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model = ", "recipe.toml: not TOML"),
        (
            GOOD.replace("steps = 10\n", "", 1),
            r"recipe.toml: the key 'optimizer\.steps' is missing",
        ),
        (GOOD.replace('model = "tiny"\n', ""), "recipe.toml: needs either model"),
    ],
)
def test_a_broken_file_is_named(recipe_file: Path, text: str, message: str) -> None:
    recipe_file.write_text(text)
    with pytest.raises(UserError, match=message):
        read_recipe(recipe_file)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD.replace("learning_rate = 1e-3", "lerning_rate = 1e-3", 1), r"did you mean 'learning"),
        (r'base = "a\u0000b"', r"base = 'a\\x00b': must be the path of a recipe"),
        ("base = 5", r"base = 5: must be the path of a recipe"),
        ('base = "/dev/zero"', r"/dev/zero: is a pipe or a device, not a file"),
        ('base = "pipe"', r"pipe: is a pipe or a device, not a file"),
        ("x = " + "[" * 5000, r"nested more than 32 deep"),
        ("x" + ".x" * 5000 + " = 1", r"nested more than 32 deep"),
        ("#" * 70_000, r"larger than 65,536 bytes"),
    ],
    ids=lambda text: text[:12],
)
def test_a_recipe_that_never_ends_or_has_no_bound_is_refused(
    recipe_file: Path, text: str, message: str
) -> None:
    os.mkfifo(recipe_file.with_name("pipe"))
    recipe_file.write_text(text)
    assert re.search(message, refusal(lambda: read_recipe(recipe_file), UserError))


def test_bases_are_not_followed_for_ever(recipe_file: Path) -> None:
    for number in range(40):
        recipe_file.with_name(f"{number}.toml").write_text(f'base = "{number + 1}.toml"')
    with pytest.raises(UserError, match=r"is the base of 32 recipes in a row"):
        read_recipe(recipe_file.with_name("0.toml"))


VALUES = tomllib.loads(GOOD)
PLACES = [
    (table, key) for table, inner in VALUES.items() if isinstance(inner, dict) for key in inner
]
TABLES = [
    *VALUES,
    "shape",
    "extend",
    "parallel",
    "memory",
    "guard",
    "tracking",
    "seed",
    "init",
    "base",
]


@hostile
@given(
    st.sampled_from([*PLACES, *[(table, "x") for table in TABLES], *[(key,) for key in TABLES]]),
    values(st.dates()),
)
def test_a_recipe_with_any_value_is_read_or_a_line(
    recipe_file: Path, place: tuple[str, ...], value: object
) -> None:
    changed: dict[str, Any] = copy.deepcopy(VALUES)
    if len(place) == 1:
        changed[place[0]] = value
    else:
        table = changed.get(place[0])
        changed[place[0]] = {**(table if isinstance(table, dict) else {}), place[1]: value}
    recipe_file.write_text(tomli_w.dumps(changed), encoding="utf-8")

    def read() -> None:
        read_shape(read_recipe(recipe_file))

    line = refusal(read, (UserError, InputError))
    assert not line or line.startswith(str(recipe_file.parent))


def test_settings_lie_over_the_file_in_their_order(recipe_file: Path) -> None:
    settings = ["batch.length=64", "batch.length=128", "validation.every=7", "output=else/where"]
    recipe = read_recipe(recipe_file, settings)
    assert (recipe.batch.length, recipe.batch.sequences) == (128, 4)
    assert recipe.validation.every == 7
    assert recipe.output == Path("else/where")
    for setting in ("batch.length", "=3"):
        with pytest.raises(UserError, match=r"must have the form table\.key=value"):
            read_recipe(recipe_file, [setting])


def test_the_shape_comes_from_beside_the_recipe_the_shipped_or_the_weights(
    recipe_file: Path, tiny_config: ModelConfig, tmp_path: Path
) -> None:
    assert read_shape(read_recipe(recipe_file)).stripes == "SM"
    shipped = read_recipe(recipe_file, ["model=models/toy"])
    assert read_shape(shipped).stripes == "SMLA"
    with pytest.raises(UserError, match=r"'models/none': no such shape; .*models/nano"):
        read_shape(read_recipe(recipe_file, ["model=models/none"]))

    save(StripedHyena2.from_seed(tiny_config, seed=0), tmp_path / "weights", {})
    recipe_file.write_text(GOOD.replace('model = "tiny"', f'init = "{tmp_path}/weights"'))
    assert read_shape(read_recipe(recipe_file)) == tiny_config
    (tmp_path / "weights" / "config.toml").unlink()
    with pytest.raises(UserError, match=r"recipe.toml: init: "):
        read_shape(read_recipe(recipe_file))


def test_a_recipe_knows_its_file_however_it_is_copied(recipe_file: Path) -> None:
    recipe = read_recipe(recipe_file)
    changed = recipe.model_copy(update={"seed": 3})
    sent = pickle.loads(pickle.dumps(changed))  # noqa: S301 - our own
    for each in (recipe, changed, sent):
        assert each.file == recipe_file
    assert recipe.with_file(Path("other.toml")).file == Path("other.toml")
    assert recipe.file == recipe_file
    assert not {"file", "_file"} & recipe.model_dump().keys()


@pytest.mark.usefixtures("recipe_file")
def test_a_base_is_changed_key_by_key(tmp_path: Path) -> None:
    """Also from another folder: the base's own shape stays in reach."""
    child = tmp_path / "below" / "child.toml"
    child.parent.mkdir()
    child.write_text('base = "../recipe.toml"\n[shape]\nstripes = "LL"\n[batch]\nlength = 64\n')
    recipe = read_recipe(child, ["optimizer.steps=20"])
    assert (recipe.batch.length, recipe.batch.sequences, recipe.optimizer.steps) == (64, 4, 20)
    assert recipe.model == "../tiny"
    config = read_shape(recipe)
    assert (config.stripes, config.width) == ("LL", 8)

    child.write_text('base = "child.toml"\n')
    with pytest.raises(UserError, match="is its own base"):
        read_recipe(child)
    child.write_text('base = "../none.toml"\n')
    with pytest.raises(UserError, match=r"none.toml: cannot be read"):
        read_recipe(child)


def test_a_changed_shape_is_checked(recipe_file: Path) -> None:
    for setting, message in (
        ("shape.stripe='LL'", r"\[shape\] over tiny\.toml: no key 'stripe' .*'stripes'"),
        ("shape.stripes='XY'", r"stripes = 'XY'"),
        ("shape.num_heads=3", "num_heads = 3 does not divide width = 8"),
    ):
        with pytest.raises(ConfigError, match=message):
            read_shape(read_recipe(recipe_file, [setting]))


@pytest.mark.parametrize(
    ("sequences", "micro", "world", "found"),
    [(8, None, 2, 4), (8, 2, 2, 2), (8, 2, 3, None), (8, 4, 4, None), (6, None, 4, None)],
)
def test_gpus_share_a_step_evenly_or_not_at_all(
    recipe_file: Path, sequences: int, micro: int | None, world: int, found: int | None
) -> None:
    settings = [f"batch.sequences={sequences}"]
    settings += [f"batch.micro_sequences={micro}"] if micro else []
    batch = read_recipe(recipe_file, settings).batch
    if found is None:
        with pytest.raises(
            ValueError, match=f"sequences = {sequences} cannot be shared by {world}"
        ):
            batch.micro(world)
    else:
        assert batch.micro(world) == found
