"""Choose the engine of a run: the plain one, or DeepSpeed where the recipe shards the model."""

import torch

from evo2cli import console
from evo2cli.errors import UserError
from evo2cli.models import memory_explained
from evo2cli.training.engine import Engine, PlainEngine
from evo2cli.training.ranks import Ranks
from evo2cli.training.recipe import Recipe
from evo2cli.training.recipe_file import naming
from evo2cli.training.start import Start
from hyenakernels.float8.op import runs_float8


def check_ranks(recipe: Recipe, ranks: Ranks) -> None:
    """Refuse a recipe that these ranks cannot run.

    Raises:
        UserError: The batch cannot be divided, or a setting is not supported here.
    """
    sharded = _needs_deepspeed(recipe)
    with naming(recipe.file):
        recipe.micro(ranks.world)
    if recipe.guard.on_nonfinite == "skip" and sharded and recipe.precision.compute == "fp32":
        raise UserError(
            f'{recipe.file}: guard.on_nonfinite = "skip" with parallel.zero = '
            f'{recipe.parallel.zero} needs precision.compute = "bf16"'
        )
    if recipe.precision.fp8 and not runs_float8(ranks.device):
        if ranks.device.type == "cuda":
            name = torch.cuda.get_device_name(ranks.device)
            raise UserError(
                f"{recipe.file}: precision.fp8 = true: {name} has no FP8 units; set false"
            )
        console.warn("precision.fp8 = true: FP8 is emulated slowly on a CPU")


def _needs_deepspeed(recipe: Recipe) -> bool:
    if recipe.finetune is not None and recipe.finetune.method != "full":
        return False  # the few trained weights are not worth sharding
    return recipe.parallel.zero > 0


def make_engine(recipe: Recipe, start: Start, ranks: Ranks) -> Engine:
    """Create the engine that a recipe needs on these ranks.

    Raises:
        UserError: The model does not fit in memory, or the recipe does not suit the model.
    """
    file = recipe.file
    way_out = f"raise parallel.zero or use more GPUs; `evo2 plan {file}` shows what is needed"
    with memory_explained(f"{file}: the model on {ranks.device}", way_out), naming(file):
        if not _needs_deepspeed(recipe):
            return PlainEngine(recipe, start, ranks)
        from evo2cli.training.deepspeed_engine import DeepSpeedEngine

        return DeepSpeedEngine(recipe, start, ranks)


def devices_line(engine: Engine) -> str:
    """Describe the devices and parallelism of an engine in a few words."""
    world, device = engine.ranks.world, engine.ranks.device
    if world == 1:
        return f"{device}" if engine.name == "plain" else f"{device} by DeepSpeed"
    context_parallel = engine.ranks.context_parallel
    per_window = f", {context_parallel} per window" if context_parallel > 1 else ""
    zero = engine.layout["zero"]
    return f"{world} x {device.type}{per_window}{f', ZeRO {zero}' if zero else ''}"


def num_parameters(engine: Engine) -> int:
    """Number of trainable parameters."""
    return sum(shape.numel() for shape in engine.shapes.values())
