"""Kernels of a run, compiled before its first step by a process for each kind of block.

Triton keeps them in its cache on disk, where the ranks of a machine find them.
"""

import hashlib
import json
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import torch

from evo2cli import __version__, console
from evo2cli.training.engine import Engine
from evo2cli.training.plan.estimate import count_sizes, make_setup
from evo2cli.training.plan.memory import memory_per_gpu
from evo2cli.training.ranks import Ranks
from evo2cli.training.recipe import Recipe
from evo2cli.training.start import Start
from evo2cli.workers import Advance, WorkerError, run_tasks
from stripedhyena2 import ModelConfig

MakeEngine = Callable[[Recipe, Path, Start, Ranks], Engine]


def compile_kernels(
    make: MakeEngine, recipe: Recipe, path: Path, config: ModelConfig, ranks: Ranks
) -> None:
    """Compile what is not yet in the cache; only the first rank of a machine with GPUs does.

    A failure is a warning: the first step compiles what is missing.

    Args:
        make: Makes the engine of the run; a function of a module.
        recipe: The recipe.
        path: Its file.
        config: Shape of the model.
        ranks: The ranks of the run.
    """
    if ranks.device.type != "cuda" or os.environ.get("LOCAL_RANK", "0") != "0":
        return
    alone = _for_one_rank(recipe, ranks)
    mark = _cache() / f"evo2-{_key(alone, config, ranks.device)}"
    if mark.exists():
        return
    steps = [
        partial(_step, make, alone, path, replace(config, stripes=kind), str(ranks.device))
        for kind in sorted(set(config.stripes))
    ]
    together = _num_together(alone, config, ranks.device)
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


def _num_together(recipe: Recipe, config: ModelConfig, device: torch.device) -> int:
    """How many kinds of blocks take their step at once: as many as fit the GPU, at least one."""
    needed = 0.0
    for kind in set(config.stripes):
        single = replace(config, stripes=kind)
        setup = make_setup(recipe, single, 1)
        memory = memory_per_gpu(single, count_sizes(recipe, single), setup)
        needed = max(needed, memory.total)
    free, _ = torch.cuda.mem_get_info(device)
    return max(1, int(free // needed))


def _step(
    make: MakeEngine, recipe: Recipe, path: Path, config: ModelConfig, device: str, _: Advance
) -> None:
    """One step of a model of a single block, in a process that no launcher started."""
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        os.environ.pop(name, None)
    where = torch.device(device)
    if where.type == "cuda":
        torch.cuda.set_device(where)
    engine = make(recipe, path, Start(config), Ranks.alone(where))
    batch = recipe.batch
    ids_BL = torch.zeros(batch.sequences, batch.length, dtype=torch.long, device=where)
    engine.backward(engine.forward(ids_BL).mean(), last=True)
    engine.step(0.0)


def _key(recipe: Recipe, config: ModelConfig, device: torch.device) -> str:
    """What decides which kernels a run needs."""
    facts = {
        "versions": [__version__, torch.__version__],
        "device": torch.cuda.get_device_name(device),
        "shape": asdict(config),
        **recipe.model_dump(mode="json", include={"batch", "memory", "parallel", "precision"}),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def _cache() -> Path:
    """Triton's cache."""
    from triton import knobs  # type: ignore[import-untyped] # has no annotations

    return Path(knobs.cache.dir)
