"""Compile the kernels of a run in advance, in a process for each kind of block.

Triton keeps them in its disk cache, from which all ranks of a machine load them.
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

Trial = Callable[[Recipe, Start, Ranks], None]  # a trial run, which compiles the kernels

# The keys of [finetune] that determine which kernels a run needs.
_TUNING = {"task", "method", "base", "adapters", "pool", "strand"}


def compile_kernels(trial: Trial, recipe: Recipe, start: Start, ranks: Ranks) -> None:
    """Compile the kernels that are not yet cached, on the first rank of each machine with GPUs.

    A failure is only a warning: the first step compiles what is missing.

    Args:
        trial: Does what the run will do, on a model of one kind of block; must be picklable.
        recipe: The recipe.
        start: The model that the run starts from.
        ranks: The ranks of the run.
    """
    if ranks.device.type != "cuda" or os.environ.get("LOCAL_RANK", "0") != "0":
        return
    single = _for_one_rank(recipe, ranks)
    marker = _cache() / f"evo2-{_key(single, start, ranks.device)}"
    if marker.exists():
        return
    tasks = [
        partial(_run, trial, single, start.of_block(kind), str(ranks.device))
        for kind in sorted(set(start.config.stripes))
    ]
    num_workers = _num_concurrent(single, start, ranks.device)
    try:
        with console.progress("compile kernels", len(tasks), "kinds of blocks") as bar:
            for first in range(0, len(tasks), num_workers):
                # At least two workers, so that no task runs in this process and uses its memory.
                batch = tasks[first : first + num_workers]
                for _ in run_tasks(iter(batch), max(2, num_workers), bar.advance):
                    bar.advance()
    except WorkerError as error:
        console.warn(f"kernels are compiled at the first step, not in advance: {error}")
        return
    with suppress(OSError):  # the next run compiles again
        marker.parent.mkdir(parents=True, exist_ok=True)
        marker.touch()


def _for_one_rank(recipe: Recipe, ranks: Ranks) -> Recipe:
    """A recipe for one process with the micro-batch of each rank of the run."""
    micro, parallel = recipe.micro(ranks.world), recipe.parallel
    length = -(-recipe.batch.length // parallel.context)
    batch = {"length": length, "sequences": micro, "micro_sequences": micro}
    return recipe.model_copy(
        update={
            "batch": recipe.batch.model_copy(update=batch),
            "parallel": parallel.model_copy(update={"context": 1}),
        }
    )


def _num_concurrent(recipe: Recipe, start: Start, device: torch.device) -> int:
    """Number of kinds of blocks to run at once: as many as fit in GPU memory, at least one."""
    recipe = recipe.model_copy(update={"finetune": None})  # frozen weights would take less
    needed = 0.0
    for kind in set(start.config.stripes):
        config = start.of_block(kind).config
        setup = make_setup(recipe, config, 1)
        memory = memory_per_gpu(config, count_sizes(recipe, config), setup)
        needed = max(needed, memory.total)
    free, _ = torch.cuda.mem_get_info(device)
    return max(1, int(free // needed))


def take_step(recipe: Recipe, start: Start, ranks: Ranks) -> None:
    """Take one training step, and a forward pass as in validation.

    Args:
        recipe: The recipe.
        start: The initial model.
        ranks: A single rank.
    """
    engine = make_engine(recipe, start, ranks)
    inputs = start.inputs(recipe, ranks.device)
    engine.backward(engine.forward(*inputs).mean(), last=True)
    engine.step(0.0)
    engine.model.eval()
    with torch.no_grad():
        engine.forward(*inputs)


def _run(trial: Trial, recipe: Recipe, start: Start, device: str, _: Advance) -> None:
    """Run a trial as a single process, without the launcher's environment."""
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        os.environ.pop(name, None)
    where = torch.device(device)
    if where.index is not None:
        torch.cuda.set_device(where)
    trial(recipe, start, Ranks.alone(where))


def _key(recipe: Recipe, start: Start, device: torch.device) -> str:
    """A hash of everything that determines which kernels a run needs."""
    tables: Any = dict.fromkeys(("batch", "memory", "parallel", "precision"), True)
    facts = {
        "versions": [__version__, torch.__version__],
        "device": torch.cuda.get_device_name(device),
        "shape": asdict(start.config),
        **recipe.model_dump(mode="json", include={**tables, "finetune": _TUNING}),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def _cache() -> Path:
    """The folder of Triton's cache."""
    from triton import knobs  # type: ignore[import-untyped] # has no annotations

    return Path(knobs.cache.dir)
