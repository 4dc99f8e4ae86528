"""Kernels of a run, compiled before they are needed by a process for each kind of block.

Triton keeps them in its cache on disk, where the ranks of a machine find them.
"""

import hashlib
import json
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from evo2cli import __version__, console
from evo2cli.train.engines import make_engine
from evo2cli.training.plan.estimate import count_sizes, make_setup
from evo2cli.training.plan.memory import memory_per_gpu
from evo2cli.training.ranks import Ranks
from evo2cli.training.recipe import Recipe
from evo2cli.training.start import Start
from evo2cli.workers import Advance, WorkerError, run_tasks

Trial = Callable[[Recipe, Start, Ranks], None]

# What of [finetune] decides which kernels a run needs.
_TUNING = {"task", "method", "base", "adapters", "pool", "strand"}


def compile_kernels(trial: Trial, recipe: Recipe, start: Start, ranks: Ranks) -> None:
    """Compile what is not yet in the cache; only the first rank of a machine with GPUs does.

    A failure is a warning: the first step compiles what is missing.

    Args:
        trial: Does what the run will do, with a model of one kind of block; a function of a module.
        recipe: The recipe.
        start: The model that the run starts from.
        ranks: The ranks of the run.
    """
    if ranks.device.type != "cuda" or os.environ.get("LOCAL_RANK", "0") != "0":
        return
    alone = _for_one_rank(recipe, ranks)
    mark = _cache() / f"evo2-{_key(alone, start, ranks.device)}"
    if mark.exists():
        return
    steps = [
        partial(_run, trial, alone, start.of_block(kind), str(ranks.device))
        for kind in sorted(set(start.config.stripes))
    ]
    together = _num_together(alone, start, ranks.device)
    try:
        with console.progress("compile kernels", len(steps), "kinds of blocks") as bar:
            for first in range(0, len(steps), together):
                # More than one process, even for one kind: this one's memory stays as it is.
                some = steps[first : first + together]
                for _ in run_tasks(iter(some), max(2, together), bar.advance):
                    bar.advance()
    except WorkerError as error:
        console.warn(f"kernels are compiled at the first step, not in advance: {error}")
        return
    with suppress(OSError):  # the next run compiles again
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()


def _for_one_rank(recipe: Recipe, ranks: Ranks) -> Recipe:
    """A recipe by which one process does what each rank of a run does in a forward pass."""
    micro, parallel = recipe.micro(ranks.world), recipe.parallel
    length = -(-recipe.batch.length // parallel.context)
    batch = {"length": length, "sequences": micro, "micro_sequences": micro}
    return recipe.model_copy(
        update={
            "batch": recipe.batch.model_copy(update=batch),
            "parallel": parallel.model_copy(update={"context": 1}),
        }
    )


def _num_together(recipe: Recipe, start: Start, device: torch.device) -> int:
    """How many kinds of blocks take their step at once: as many as fit the GPU, at least one."""
    recipe = recipe.model_copy(update={"finetune": None})  # whatever is frozen takes less
    needed = 0.0
    for kind in set(start.config.stripes):
        single = start.of_block(kind).config
        setup = make_setup(recipe, single, 1)
        memory = memory_per_gpu(single, count_sizes(recipe, single), setup)
        needed = max(needed, memory.total)
    free, _ = torch.cuda.mem_get_info(device)
    return max(1, int(free // needed))


def take_step(recipe: Recipe, start: Start, ranks: Ranks) -> None:
    """One step of training, and a forward pass as in validation.

    Args:
        recipe: The recipe.
        start: The model.
        ranks: This process alone.
    """
    engine = make_engine(recipe, start, ranks)
    inputs = start.inputs(recipe, ranks.device)
    engine.backward(engine.forward(*inputs).mean(), last=True)
    engine.step(0.0)
    engine.model.eval()
    with torch.no_grad():
        engine.forward(*inputs)


def _run(trial: Trial, recipe: Recipe, start: Start, device: str, _: Advance) -> None:
    """Run a trial in a process that no launcher started."""
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        os.environ.pop(name, None)
    where = torch.device(device)
    if where.index is not None:
        torch.cuda.set_device(where)
    trial(recipe, start, Ranks.alone(where))


def _key(recipe: Recipe, start: Start, device: torch.device) -> str:
    """What decides which kernels a run needs."""
    tables: Any = dict.fromkeys(("batch", "memory", "parallel", "precision"), True)
    facts = {
        "versions": [__version__, torch.__version__],
        "device": torch.cuda.get_device_name(device),
        "shape": asdict(start.config),
        **recipe.model_dump(mode="json", include={**tables, "finetune": _TUNING}),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def _cache() -> Path:
    """Triton's cache."""
    from triton import knobs  # type: ignore[import-untyped] # has no annotations

    return Path(knobs.cache.dir)
