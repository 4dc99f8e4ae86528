"""`evo2 extend RECIPE`: extend the context of weights, train them, and verify the result."""

from pathlib import Path
from typing import Any

from evo2cli.errors import UserError
from evo2cli.extend.verification import verify
from evo2cli.train.run import train_recipe
from evo2cli.training.options import RunOptions
from evo2cli.training.recipe_file import find_initial_weights, find_recipe, read_run


def find_stage(name: str) -> Path | None:
    """The recipe that `name` stands for: a .toml file, or a shipped stage, e.g. 7b-32k.

    Returns:
        None for anything else, which is a checkpoint.
    """
    if name.endswith(".toml"):
        return Path(name)
    if Path(name).exists():
        return None
    try:
        return find_recipe(Path("extend") / f"{name}.toml")
    except UserError:
        return None


def extend_stage(options: RunOptions) -> dict[str, Any]:
    """Train a recipe that has a table `[extend]`, or resume it, then verify the result.

    Returns:
        The result of `train_recipe`; on rank 0 of a finished run also verification, the result of
        `verify`.

    Raises:
        UserError: The recipe has no table `[extend]`, or cannot be run.
        UntrustedNumericsError: A loss or a gradient is not finite.
    """
    recipe = read_run(options)
    if recipe.extend is None:
        raise UserError(
            f"{recipe.file}: has no table [extend]; `evo2 train {recipe.file}` trains it"
        )
    summary = train_recipe(options)
    if not summary["finished"] or summary["rank"] > 0:
        return summary
    before = find_initial_weights(recipe)
    return {**summary, "verification": verify(recipe, before, device=options.device)}
