"""From a recipe to a trained model."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import torch

from evo2cli import __version__, console
from evo2cli.data.loader import WindowLoader, Windows, fixed_windows
from evo2cli.data.sources import Documents, open_held_out, open_source
from evo2cli.errors import UserError
from evo2cli.extend.checkpoint import extension_line, read_start
from evo2cli.models import memory_explained, pick_device
from evo2cli.training.engine import Engine, PlainEngine, Start
from evo2cli.training.loop import Outcome, Trainer
from evo2cli.training.plan.estimate import check_sharing
from evo2cli.training.ranks import Ranks
from evo2cli.training.recipe import Recipe
from evo2cli.training.recipe_file import (
    find_initial_weights,
    find_recipe,
    read_recipe,
    read_shape,
)
from evo2cli.training.state import RunFolder
from hyenakernels.float8.op import runs_float8
from stripedhyena2 import CheckpointError, ModelConfig
from stripedhyena2.checkpoint import save_weights

T = TypeVar("T")

SUMMARY = ("steps", "trained_tokens", "parameters", "valid_bits", "skipped")


def train_recipe(
    recipe_name: Path, *, settings: Sequence[str] = (), output: Path | None, device: str = "auto"
) -> dict[str, Any]:
    """Train what a recipe says, going on where an earlier run of it stopped.

    Started by torchrun or `evo2 launch`, this process is one rank of many.

    Args:
        recipe_name: A recipe file, or the name of a shipped one.
        settings: `table.key=value`, laid over the recipe.
        output: Overrides the recipe's output folder.
        device: "auto", "cpu", "cuda", ...

    Returns:
        output, finished, steps (done), trained_tokens, parameters, valid_bits (bits a base at the
        last validation, None without any), skipped (steps that were not finite), rank.

    Raises:
        UserError: Recipe, data, device or output folder will not do.
        UntrustedNumericsError: A loss or a gradient is not finite.
    """
    path = find_recipe(recipe_name)
    recipe = read_recipe(path, settings)
    if output is not None:
        recipe = recipe.model_copy(update={"output": output})
    with _joined(device) as ranks:
        _check(recipe, path, ranks)
        ranks = ranks.sharing(recipe.parallel.context)
        shape = _shape(recipe, path)
        sources = _first_alone(ranks, lambda: _sources(recipe))
        folder = RunFolder(recipe, _facts(shape, sources), ranks)
        where = {"output": str(recipe.output), "rank": ranks.rank}
        summary = _finished(folder.final)
        if summary is not None:
            if ranks.is_first:
                console.say(f"{recipe.output}: finished already; remove it to train again")
            return {**where, "finished": True, **summary}
        start, lineage = _start(recipe, path, shape, ranks)
        trainer = _trainer(recipe, path, start, sources, folder)
        outcome = _run(trainer, path)
        summary = _summary(trainer, outcome)
        if outcome.finished:
            training = _provenance(recipe, path, settings, sources)
            _save_final(trainer, {**summary, **training, **lineage})
        return {**where, "finished": outcome.finished, **summary}


@contextmanager
def _joined(device: str) -> Iterator[Ranks]:
    ranks = Ranks.join(pick_device(device))
    try:
        yield ranks
    finally:
        ranks.leave()


def _first_alone(ranks: Ranks, work: Callable[[], T]) -> T:
    """Do something on all ranks that the first one may leave behind on disk for the others."""
    if not ranks.is_first:
        ranks.wait()
    result = work()
    if ranks.is_first:
        ranks.wait()
    return result


def _check(recipe: Recipe, path: Path, ranks: Ranks) -> None:
    """Refuse what this recipe cannot do on these ranks."""
    sharded = _needs_deepspeed(recipe, ranks)
    try:
        recipe.micro(ranks.world)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
    if recipe.optimizer.ema is not None and sharded:
        raise UserError(
            f"{path}: optimizer.ema needs whole weights in one process, not {ranks.world}"
        )
    if recipe.guard.on_nonfinite == "skip" and sharded and recipe.precision.compute == "fp32":
        raise UserError(
            f'{path}: guard.on_nonfinite = "skip" on several GPUs needs precision.compute = "bf16"'
        )
    if recipe.precision.fp8 and not runs_float8(ranks.device):
        if ranks.device.type == "cuda":
            name = torch.cuda.get_device_name(ranks.device)
            raise UserError(f"{path}: precision.fp8 = true: {name} has no FP8 units; set false")
        console.warn("precision.fp8 = true: a CPU computes it slowly")


def _needs_deepspeed(recipe: Recipe, ranks: Ranks) -> bool:
    return ranks.world > 1 or recipe.parallel.zero > 0


def _shape(recipe: Recipe, path: Path) -> ModelConfig:
    if recipe.init is not None:
        find_initial_weights(recipe, path)  # told before anything is written
    shape = read_shape(recipe, path)
    if recipe.batch.length > shape.context:
        raise UserError(
            f"{path}: batch.length = {recipe.batch.length} is longer than the model's context of "
            f"{shape.context}; set {'extend.to' if recipe.init else 'shape.context'}"
        )
    try:
        check_sharing(recipe, shape)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
    return shape


def _sources(recipe: Recipe) -> list[Documents]:
    """What is trained on, in the recipe's order."""
    sources = []
    for source in recipe.data.sources:
        documents = open_source(source.path, "train")
        if documents is None:
            raise UserError(f"{source.path}: no train split; tokenize with less held out")
        sources.append(documents)
    return sources


