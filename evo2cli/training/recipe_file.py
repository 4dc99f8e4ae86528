"""Find, read and validate recipe files, including the base recipes they inherit from."""

import difflib
import os
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from evo2cli.errors import UserError
from evo2cli.training.options import RunOptions
from evo2cli.training.recipe import Recipe
from stripedhyena2 import ModelConfig, read_config
from stripedhyena2.checkpoint import named_shape, read_checkpoint
from stripedhyena2.checkpoint.layouts import native
from stripedhyena2.checkpoint.published import recipes_folder
from stripedhyena2.config import change_config
from stripedhyena2.values import fault, read_values, shown

BASE = "base"  # the key that names the recipe to inherit from
_MAX_BASES = 32  # length of a chain of base recipes

T = TypeVar("T", bound=BaseModel)


@contextmanager
def naming(where: Path | str) -> Iterator[None]:
    """Prefix a ValueError with the recipe, or a key of it.

    Raises:
        UserError: In place of any other ValueError.
    """
    try:
        yield
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{where}: {error}") from None


def find_recipe(name: Path) -> Path:
    """The recipe at this path, or else the shipped recipe of this name, with or without .toml.

    Raises:
        UserError: There is neither.
    """
    if name.is_file():
        return name
    if name.is_dir():
        raise UserError(f"{name}: is a folder, not a recipe, which is a .toml file")
    inside = name.relative_to("recipes") if name.parts[:1] == ("recipes",) else name
    folder = recipes_folder()
    for file in (folder / inside, folder / f"{inside}.toml"):
        if file.is_file():
            return file
    files = {file.relative_to(folder) for file in folder.rglob("*.toml")}
    shipped = sorted(str(file) for file in files if file.parts[0] != "models")
    near = difflib.get_close_matches(f"{inside}", shipped, n=3) or shipped[:3]
    raise UserError(
        f"{name}: no such recipe; {len(shipped)} are shipped, such as {', '.join(near)}"
    )


def read_recipe(path: Path, settings: Sequence[str] = ()) -> Recipe:
    """Read and validate a recipe.

    Args:
        path: A TOML file. Its key `base` names a recipe to inherit from, relative to its own
            folder: tables are merged, other values replaced.
        settings: Overrides as `table.key=value`, the value in TOML.

    Raises:
        UserError: With the file, the table and the key.
    """
    return make_recipe(_read_values(path), path, settings)


def make_recipe(values: dict[str, Any], path: Path, settings: Sequence[str] = ()) -> Recipe:
    """Validate the values of a recipe.

    Args:
        values: Tables and keys; `settings` are applied in place.
        path: File of the recipe, for messages.
        settings: As for `read_recipe`.

    Raises:
        UserError: With the file, the table and the key.
    """
    set_values(values, settings)
    return check_values(Recipe, values, path).with_file(path)


def set_values(values: dict[str, Any], settings: Sequence[str]) -> None:
    """Apply overrides to the tables of a recipe, in place; `settings` as for `read_recipe`."""
    for setting in settings:
        _set_value(values, setting)


def check_values(schema: type[T], values: Mapping[str, Any], path: Path) -> T:
    """Validate the tables of a recipe, or the part of them that `schema` covers.

    Raises:
        UserError: With the file, the table and the key.
    """
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        raise UserError(f"{path}: {_explain(error)}") from None


def read_run(options: RunOptions) -> Recipe:
    """Read the recipe of a run, with `--output` and `--data` applied.

    Raises:
        UserError: There is no such recipe, or it is not valid.
    """
    path = find_recipe(options.recipe)
    values = _read_values(path)
    if options.data is not None:
        data = values.get("data")
        corpus = data.get("corpus") if isinstance(data, dict) else None
        if not isinstance(corpus, dict):
            raise UserError(f"--data {options.data}: {path} has no table [data.corpus]")
        corpus["path"] = str(options.data)
    recipe = make_recipe(values, path, options.settings)
    if options.output is not None:
        recipe = recipe.model_copy(update={"output": options.output})
    return recipe


def read_shape(recipe: Recipe) -> ModelConfig:
    """The shape of the model that a recipe trains, after any context extension.

    It comes from the weights of `init`, or from the file that `model` names: next to the recipe, or
    a shipped one. If `init` is a recipe that has not been trained yet, the shape follows from that
    recipe. Nothing is downloaded.

    Raises:
        UserError: There is no such shape.
        ConfigError: It is invalid.
    """
    first, *later = reversed([recipe, *_unfinished(recipe)])
    shape = _extended(first, _first_shape(first))
    for stage in later:
        shape = _extended(stage, shape)
    return shape


def find_initial_weights(recipe: Recipe) -> str:
    """The checkpoint that `init` stands for: itself, or the final weights of the recipe it names.

    Raises:
        UserError: That recipe has not been trained yet; the message lists the commands to run.
    """
    assert recipe.init is not None
    waiting = _unfinished(recipe)
    if waiting:
        commands = [f"evo2 {'extend' if r.extend else 'train'} {r.file}" for r in waiting]
        before = waiting[0]
        raise UserError(
            f"{recipe.file}: init: {before.file} has not been trained yet, {_final(before)} is "
            f"missing; first run {' && '.join(reversed(commands))}"
        )
    initial = _initial_recipe(recipe)
    return recipe.init if initial is None else str(_final(read_recipe(initial)))


