"""Check before a run that its output folder is writable and its disk has enough space."""

import os
import shutil
from pathlib import Path

from rich.filesize import decimal

from evo2cli.errors import UserError, counted
from evo2cli.training.plan.disk import disk
from evo2cli.training.plan.estimate import count_sizes, make_setup
from evo2cli.training.recipe import Recipe
from stripedhyena2 import ModelConfig

BEST = "best"  # subfolder for the best weights so far of a fine-tuning run


def free_bytes(folder: Path) -> int:
    """Free space on the disk of a folder, in bytes."""
    return shutil.disk_usage(folder).free


def check_output(recipe: Recipe, config: ModelConfig, world: int, *, others: int = 0) -> None:
    """Refuse an output folder that is not writable, or a disk with too little space for the run.

    Args:
        recipe: The recipe.
        config: Shape of the model.
        world: Number of ranks.
        others: Bytes written in addition to checkpoints and models, i.e. cached features.

    Raises:
        UserError: The folder is not writable, or the disk has too little space.
    """
    output = recipe.output
    existing = next(folder for folder in (output, *output.absolute().parents) if folder.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"{output}: {existing} is not a writable folder; choose another --output")
    if (output / "final").exists():  # nothing more is written
        return
    counts = count_sizes(recipe, config)
    needed = disk(recipe, counts, make_setup(recipe, config, world))
    existing_checkpoints = len([*output.glob("step-*")])
    existing_bytes = existing_checkpoints * needed.checkpoint
    existing_bytes += needed.best if (output / BEST).is_dir() else 0
    missing = others + max(needed.peak - existing_bytes, needed.final)
    free = free_bytes(existing)
    if missing > free:
        which = f"the {'best' if needed.best else 'final'} model"
        if others:
            which = f"{which} and {decimal(others)} of features of the base"
        have = f", of which {existing_checkpoints:,} exist," if existing_checkpoints else ""
        raise UserError(
            f"{output}: {counted(needed.most, 'checkpoint')} of {decimal(needed.checkpoint)} "
            f"({counts.all:,} parameters){have} and {which} need "
            f"{decimal(missing)}, {existing} has {decimal(free)} free; free some space, "
            f"choose another --output, {_ways_out(recipe)}"
        )


def _ways_out(recipe: Recipe) -> str:
    """Suggest changes to the recipe that reduce what is written."""
    checkpoint = recipe.checkpoint
    fewer = f"lower checkpoint.keep = {checkpoint.keep}"
    if checkpoint.keep_every is not None:
        fewer += f", raise checkpoint.keep_every = {checkpoint.keep_every}"
    if checkpoint.optimizer:
        fewer += ", or set checkpoint.optimizer = false (weights only, so no run can resume)"
    return fewer if checkpoint.optimizer else f"or {fewer}"
