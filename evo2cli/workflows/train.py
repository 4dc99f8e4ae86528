"""From a recipe to a trained model."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from evo2cli import __version__, console
from evo2cli.data.loader import Bytes
from evo2cli.data.tokens import TokenSet
from evo2cli.errors import UserError
from evo2cli.training.loop import Outcome, Trainer
from evo2cli.training.recipe import Recipe, find_recipe, read_recipe, read_shape
from evo2cli.workflows.models import open_model, pick_device
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
        output, finished, steps (done), trained_tokens, parameters, valid_bits (bits per base at the
        last validation, None without any).

    Raises:
        UserError: Recipe, data, device or output folder will not do.
        UntrustedNumericsError: A loss or a gradient is not finite.
    """
    path = find_recipe(recipe_name)
    recipe = read_recipe(path, settings)
    if output is not None:
        recipe = recipe.model_copy(update={"output": output})
    sets = {str(folder): TokenSet.open(folder) for folder in recipe.data.tokens}
    trainer = _trainer(recipe, path, _start(recipe, path, device), sets)
    summary = _finished(trainer.folder.final)
    if summary is not None:
        console.say(f"{recipe.output}: finished already; remove it to train again")
        return {"output": str(recipe.output), "finished": True, **summary}
    try:
        outcome = trainer.run()
    except torch.OutOfMemoryError:
        raise UserError(
            f"{path}: batch.micro_sequences = {recipe.batch.micro} windows of {recipe.batch.length}"
            f" do not fit the memory of {trainer.device}; use fewer"
        ) from None
    summary = _summary(trainer, outcome)
    if outcome.finished:
        save(trainer.model, trainer.folder.final, {**summary, **_provenance(recipe, path, sets)})
    return {"output": str(recipe.output), "finished": outcome.finished, **summary}


def _start(recipe: Recipe, path: Path, device: str) -> StripedHyena2:
    """The model before its first step, in fp32."""
    if recipe.init is not None:
        model = open_model(recipe.init, device=device, dtype="fp32")
    else:
        config = read_shape(recipe, path)
        model = StripedHyena2.from_seed(config, recipe.seed).to(pick_device(device))
    if recipe.batch.length > model.config.context:
        raise UserError(
            f"{path}: batch.length = {recipe.batch.length} is longer than the model's context of "
            f"{model.config.context}"
        )
    return model


def _trainer(
    recipe: Recipe, path: Path, model: StripedHyena2, sets: dict[str, TokenSet]
) -> Trainer:
    """The trainer over all token sets, with a word on what it is going to do."""
    train, valid = _arrays(sets, "train"), _arrays(sets, "valid")
    if not train:
        raise UserError(f"{', '.join(sets)}: no train split; tokenize with less held out")
    facts = {
        "shape": asdict(model.config),
        "tokens": {folder: tokens.manifest["splits"] for folder, tokens in sets.items()},
    }
    parameters = sum(parameter.numel() for parameter in model.parameters())
    try:
        trainer = Trainer(recipe, model, train, valid, facts=facts)
    except ValueError as error:
        raise UserError(f"{path}: batch.length: {error}") from None
    if not len(trainer.valid):
        console.warn("no valid split as long as a window in the token sets: no validation")
    console.say(
        f"{model.config.stripes}: {parameters:,} parameters, {sum(map(len, train)):,} tokens, "
        f"{trainer.loader.windows_per_epoch:,} windows an epoch, on {trainer.device}"
    )
    return trainer


def _arrays(sets: dict[str, TokenSet], split: str) -> list[Bytes]:
    return [tokens.split(split).tokens for tokens in sets.values() if split in tokens.splits]


def _summary(trainer: Trainer, outcome: Outcome) -> dict[str, Any]:
    batch = trainer.recipe.batch
    return {
        "steps": outcome.step,
        "trained_tokens": outcome.step * batch.sequences * batch.length,
        "parameters": sum(parameter.numel() for parameter in trainer.model.parameters()),
        "valid_bits": outcome.valid_bits,
    }


def _finished(final: Path) -> dict[str, Any] | None:
    """The summary that the final model of a finished run carries."""
    file = final / "provenance.json"
    if not file.is_file():
        return None
    provenance = json.loads(file.read_text(encoding="utf-8"))
    keys = ("steps", "trained_tokens", "parameters", "valid_bits")
    return {key: provenance[key] for key in keys}


def _provenance(recipe: Recipe, path: Path, sets: dict[str, TokenSet]) -> dict[str, Any]:
    """What a stranger needs to make these weights again."""
    return {
        "trained_by": f"evo2cli {__version__}",
        "recipe": path.name,
        "settings": recipe.model_dump(mode="json", exclude={"output"}),
        "tokens": [tokens.manifest for tokens in sets.values()],
    }
