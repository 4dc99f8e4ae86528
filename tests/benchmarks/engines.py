"""Steps of a recipe by engine, on random bases: windows of 8,192 in micro-batches.

    torchrun --nproc_per_node 2 -m tests.benchmarks.engines --zero 3
    python -m tests.benchmarks.engines --zero 0                         # one GPU, the plain engine

`--recipe FILE` (default: the one of 1B), `--windows N` of a GPU and step (8) in micro-batches of
`--micro N` (2). `--zero-setting KEY=VALUE` changes a key of DeepSpeed's zero_optimization, `--fsdp`
takes FSDP2 of PyTorch on the same model instead. `--profile FILE` writes a table of the last step
by processor time, `--trace FILE` its timeline, as .json.gz for a trace viewer.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from evo2cli import console
from evo2cli.training import deepspeed_engine
from evo2cli.training.engine import PlainEngine
from evo2cli.training.gpu_memory import training_device
from evo2cli.training.optimizer import make_optimizer
from evo2cli.training.ranks import Ranks
from evo2cli.training.recipe import Recipe
from evo2cli.training.recipe_file import read_recipe, read_shape
from evo2cli.training.start import Start

LENGTH = 8192  # bases of a window


class FSDP2:
    """The same model sharded block by block by PyTorch, with bf16 weights and fp32 gradients."""

    def __init__(self, recipe: Recipe, start: Start, ranks: Ranks) -> None:
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        self.model: Any = start.build(recipe, lambda part: part.to(ranks.device)).train()
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        for block in self.model.blocks:
            fully_shard(block, mp_policy=policy)
        fully_shard(self.model, mp_policy=policy)
        self.optimizer = make_optimizer(self.model, recipe.optimizer)

    def forward(self, ids_BL: Tensor) -> Tensor:
        """Logits."""
        logits: Tensor = self.model(ids_BL)
        return logits

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Sum gradients over the ranks, in every micro-batch as ZeRO 3 does."""
        del last
        loss.backward()  # type: ignore[no-untyped-call] # torch does not annotate it

    def step(self, learning_rate: float) -> None:
        """Clip and step."""
        del learning_rate
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0, foreach=False)
        self.optimizer.step()
        self.optimizer.zero_grad()


def main() -> None:
    """Print one row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", type=Path, default=Path("recipes/1b.toml"))
    parser.add_argument("--zero", type=int, default=0)
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--micro", type=int, default=2)
    parser.add_argument("--fp8", action="store_true")
    parser.add_argument("--fsdp", action="store_true")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--zero-setting", action="append", default=[])
    parser.add_argument("--profile", type=Path)
    parser.add_argument("--trace", type=Path)
    arguments = parser.parse_args()
    ranks = Ranks.join(training_device("cuda"))
    path, windows = arguments.recipe, arguments.windows
    settings = [f"batch.sequences={windows * ranks.world}"]
    settings += [f"batch.micro_sequences={arguments.micro}"]
    settings += [f"parallel.zero={arguments.zero}"]
    settings += ["precision.fp8=true"] if arguments.fp8 else []
    recipe = read_recipe(path, settings)
    changes = dict(setting.split("=", 1) for setting in arguments.zero_setting)
    usual = deepspeed_engine._zero_settings
    deepspeed_engine._zero_settings = lambda stage: {
        **usual(stage),
        **{key: json.loads(value) for key, value in changes.items()},
    }
    kind: Any = PlainEngine if arguments.zero == 0 else deepspeed_engine.DeepSpeedEngine
    begun = time.perf_counter()
    engine = (FSDP2 if arguments.fsdp else kind)(recipe, Start(read_shape(recipe)), ranks)
    built = time.perf_counter() - begun

    def step(index: int) -> float:
        return _step(engine, ranks, windows, arguments.micro, index)

    seconds = [step(index) for index in range(arguments.steps - 1)]
    if arguments.profile or arguments.trace:
        with torch.profiler.profile() as profile:
            step(arguments.steps)
    if ranks.is_first:
        if arguments.trace:
            profile.export_chrome_trace(str(arguments.trace))
        if arguments.profile:
            table = profile.key_averages().table(sort_by="self_cpu_time_total", row_limit=60)
            arguments.profile.write_text(table, encoding="utf-8")
        steady = seconds[3:]
        median = statistics.median(steady)
        memory = torch.cuda.max_memory_allocated() / 2**30
        console.say(
            f"{' '.join(['fsdp2' if arguments.fsdp else f'zero {arguments.zero}', *changes])}"
            f"{' fp8' if arguments.fp8 else ''}, {path.stem}: built in {built:.1f} s, first step "
            f"{seconds[0]:.1f} s, then {median:.3f} s (slowest {max(steady) / median:.2f} of it), "
            f"{windows * LENGTH / median:,.0f} tokens/s/GPU, {memory:.1f} GiB"
        )
    ranks.leave()


def _step(engine: Any, ranks: Ranks, windows: int, micro_windows: int, index: int) -> float:
    """Seconds of a step on random bases."""
    generator = torch.Generator("cuda").manual_seed(index * ranks.world + ranks.rank)
    bases = torch.tensor([*b"ACGT"], device="cuda")
    torch.cuda.synchronize()
    begun = time.perf_counter()
    count = windows // micro_windows
    for micro in range(count):
        drawn = torch.randint(4, (micro_windows, LENGTH + 1), device="cuda", generator=generator)
        ids_BT = bases[drawn]
        logits_BLV = engine.forward(ids_BT[:, :-1])
        loss = F.cross_entropy(logits_BLV.flatten(0, 1), ids_BT[:, 1:].flatten())
        engine.backward(loss / count, last=micro + 1 == count)
    engine.step(1e-4)
    torch.cuda.synchronize()
    return time.perf_counter() - begun


if __name__ == "__main__":
    main()
