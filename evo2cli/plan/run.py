"""Estimate memory, time and cost of a recipe."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from evo2cli.data.token_writer import MANIFEST
from evo2cli.data.tokens import TokenSet
from evo2cli.errors import UserError
from evo2cli.plan.options import PlanOptions
from evo2cli.training.plan.estimate import Plan, advice, make_plan, smallest_plan
from evo2cli.training.plan.hardware import ACCELERATORS, Accelerator, find_accelerator
from evo2cli.training.recipe import Data, Recipe
from evo2cli.training.recipe_file import find_recipe, naming, read_recipe, read_shape


def plan_recipe(options: PlanOptions) -> dict[str, Any]:
    """Estimate memory, time and cost of a recipe from shapes alone, without running it.

    Returns:
        JSON values: model, mesh, memory (bytes on one GPU), flops (per token), time (seconds per
        step), run (totals), sources, fits, and advice (what to change so that it fits; None if it
        does).

    Raises:
        UserError: The recipe is invalid, or cannot run on these GPUs.
    """
    recipe = read_recipe(find_recipe(options.recipe), options.settings)
    config = read_shape(recipe)
    accelerator = _accelerator(options.gpu)
    with naming(recipe.file):
        if options.gpus is None:
            plan = smallest_plan(recipe, config, gpu=accelerator)
        else:
            plan = make_plan(recipe, config, gpus=options.gpus, gpu=accelerator)
    return {
        "kind": "plan",
        "recipe": str(options.recipe),
        "settings": list(options.settings),
        **_describe(plan),
        "run": _run(plan, options.price),
        "sources": _sources(recipe, plan.tokens),
        "fits": plan.fits,
        "advice": None if plan.fits else advice(plan, recipe),
    }


def _accelerator(name: str) -> Accelerator:
    accelerator = find_accelerator(name)
    if accelerator is None:
        known = ", ".join(gpu.key for gpu in ACCELERATORS)
        raise UserError(f"--gpu {name}: unknown; choose one of {known}")
    return accelerator


def _describe(plan: Plan) -> dict[str, Any]:
    setup, flops = plan.setup, plan.flops
    return {
        "model": {"stripes": plan.config.stripes, "parameters": plan.counts.all},
        "mesh": {
            "gpus": setup.gpus,
            "gpu": plan.gpu.key,
            "engine": "plain" if setup.is_plain else "deepspeed",
            "zero": setup.zero,
            "context": setup.context,
            "length": setup.length,
            "micro_sequences": setup.micro,
            "accumulation": setup.accumulation,
            "activation_checkpointing": setup.checkpointing,
            "tokens_per_step": plan.batch.tokens,
        },
        "memory": {
            **asdict(plan.memory),
            "allocated": plan.memory.allocated,
            "total": plan.memory.total,
            "capacity": plan.gpu.memory,
        },
        "flops": {
            **asdict(flops),
            "forward": flops.forward,
            "training": flops.training,
            "recomputed": plan.recomputed_flops,
            "training_by_paper": plan.paper_flops,
        },
        "time": {**asdict(plan.time), "total": plan.time.total},
    }


def _run(plan: Plan, price: float | None) -> dict[str, Any]:
    return {
        "steps": plan.steps,
        "tokens": plan.tokens,
        "tokens_per_second_per_gpu": plan.tokens_per_second,
        "mfu": plan.utilization,
        "days": plan.days,
        "disk_bytes": plan.disk.at_end,
        "gpu_hours": plan.gpu_hours,
        "dollars": None if price is None else price * plan.gpu_hours,
    }


def _sources(recipe: Recipe, tokens: int) -> list[dict[str, Any]]:
    """Share of the windows, size in tokens and epochs of each source; None where unknown."""
    sources = recipe.data.train_sources
    sizes = [_tokens(source.path) for source in sources]
    shares = _shares(recipe.data, sizes)
    entries = []
    for source, share, size in zip(sources, shares, sizes, strict=True):
        epochs = share * tokens / size if share is not None and size else None
        entries.append(
            {
                "path": str(source.path),
                "found": size is not None or source.path.exists(),
                "share": share,
                "tokens": size,
                "epochs": epochs,
            }
        )
    return entries


def _shares(data: Data, sizes: Sequence[int | None]) -> Sequence[float | None]:
    """Shares by sampling weight; without weights by size, if all sizes are known."""
    weights = sizes if data.weights is None else data.weights
    known = [weight for weight in weights if weight is not None]
    if len(known) < len(weights) or not sum(known):
        return [None] * len(weights)
    return [weight / sum(known) for weight in known]


def _tokens(path: Path) -> int | None:
    """Tokens in the train split of a token set; None if there is no token set at this path."""
    if not (path / MANIFEST).is_file():
        return None
    facts = TokenSet.open(path).manifest["splits"].get("train", {"bases": 0, "documents": 0})
    return int(facts["bases"]) + int(facts["documents"])
