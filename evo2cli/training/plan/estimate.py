"""Estimate memory, time and cost of a recipe, without running it."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from evo2cli.training.plan.disk import Disk, disk
from evo2cli.training.plan.flops import (
    Flops,
    flops_per_token,
    paper_flops_per_token,
)
from evo2cli.training.plan.hardware import Accelerator
from evo2cli.training.plan.memory import Frozen, Memory, Setup, Sizes, memory_per_gpu, sizes
from evo2cli.training.plan.step_time import StepTime, step_time
from evo2cli.training.recipe import Batch, Recipe
from stripedhyena2 import ModelConfig, StripedHyena2
from stripedhyena2.adapters.lora import target_names
from stripedhyena2.parallelize import check_schemes

SECONDS_PER_DAY = 86_400
CHECKPOINTING = (4, 2, 1)  # values of memory.activation_checkpointing that `advice` tries


@dataclass(frozen=True)
class Plan:
    """The estimate for a run on a given number of GPUs of one model.

    Attributes:
        config: Shape of the model.
        counts: Numbers of its parameters.
        gpu: The GPU model.
        setup: How the run uses its GPUs.
        batch: The batch of the recipe.
        steps: Steps of the whole run.
        memory: Peak memory of one GPU.
        time: Time of a step.
        disk: Disk space of the run.
    """

    config: ModelConfig
    counts: Sizes
    gpu: Accelerator
    setup: Setup
    batch: Batch
    steps: int
    memory: Memory
    time: StepTime
    disk: Disk

    @property
    def fits(self) -> bool:
        """Whether the GPUs have enough memory."""
        return self.memory.total <= self.gpu.memory

    @property
    def flops(self) -> Flops:
        """FLOPs of a forward pass, per token."""
        return flops_per_token(self.config, self.batch.length)

    @property
    def recomputed_flops(self) -> float:
        """FLOPs that activation checkpointing recomputes, per token."""
        return self.flops.blocks if self.setup.checkpointing else 0

    @property
    def paper_flops(self) -> float:
        """FLOPs of training, per token, as the paper counts them."""
        return paper_flops_per_token(self.config, self.batch.length)

    @property
    def tokens(self) -> int:
        """Tokens of the whole run."""
        return self.steps * self.batch.tokens

    @property
    def tokens_per_second(self) -> float:
        """Tokens per second on one GPU."""
        return self.batch.tokens / self.setup.gpus / self.time.total

    @property
    def utilization(self) -> float:
        """Model FLOPs (MFU), without recomputation, over the dense bf16 peak."""
        return self.tokens_per_second * self.flops.training / self.gpu.bf16

    @property
    def days(self) -> float:
        """Days of the whole run, excluding validation, checkpoints and failures."""
        return self.steps * self.time.total / SECONDS_PER_DAY

    @property
    def gpu_hours(self) -> float:
        """GPU hours of the whole run."""
        return self.days * 24 * self.setup.gpus


def make_plan(recipe: Recipe, config: ModelConfig, *, gpus: int, gpu: Accelerator) -> Plan:
    """Plan a recipe.

    Args:
        recipe: The recipe.
        config: Shape of the model that it trains.
        gpus: Number of GPUs.
        gpu: The GPU model.

    Raises:
        ValueError: The recipe cannot run on these GPUs, however much memory they have.
    """
    _check(recipe, config, gpus, gpu)
    counts = count_sizes(recipe, config)
    return _plan(recipe, config, counts, gpu, make_setup(recipe, config, gpus))


def count_sizes(recipe: Recipe, config: ModelConfig) -> Sizes:
    """Numbers of parameters of the model that a recipe trains."""
    return sizes(config, published=recipe.optimizer.decay == "evo2-published")


def _frozen(recipe: Recipe, config: ModelConfig) -> Frozen | None:
    """The frozen base of a fine-tuning run; None if all weights are trained."""
    tuning = recipe.finetune
    if tuning is None or tuning.method == "full":
        return None
    element = {"fp32": 4, "bf16": 2, "fp8": 1}[tuning.base]
    # Assume that the head reads a block, and has a hidden layer of the same width or one output.
    is_hidden = tuning.task != "lm" and tuning.head == "mlp"
    head = config.width * (config.width + 4) if is_hidden else config.width
    if tuning.method == "head":
        return Frozen(element, head, has_backward=False)
    adapters = tuning.adapters
    with torch.device("meta"):
        model = StripedHyena2(config)
    shapes: list[torch.Size] = [
        model.get_parameter(f"{name}.weight").shape
        for name in target_names(config, adapters.targets)
    ]
    trained = sum(adapters.rank * sum(shape) for shape in shapes)
    trained += sum(shape[0] for shape in shapes) if adapters.dora else 0
    trained += head if is_hidden else 0
    return Frozen(element, trained, has_backward=True)


def make_setup(recipe: Recipe, config: ModelConfig, gpus: int) -> Setup:
    """How a recipe uses this number of GPUs.

    Raises:
        ValueError: The batch cannot be divided evenly.
    """
    micro, context_parallel = recipe.micro(gpus), recipe.parallel.context
    frozen = _frozen(recipe, config)
    return Setup(
        gpus=gpus,
        zero=0 if frozen is not None else recipe.parallel.zero,
        length=recipe.batch.length,
        micro=micro,
        accumulation=recipe.batch.sequences // (gpus // context_parallel * micro),
        checkpointing=recipe.memory.activation_checkpointing,
        compute=recipe.precision.compute,
        fp8=recipe.precision.fp8,
        ema=recipe.optimizer.ema is not None,
        context=context_parallel,
        schemes=recipe.parallel.schemes,
        frozen=frozen,
    )


def _plan(
    recipe: Recipe, config: ModelConfig, counts: Sizes, gpu: Accelerator, setup: Setup
) -> Plan:
    tokens = recipe.batch.tokens / setup.gpus
    return Plan(
        config,
        counts,
        gpu,
        setup,
        recipe.batch,
        recipe.optimizer.steps,
        memory_per_gpu(config, counts, setup),
        step_time(config, counts, setup, gpu, tokens=tokens),
        disk(recipe, counts, setup),
    )


def _check(recipe: Recipe, config: ModelConfig, gpus: int, gpu: Accelerator) -> None:
    try:
        recipe.micro(gpus)
    except ValueError as error:
        raise ValueError(f"{error}; {_nearest(recipe, gpus)}") from None
    check_shape(recipe, config)
    if recipe.precision.fp8 and gpu.fp8 is None:
        raise ValueError(f"precision.fp8 = true: {gpu.key} has no FP8 units; set false")
    if recipe.optimizer.ema is not None and gpus > 1:
        raise ValueError(f"optimizer.ema needs whole weights in one process, not {gpus:,}")


def check_shape(recipe: Recipe, config: ModelConfig) -> None:
    """Refuse windows or context parallelism that the shape of the model does not allow.

    Raises:
        ValueError: The message names the table and the key.
    """
    if recipe.batch.length > config.context:
        key = "extend.to" if recipe.init else "shape.context"
        raise ValueError(
            f"batch.length = {recipe.batch.length:,} is longer than the model's context of "
            f"{config.context:,}; lower it, or set {key}"
        )
    try:
        check_schemes(config, recipe.parallel.schemes, recipe.parallel.context)
    except ValueError as error:
        raise ValueError(f"parallel.{error}") from None


def smallest_plan(recipe: Recipe, config: ModelConfig, *, gpu: Accelerator) -> Plan:
    """The plan with the fewest GPUs on which a recipe fits as it is.

    If it fits on no number of GPUs, the plan with the fewest that can divide its batch.

    Raises:
        ValueError: As `make_plan`.
    """
    fewest, *more = possible_gpus(recipe)
    plan = make_plan(recipe, config, gpus=fewest, gpu=gpu)
    larger = (make_plan(recipe, config, gpus=gpus, gpu=gpu) for gpus in more)
    return plan if plan.fits else next((other for other in larger if other.fits), plan)


def possible_gpus(recipe: Recipe) -> list[int]:
    """All numbers of GPUs that can divide the batch evenly, ascending."""
    most = recipe.batch.sequences // (recipe.batch.micro_sequences or 1)
    if recipe.optimizer.ema is not None:  # needs whole weights in one process
        most = 1
    groups = [count for count in range(1, most + 1) if most % count == 0]
    return [recipe.parallel.context * count for count in groups]


def _nearest(recipe: Recipe, gpus: int) -> str:
    counts = possible_gpus(recipe)
    below = [str(count) for count in counts if count < gpus][-1:]
    above = [str(count) for count in counts if count > gpus][:1]
    return f"the nearest possible numbers of GPUs are {' and '.join(below + above)}"


def advice(plan: Plan, recipe: Recipe) -> str:
    """How to make a run fit: the change of the fewest keys, and among those the fastest."""
    for change in _changes(plan, recipe):
        return change
    for gpus in possible_gpus(recipe):
        if gpus <= plan.setup.gpus:
            continue
        setup = make_setup(recipe, plan.config, gpus)
        larger = _plan(recipe, plan.config, plan.counts, plan.gpu, setup)
        if larger.fits:
            return f"use at least {gpus:,} GPUs"
        for change in _changes(larger, recipe):
            return f"use at least {gpus:,} GPUs, and {change}"
    return "use GPUs with more memory, or a shorter batch.length"


def _changes(plan: Plan, recipe: Recipe) -> Iterator[str]:
    """Changes of the recipe that make it fit on the same GPUs, the best first."""
    fitting = []
    for setup in _alternatives(plan.setup):
        other = _plan(recipe, plan.config, plan.counts, plan.gpu, setup)
        keys = [
            f"{key} = {getattr(setup, name)}"
            for name, key in (
                ("zero", "parallel.zero"),
                ("checkpointing", "memory.activation_checkpointing"),
                ("micro", "batch.micro_sequences"),
            )
            if getattr(setup, name) != getattr(plan.setup, name)
        ]
        if other.fits:
            fitting.append((len(keys), other.time.total, ", ".join(keys)))
    for _, _, change in sorted(fitting):
        yield f"set {change}"


def _alternatives(setup: Setup) -> Iterator[Setup]:
    is_alone = setup.gpus == 1 or setup.frozen is not None
    stages = [setup.zero] if is_alone else range(setup.zero, 4)
    per_rank = setup.micro * setup.accumulation
    for zero in stages:
        for checkpointing in {setup.checkpointing, *CHECKPOINTING}:
            for micro in range(1, setup.micro + 1):
                if per_rank % micro == 0:
                    yield replace(
                        setup,
                        zero=zero,
                        checkpointing=checkpointing,
                        micro=micro,
                        accumulation=per_rank // micro,
                    )
