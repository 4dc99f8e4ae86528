"""A recipe: the TOML that says what a run trains, on what, and for how long."""

import difflib
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from evo2cli.errors import UserError
from stripedhyena2 import CheckpointError, ConfigError, ModelConfig, read_config
from stripedhyena2.checkpoint import read_checkpoint
from stripedhyena2.checkpoint.published import shapes_folder

Count = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Rate = Annotated[float, Field(gt=0, le=1)]
Beta = Annotated[float, Field(ge=0, lt=1)]


class Table(BaseModel):
    """A table of a recipe: frozen, and unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Data(Table):
    """What is read: folders that `evo2 tokenize` wrote, their train and valid splits."""

    tokens: Annotated[list[Path], Field(min_length=1)]
    reverse_complement: bool = True  # turn every window over with probability 1/2
    lowercase_weight: Fraction = 0.1  # loss weight of soft-masked (repeat) bases


class Batch(Table):
    """What one step sees."""

    length: Count  # positions in one window
    sequences: Count  # windows a step
    micro_sequences: Count | None = None  # windows a forward pass; all of a step's when absent

    @model_validator(mode="after")
    def _divides(self) -> "Batch":
        if self.sequences % self.micro:
            raise ValueError(
                f"micro_sequences = {self.micro} does not divide sequences = {self.sequences}"
            )
        return self

    @property
    def micro(self) -> int:
        """Windows a forward pass."""
        return self.micro_sequences or self.sequences


class Optimizer(Table):
    """AdamW with linear warmup and a cosine down to the minimum."""

    steps: Count
    warmup_steps: Annotated[int, Field(ge=0)]
    learning_rate: Rate
    min_learning_rate: Annotated[float, Field(ge=0, le=1)]
    weight_decay: Fraction = 0.1
    betas: tuple[Beta, Beta] = (0.9, 0.95)
    clip: Annotated[float, Field(gt=0)] = 1.0  # global gradient norm

    @model_validator(mode="after")
    def _ordered(self) -> "Optimizer":
        if self.warmup_steps >= self.steps:
            raise ValueError(
                f"warmup_steps = {self.warmup_steps} must be below steps = {self.steps}"
            )
        if self.min_learning_rate > self.learning_rate:
            raise ValueError(
                f"min_learning_rate = {self.min_learning_rate} is above "
                f"learning_rate = {self.learning_rate}"
            )
        return self


class Validation(Table):
    """The same windows of the valid split, every time."""

    every: Count = 500  # steps
    windows: Count = 256


class Checkpoint(Table):
    """What a killed run goes on from."""

    every: Count = 500  # steps
    keep: Count = 2


class Precision(Table):
    """How the forward pass is computed; master weights are always fp32."""

    compute: Literal["fp32", "bf16"] = "bf16"  # bf16: products only, by autocast
    compile: bool = False


class Recipe(Table):
    """A whole run, from a fresh model of some shape, or from weights."""

    model: str | None = None  # a shape: a TOML beside the recipe, or a shipped one
    init: str | None = None  # or weights: what `--model` takes
    output: Path
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    data: Data
    batch: Batch
    optimizer: Optimizer
    validation: Validation = Validation()
    checkpoint: Checkpoint = Checkpoint()
    precision: Precision = Precision()

    @model_validator(mode="after")
    def _one_start(self) -> "Recipe":
        if (self.model is None) == (self.init is None):
            raise ValueError("needs either model (a shape) or init (weights to start from)")
        return self


def find_recipe(name: Path) -> Path:
    """The recipe at this path, or else the shipped one of this name.

    Raises:
        UserError: There is neither.
    """
    if name.is_file():
        return name
    package = Path(__file__).parents[1]
    for folder in (package / "recipes", package.parent / "recipes"):
        if (folder / name.name).is_file():
            return folder / name.name
        if folder.is_dir():
            shipped = ", ".join(sorted(file.stem for file in folder.glob("*.toml")))
            raise UserError(f"{name}: no such recipe; shipped are: {shipped}")
    raise UserError(f"{name}: no such recipe")


def read_recipe(path: Path, settings: Sequence[str] = ()) -> Recipe:
    """Read and check a recipe.

    Args:
        path: A TOML file.
        settings: `table.key=value` (value in TOML), laid over the file.

    Raises:
        UserError: One line that names file, table and key.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"{path}: not TOML ({error})") from None
    for setting in settings:
        _lay_over(values, setting)
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise UserError(f"{path}: {_explain(error.errors()[0])}") from None


def read_shape(recipe: Recipe, recipe_path: Path) -> ModelConfig:
    """The shape of the model a recipe trains: of its `init`, else beside the recipe, else shipped.

    Raises:
        UserError: There is none of this name, or it is not one.
    """
    if recipe.init is not None:
        try:
            return read_checkpoint(recipe.init).config
        except (CheckpointError, ConfigError) as error:
            raise UserError(f"{recipe_path}: init: {error}") from None
    assert recipe.model is not None
    beside = recipe_path.parent / f"{recipe.model}.toml"
    shipped = shapes_folder() / f"{Path(recipe.model).name}.toml"
    for file in (beside, shipped):
        if file.is_file():
            try:
                return read_config(file)
            except ConfigError as error:
                raise UserError(str(error)) from None
    names = ", ".join(sorted(f"models/{file.stem}" for file in shapes_folder().glob("*.toml")))
    raise UserError(f"{recipe_path}: model = {recipe.model!r}: no such shape; shipped are: {names}")


def _lay_over(values: dict[str, Any], setting: str) -> None:
    key, separator, text = setting.partition("=")
    if not separator or not key:
        raise UserError(f"--set {setting}: must read table.key=value")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    *tables, last = key.strip().split(".")
    for table in tables:
        values = values.setdefault(table, {})
        if not isinstance(values, dict):
            raise UserError(f"--set {setting}: {table!r} is not a table")
    values[last] = value


def _explain(error: Any) -> str:
    """One line for one pydantic error: table, key, what is wrong, and a near name."""
    location = [str(part) for part in error["loc"]]
    if error["type"] == "extra_forbidden":
        table: Any = Recipe
        for part in location[:-1]:
            table = table.model_fields[part].annotation
        near = difflib.get_close_matches(location[-1], table.model_fields, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(table.model_fields)}"
        table_name = f"[{'.'.join(location[:-1])}]" if location[:-1] else "the recipe"
        return f"{table_name} has no key {location[-1]!r}; {hint}"
    message = error["msg"].removeprefix("Value error, ")
    given = "" if error["type"] in ("missing", "value_error") else f" = {error['input']!r}"
    where = ".".join(location) or "the recipe"
    return f"{where}{given}: {message}"