def _unfinished(recipe: Recipe) -> list[Recipe]:
    """The recipes to train before this one can start, in reverse order of training."""
    chain = [recipe]
    while (file := _initial_recipe(chain[-1])) is not None:
        if any(file.samefile(later.file) for later in chain):
            raise UserError(f"{recipe.file}: init: {file} would start from its own result")
        before = read_recipe(file)
        if native.is_native(_final(before)):
            break
        chain.append(before)
    return chain[1:]


def _initial_recipe(recipe: Recipe) -> Path | None:
    """The recipe that `init` names, if it is one: next to this recipe, or by `find_recipe`."""
    if recipe.init is None or not recipe.init.endswith(".toml"):
        return None
    beside = Path(os.path.normpath(recipe.file.parent / recipe.init))
    if beside.is_file():
        return beside
    try:
        return find_recipe(Path(recipe.init))
    except UserError as error:
        raise UserError(f"{recipe.file}: init: {error}") from None


def _final(recipe: Recipe) -> Path:
    return recipe.output / "final"


def _extended(recipe: Recipe, shape: ModelConfig) -> ModelConfig:
    """The shape after the context extension of a recipe."""
    extension = recipe.extension(shape.context)
    with naming(f"{recipe.file}: extend.to"):
        return extension.config(shape) if extension else shape


def _first_shape(recipe: Recipe) -> ModelConfig:
    """The shape of the initial weights of a recipe, before any extension."""
    if recipe.init is not None:
        if (named := named_shape(recipe.init)) is not None:
            return named
        source = find_initial_weights(recipe)
        with naming(f"{recipe.file}: init"):
            return read_checkpoint(source).config
    assert recipe.model is not None
    beside = recipe.file.parent / f"{recipe.model}.toml"
    models = recipes_folder() / "models"
    for file in (beside, models / f"{Path(recipe.model).name}.toml"):
        if file.is_file():
            origin = f"{recipe.file}: [shape] over {file.name}"
            return change_config(read_config(file), recipe.shape, origin)
    shipped = ", ".join(sorted(f"models/{file.stem}" for file in models.glob("*.toml")))
    raise UserError(
        f"{recipe.file}: model = {recipe.model!r}: no such shape; choose one of {shipped}"
    )


def _read_values(path: Path, children: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The values of a recipe file, merged over those of its base."""
    values = read_values(path, UserError)
    if path.resolve() in children:
        raise UserError(f"{path}: is its own base")
    if len(children) > _MAX_BASES:
        raise UserError(f"{path}: is the base of {_MAX_BASES} recipes in a row, which is too many")
    base = values.pop(BASE, None)
    if base is None:
        return values
    if not isinstance(base, str) or "\0" in base:
        raise UserError(f"{path}: base = {shown(base)}: must be the path of a recipe, as text")
    file = path.parent / base
    below = _read_values(file, (*children, path.resolve()))
    for key, suffix in (("model", ".toml"), ("init", "")):  # paths are relative to their recipe
        if key in below and (file.parent / f"{below[key]}{suffix}").is_file():
            below[key] = os.path.relpath(file.parent / below[key], path.parent)
    for start, others in (("model", ("init", "extend")), ("init", ("model", "shape"))):
        if start in values:  # overrides where the base recipe starts from
            below = {key: value for key, value in below.items() if key not in others}
    return _merged(below, values)


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merged(merged[key], value) if both else value
    return merged


def _set_value(values: dict[str, Any], setting: str) -> None:
    key, separator, text = setting.partition("=")
    if not separator or not key:
        raise UserError(f"--set {setting}: must have the form table.key=value")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        value = text
    *tables, last = key.strip().split(".")
    for table in tables:
        values = values.setdefault(table, {})
        if not isinstance(values, dict):
            raise UserError(f"--set {setting}: {table!r} is not a table")
    values[last] = value


def _explain(error: ValidationError) -> str:
    """A validation error in one line: table, key, reason, and a similar key if there is one."""
    unknown = [item["loc"] for item in error.errors() if item["type"] == "extra_forbidden"]
    if not unknown:
        return fault(error)
    *tables, key = (str(part) for part in unknown[0])
    known = _keys(tables)
    near = difflib.get_close_matches(key, known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"its keys are {', '.join(known)}"
    table = f"[{'.'.join(tables)}]" if tables else "the recipe"
    return f"{table} has no key {shown(key)}; {hint}"


def _keys(location: Sequence[str]) -> list[str]:
    """The keys of the table at `location`; numbers in it are list indices."""
    table: Any = Recipe
    for part in location:
        if part.isdigit():
            continue
        annotation = table.model_fields[part].annotation
        entries = [entry for entry in get_args(annotation) if _is_table(entry)]
        table = entries[0] if entries else annotation
    return [*table.model_fields]


def _is_table(entry: Any) -> bool:
    return isinstance(entry, type) and issubclass(entry, BaseModel)
