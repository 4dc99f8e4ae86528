"""Train a model from a recipe, in a single process or as one rank of many."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, TypeAdapter

from evo2cli import __version__, console
from evo2cli.data.loader import WindowLoader, Windows, fixed_windows
from evo2cli.data.repeats import Repeats
from evo2cli.data.sources import Documents, open_held_out, open_source
from evo2cli.errors import UserError, counted
from evo2cli.models import memory_explained
from evo2cli.train.corpus import write_corpus
from evo2cli.train.engines import check_ranks, devices_line, make_engine, num_parameters
from evo2cli.train.kernels import compile_kernels, take_step
from evo2cli.training.gpu_memory import training_device
from evo2cli.training.language import NextBase
from evo2cli.training.loop import Outcome, Trainer
from evo2cli.training.options import RunOptions
from evo2cli.training.plan.estimate import check_shape
from evo2cli.training.ranks import Ranks
from evo2cli.training.recipe import Recipe
from evo2cli.training.recipe_file import find_initial_weights, naming, read_run, read_shape
from evo2cli.training.start import Start, extension_line, read_start
from evo2cli.training.state import RunFolder, open_run, stopped
from stripedhyena2 import ModelConfig
from stripedhyena2.values import read_json

T = TypeVar("T")


class Summary(BaseModel):
    """The summary of a finished run in its provenance."""

    steps: int
    trained_tokens: int
    parameters: int
    valid_bits: float | None
    skipped: int


_SUMMARY = TypeAdapter(Summary)


def train_recipe(options: RunOptions) -> dict[str, Any]:
    """Train from a recipe, or resume an earlier run of it.

    Started by torchrun or `evo2 launch`, this process is one rank of many.

    Returns:
        output, resumable (whether a stopped run can be resumed), finished, steps (done),
        trained_tokens, parameters, valid_bits (bits per base at the last validation; None without
        validation), skipped (steps that were not finite), rank.

    Raises:
        UserError: Recipe, data, device or output folder do not allow the run.
        UntrustedNumericsError: A loss or a gradient is not finite.
    """
    recipe = read_run(options)
    with Ranks.joined(training_device(options.device)) as ranks, ExitStack() as stack:
        check_ranks(recipe, ranks)
        ranks = ranks.sharing(recipe.parallel.context)
        shape = _shape(recipe)
        sources = open_sources(recipe, ranks)
        folder = stack.enter_context(open_run(recipe, shape, _identity(shape, sources), ranks))
        run_facts = {
            "output": str(recipe.output),
            "resumable": recipe.checkpoint.optimizer,
            "rank": ranks.rank,
        }
        summary = _finished(folder.final)
        if summary is not None:
            if ranks.is_first:
                console.say(f"{recipe.output}: already finished; remove it to train again")
            return {**run_facts, "finished": True, **summary}

        start, initial_provenance = _start(recipe, shape, ranks)
        trainer = make_trainer(recipe, start, sources, folder)
        outcome = run_trainer(trainer)
        summary = {
            "steps": outcome.step,
            "trained_tokens": outcome.step * recipe.batch.tokens,
            "parameters": num_parameters(trainer.engine),
            "valid_bits": outcome.valid_bits,
            "skipped": outcome.skipped,
        }
        if outcome.finished:
            provenance = _provenance(recipe, options.settings, sources)
            _save_final(trainer, {**summary, **provenance, **initial_provenance})
        return {**run_facts, "finished": outcome.finished, **summary}


def summary_line(summary: Mapping[str, Any]) -> str:
    """Summarize the result of `train_recipe` in one line."""
    bits = summary["valid_bits"]
    quality = "not validated" if bits is None else f"{bits:.4f} bits per base on validation"
    end = f"{summary['output']}/final"
    if not summary["finished"]:
        end = stopped(resumable=summary["resumable"])
    done = f"{counted(summary['steps'], 'step')}, {summary['trained_tokens']:,} tokens"
    return f"{done}, {quality}: {end}"


def first_rank_first(ranks: Ranks, work: Callable[[], T]) -> T:
    """Do the same work on all ranks, on rank 0 first, so that the others find its files."""
    if not ranks.is_first:
        ranks.barrier()
    result = work()
    if ranks.is_first:
        ranks.barrier()
    return result


def _shape(recipe: Recipe) -> ModelConfig:
    if recipe.init is not None:
        find_initial_weights(recipe)  # fails before anything is written
    shape = read_shape(recipe)
    with naming(recipe.file):
        check_shape(recipe, shape)
    return shape


def open_sources(recipe: Recipe, ranks: Ranks) -> list[Documents]:
    """Open the training sources, in the order of the recipe; genomes are tokenized first."""

    def work() -> list[Documents]:
        if recipe.data.corpus is not None and ranks.is_first:
            write_corpus(recipe.data.corpus)
        return [_open_train(source.path) for source in recipe.data.train_sources]

    return first_rank_first(ranks, work)


def _open_train(path: Path) -> Documents:
    documents = open_source(path, "train")
    if documents is None:
        raise UserError(f"{path}: has no training split; hold out less when tokenizing")
    return documents


def _identity(shape: ModelConfig, sources: Sequence[Documents]) -> dict[str, Any]:
    """What must not change when a run is resumed, in addition to its recipe."""
    tokens = {documents.name: documents.facts for documents in sources}
    return {"shape": asdict(shape), "tokens": tokens}


def _start(recipe: Recipe, shape: ModelConfig, ranks: Ranks) -> tuple[Start, dict[str, Any]]:
    """The initial model of the run, and the provenance of its weights."""
    if recipe.init is None:
        return Start(shape), {}
    start, provenance = first_rank_first(ranks, lambda: read_start(recipe))
    record = provenance.get("extended")
    if record and ranks.is_first:
        console.say(extension_line(record["source"], record))
    return start, provenance


def make_trainer(
    recipe: Recipe, start: Start, sources: Sequence[Documents], folder: RunFolder
) -> Trainer:
    """Create the trainer of a run; rank 0 reports model, data and devices."""
    ranks, data = folder.ranks, recipe.data
    repeats = None
    if data.repeats:
        repeats = Repeats(data.repeats, data.inverted_repeats, recipe.seed, data.longest_repeat)
    with naming(f"{recipe.file}: batch.length"):
        loader = WindowLoader(
            sources,
            data.weights,
            length=recipe.batch.length,
            sequences=recipe.batch.sequences,
            seed=recipe.seed,
            packing=data.packing,
            reverse_complement=data.reverse_complement,
            mask_tags=data.mask_tags,
            repeats=repeats,
        )
    valid = first_rank_first(ranks, lambda: held_out_windows(recipe))
    compile_kernels(take_step, recipe, start, ranks)
    engine = make_engine(recipe, start, ranks)
    if ranks.is_first:
        if not valid:
            console.warn("no held-out document is as long as a window, so there is no validation")
        console.say(
            f"{start.config.stripes}: {num_parameters(engine):,} parameters, "
            f"{sum(documents.num_tokens for documents in sources):,} tokens, "
            f"{counted(loader.windows_per_epoch, 'window')} per epoch, on {devices_line(engine)}"
        )
    return Trainer(recipe, engine, NextBase(recipe, engine, loader, valid), folder)


def run_trainer(trainer: Trainer) -> Outcome:
    """Run a trainer, with a hint on running out of memory.

    Raises:
        UserError: Memory ran out, or as `Trainer.run`.
        UntrustedNumericsError: A loss or a gradient is not finite.
    """
    recipe, device = trainer.recipe, trainer.ranks.device
    what = f"{recipe.file}: {counted(trainer.micro, 'window')} of {recipe.batch.length} on {device}"
    way_out = "lower batch.micro_sequences, or set memory.activation_checkpointing = 1"
    with memory_explained(what, way_out):
        return trainer.run()


def held_out_windows(recipe: Recipe) -> dict[str, Windows]:
    """The validation windows of each held-out set, including the valid splits of the sources."""
    data = recipe.data
    splits = [open_source(source.path, "valid") for source in data.train_sources]
    held_out = [documents for documents in splits if documents is not None]
    held_out += [open_held_out(path) for path in data.held_out]
    windows = {
        documents.name: fixed_windows(
            documents,
            length=recipe.batch.length,
            limit=recipe.validation.windows,
            packing=data.packing,
            mask_tags=data.mask_tags,
        )
        for documents in held_out
    }
    return {name: selected for name, selected in windows.items() if len(selected)}


def _finished(final: Path) -> dict[str, Any] | None:
    """The summary of a finished run, from the provenance of its final model; None if unfinished."""
    file = final / "provenance.json"
    if not file.is_file():
        return None
    return read_json(file, _SUMMARY, UserError).model_dump()


def _save_final(trainer: Trainer, provenance: dict[str, Any]) -> None:
    weights = trainer.engine.weights()
    if trainer.ranks.is_first:
        trainer.engine.start.write(weights, trainer.folder.final, provenance)
    trainer.ranks.barrier()


def _provenance(
    recipe: Recipe, settings: Sequence[str], sources: Sequence[Documents]
) -> dict[str, Any]:
    """Everything that is needed to reproduce these weights."""
    return {
        "trained_by": f"evo2cli {__version__}",
        "recipe": recipe.file.name,
        "set": list(settings),
        "settings": recipe.model_dump(mode="json", exclude={"output"}),
        "sources": [documents.facts for documents in sources],
    }
