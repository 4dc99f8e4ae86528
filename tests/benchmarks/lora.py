"""Fine-tuning steps of the 1B shape by method, and what adapters add to a forward pass.

    python -m tests.benchmarks.lora [--shape models/evo2_1b_base] [--profile FILE]

Random weights, 32 windows of 600 random bases, three classes read from the mean of the last block;
every step is one of the engine of `evo2 finetune`, with its optimizer. The method "frozen" trains
the head alone and still passes gradients through every block: the floor for adapters.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from evo2cli import console
from evo2cli.finetune.heads import Head, Reading, TaskModel, task_loss
from evo2cli.training.engine import PlainEngine
from evo2cli.training.ranks import Ranks
from evo2cli.training.recipe import Recipe
from evo2cli.training.recipe_file import make_recipe, read_shape
from evo2cli.training.start import Start
from stripedhyena2 import StripedHyena2
from stripedhyena2.adapters import LoRA, add_adapters
from stripedhyena2.adapters.lora import target_names
from stripedhyena2.assembly import Adopt
from stripedhyena2.float8.frozen import freeze_float8

METHODS = ("full", "lora", "lora, FP8 base", "frozen")
STEPS, WARM = 20, 5
PATH = Path("recipes/lora.toml")  # beside which the shape is looked for


@dataclass(frozen=True)
class RandomStart(Start):
    """A model with a head, and what a method trains of it."""

    method: str = "full"
    device: str = "cuda"

    def build(self, recipe: Recipe, adopt: Adopt) -> nn.Module:
        """As `Start`."""
        trunk = super().build(recipe, adopt)
        assert isinstance(trunk, StripedHyena2)
        if self.method != "full":
            trunk = StripedHyena2.from_seed(self.config, 0).bfloat16().to(self.device)
            trunk.requires_grad_(False)
            names = target_names(self.config, "all")
            if "FP8" in self.method:
                freeze_float8(trunk, names)
            if "lora" in self.method:
                add_adapters(trunk, LoRA(), names)
            else:
                trunk.embedding.requires_grad_(True)
        head = Head(self.config.width, 3, "linear").to(self.device)
        head.reset(0)
        layer = f"blocks.{self.config.depth - 1}"
        model = TaskModel(trunk, head, Reading(layer, "mean"))
        return model.to(self.device)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", default="models/evo2_1b_base")
    parser.add_argument("--windows", type=int, default=32)
    parser.add_argument("--length", type=int, default=600)
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--profile", type=Path, help="folder for a profile of a step by method")
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    recipe = _recipe(arguments.shape, arguments.length, arguments.windows)
    first = None
    for method in arguments.methods:
        row = _measure(method, recipe, arguments.profile, device)
        first = first or row
        console.say(f"{row.text}; {row.step / first.step:.2f} of the first")
    _forward(recipe, device)


@dataclass(frozen=True)
class Row:
    """What was measured of a method."""

    step: float
    text: str


def _recipe(shape: str, length: int, windows: int) -> Recipe:
    """A recipe of the engine; its paths are not read."""
    optimizer = {"steps": 1000, "warmup_steps": 10, "learning_rate": 1e-4, "min_learning_rate": 0}
    values = {
        "model": shape,
        "output": "unused",
        "data": {"sources": [{"path": "unused"}]},
        "batch": {"length": length, "sequences": windows},
        "optimizer": optimizer,
    }
    return make_recipe(values, PATH)


def _measure(method: str, recipe: Recipe, profiles: Path | None, device: str) -> Row:
    windows, length = recipe.batch.sequences, recipe.batch.length
    ranks = Ranks.join(torch.device(device))
    start = RandomStart(read_shape(recipe), method=method, device=device)
    engine = PlainEngine(recipe, start, ranks)
    generator = torch.Generator(device).manual_seed(0)
    shape = (windows, 1, length)
    bases = torch.tensor([*b"ACGT"], device=device)
    ids_NSL = bases[torch.randint(4, shape, device=device, generator=generator)]
    lengths_NS = torch.full(shape[:2], length, device=device)
    targets = torch.randint(3, shape[:1], device=device, generator=generator)
    weights = torch.ones(shape[0], device=device)

    def loss() -> torch.Tensor:
        return task_loss("classify", engine.forward(ids_NSL, lengths_NS), targets, weights)

    def step() -> None:
        engine.backward(loss() / shape[0], last=True)
        engine.step(1e-5)

    both = _seconds(lambda: engine.backward(loss() / shape[0], last=True))
    engine.optimizer.zero_grad()
    seconds = _seconds(step)
    if profiles:
        profiles.mkdir(parents=True, exist_ok=True)
        with torch.profiler.profile() as profile:
            step()
        order = "self_cuda_time_total" if device == "cuda" else "self_cpu_time_total"
        table = profile.key_averages().table(sort_by=order, row_limit=40)
        name = method.replace(", ", "-").replace(" ", "-")
        (profiles / f"{name}.txt").write_text(table, encoding="utf-8")
    memory = torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else 0
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    text = f"{method}: {seconds:.4f} s a step, of it forward and backward {both:.4f}"
    return Row(seconds, f"{text}, {memory:.1f} GiB")


def _forward(recipe: Recipe, device: str) -> None:
    """A forward pass of the frozen model without and with adapters."""
    config = read_shape(recipe)
    model = StripedHyena2.from_seed(config, 0).bfloat16().to(device).requires_grad_(False)
    ids_BL = torch.full((recipe.batch.sequences, recipe.batch.length), ord("A"), device=device)

    @torch.no_grad()
    def run() -> None:
        with torch.autocast(device, torch.bfloat16):
            model(ids_BL)

    plain = _seconds(run)
    add_adapters(model, LoRA(), target_names(config, "all"))
    adapted = _seconds(run)
    console.say(
        f"forward pass: {plain:.4f} s, with adapters {adapted:.4f} s, {adapted / plain:.3f} of it"
    )


def _seconds(run: Callable[[], None]) -> float:
    """The median time of a call."""
    times = []
    for _ in range(STEPS):
        begun = time.perf_counter()
        run()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begun)
    return statistics.median(times[WARM:])


if __name__ == "__main__":
    main()
