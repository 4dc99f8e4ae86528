"""From a recipe to a trained model."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evo2cli import __version__, console
from evo2cli.data.loader import Bytes
from evo2cli.data.tokens import TokenSet
from evo2cli.errors import UserError
from evo2cli.training.loop import Trainer
from evo2cli.training.recipe import Recipe, find_recipe, read_recipe, read_shape
from evo2cli.workflows.models import pick_device
from stripedhyena2 import StripedHyena2, save


def train_recipe(
    recipe_name: Path, *, settings: Sequence[str] = (), output: Path | None, device: str = "auto"
) -> dict[str, Any]:
    """Train what a recipe says, going on where an earlier run of it stopped.

    Args:
        recipe_name: A recipe file, or the name of a shipped one.
        settings: `table.key=value`, laid over the recipe.
        output: Overrides the recipe's output folder.
        device: "auto", "cpu", "cuda", ...

    Returns:
        output, finished, step, tokens, parameters, valid_bits (None without validation data).

    Raises:
        UserError: Recipe, data, device or output folder will not do.
        UntrustedNumericsError: A loss or a gradient is not finite.
    """
    path = find_recipe(recipe_name)
    recipe = read_recipe(path, settings)
    if output is not None:
        recipe = recipe.model_copy(update={"output": output})
    config = read_shape(recipe, path)
    sets = [TokenSet.open(folder) for folder in recipe.data.tokens]
    train, valid = _arrays(sets, "train"), _arrays(sets, "valid")
    if not train:
        folders = ", ".join(map(str, recipe.data.tokens))
        raise UserError(f"{folders}: no train split; tokenize with a smaller --valid-fraction")
    if not valid:
        console.warn("no valid split in the token sets: this run is not validated")
    model = StripedHyena2.from_seed(config, recipe.seed).to(pick_device(device))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    try:
        trainer = Trainer(recipe, model, train, valid)
    except ValueError as error:
        raise UserError(f"{path}: batch.length: {error}") from None
    console.say(
        f"{config.stripes}: {parameters:,} parameters, {sum(map(len, train)):,} tokens, "
        f"{trainer.loader.windows_per_epoch:,} windows an epoch, on {trainer.device}"
    )
    outcome = trainer.run()
    summary = {
        "output": str(recipe.output),
        "finished": outcome.finished,
        "step": outcome.step,
        "tokens": outcome.step * recipe.batch.sequences * recipe.batch.length,
        "parameters": parameters,
        "valid_bits": outcome.valid_bits,
    }
    if outcome.finished:
        save(model, trainer.folder.final, _provenance(recipe, path, sets, summary))
    return summary


def _arrays(sets: Sequence[TokenSet], split: str) -> list[Bytes]:
    return [tokens.split(split).tokens for tokens in sets if split in tokens.splits]


def _provenance(
    recipe: Recipe, path: Path, sets: Sequence[TokenSet], summary: dict[str, Any]
) -> dict[str, Any]:
    """What a stranger needs to make these weights again."""
    return {
        "trained_by": f"evo2cli {__version__}",
        "recipe": path.name,
        "settings": recipe.model_dump(mode="json", exclude={"output"}),
        "tokens": [tokens.manifest for tokens in sets],
        "steps": summary["step"],
        "trained_tokens": summary["tokens"],
        "valid_bits": summary["valid_bits"],
    }