def _facts(shape: ModelConfig, sources: Sequence[Documents]) -> dict[str, Any]:
    """What must stay the same between a run and its going on, beside its recipe."""
    tokens = {documents.name: documents.facts for documents in sources}
    return {"shape": asdict(shape), "tokens": tokens}


def _trainer(
    recipe: Recipe,
    path: Path,
    start: Start,
    sources: Sequence[Documents],
    folder: RunFolder,
) -> Trainer:
    """The trainer over all sources, with a word on what it is going to do."""
    ranks, batch = folder.ranks, recipe.batch
    try:
        loader = WindowLoader(
            sources, recipe.data, length=batch.length, sequences=batch.sequences, seed=recipe.seed
        )
    except ValueError as error:
        raise UserError(f"{path}: batch.length: {error}") from None
    valid = _first_alone(ranks, lambda: _valid(recipe))
    engine = _engine(recipe, path, start, ranks)
    if ranks.is_first:
        if not valid:
            console.warn("no held-out documents as long as a window: no validation")
        console.say(
            f"{start.config.stripes}: {_num_parameters(engine):,} parameters, "
            f"{sum(documents.num_tokens for documents in sources):,} tokens, "
            f"{loader.windows_per_epoch:,} windows an epoch, on {_place(engine)}"
        )
    return Trainer(recipe, engine, loader, valid, folder)


def _valid(recipe: Recipe) -> dict[str, Windows]:
    """Windows of every held-out set: valid splits of the sources, and sets of their own."""
    splits = [open_source(source.path, "valid") for source in recipe.data.sources]
    held_out = [documents for documents in splits if documents is not None]
    held_out += [open_held_out(path) for path in recipe.data.valid]
    length, limit = recipe.batch.length, recipe.validation.windows
    windows = {
        documents.name: fixed_windows(documents, recipe.data, length=length, limit=limit)
        for documents in held_out
    }
    return {name: found for name, found in windows.items() if len(found)}


def _start(
    recipe: Recipe, path: Path, shape: ModelConfig, ranks: Ranks
) -> tuple[Start, dict[str, Any]]:
    """Where the run begins, and what provenance says of an extension."""
    if recipe.init is None:
        return Start(shape), {}
    start, lineage = _first_alone(ranks, lambda: read_start(recipe, path))
    if lineage and ranks.is_first:
        record = lineage["extended"]
        console.say(extension_line(record["source"], record))
    return start, lineage


def _engine(recipe: Recipe, path: Path, start: Start, ranks: Ranks) -> Engine:
    way_out = f"raise parallel.zero or take more GPUs (`evo2 plan {path}` tells)"
    try:
        with memory_explained(f"{path}: the model on {ranks.device}", way_out):
            if not _needs_deepspeed(recipe, ranks):
                return PlainEngine(recipe, start, ranks.device)
            from evo2cli.training.deepspeed_engine import DeepSpeedEngine

            return DeepSpeedEngine(recipe, start, ranks)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None


def _place(engine: Engine) -> str:
    world, device = engine.ranks.world, engine.ranks.device
    if world == 1:
        return f"{device}" if engine.name == "plain" else f"{device} by DeepSpeed"
    shared = f", {engine.ranks.context} to a window" if engine.ranks.context > 1 else ""
    return f"{world} x {device.type}{shared}, ZeRO {engine.layout['zero']}"


def _num_parameters(engine: Engine) -> int:
    return sum(shape.numel() for shape in engine.shapes.values())


def _run(trainer: Trainer, path: Path) -> Outcome:
    recipe, device = trainer.recipe, trainer.ranks.device
    with memory_explained(
        f"{path}: {trainer.micro} windows of {recipe.batch.length} on {device}",
        "lower batch.micro_sequences, or set memory.activation_checkpointing = 1",
    ):
        return trainer.run()


def _summary(trainer: Trainer, outcome: Outcome) -> dict[str, Any]:
    return {
        "steps": outcome.step,
        "trained_tokens": outcome.step * trainer.recipe.batch.tokens,
        "parameters": _num_parameters(trainer.engine),
        "valid_bits": outcome.valid_bits,
        "skipped": outcome.skipped,
    }


def _finished(final: Path) -> dict[str, Any] | None:
    """The summary that the final model of a finished run carries."""
    file = final / "provenance.json"
    if not file.is_file():
        return None
    provenance = json.loads(file.read_text(encoding="utf-8"))
    return {key: provenance[key] for key in SUMMARY}


def _save_final(trainer: Trainer, provenance: dict[str, Any]) -> None:
    weights = trainer.engine.weights()
    final = trainer.folder.final
    if trainer.ranks.is_first:
        try:
            save_weights(trainer.engine.model.config, weights, final, provenance)
        except CheckpointError as error:
            raise UserError(str(error)) from None
    trainer.ranks.wait()


def _provenance(
    recipe: Recipe, path: Path, settings: Sequence[str], sources: Sequence[Documents]
) -> dict[str, Any]:
    """What a stranger needs to make these weights again."""
    return {
        "trained_by": f"evo2cli {__version__}",
        "recipe": path.name,
        "set": list(settings),
        "settings": recipe.model_dump(mode="json", exclude={"output"}),
        "sources": [documents.facts for documents in sources],
    }
