"""The interface between the training loop and an engine, and the engine for a single process.

An engine owns the model and the optimizer. Parameters are trained in fp32 (or as fp32 masters of
bf16 weights), and gradients are summed in fp32.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from evo2cli.training.optimizer import make_optimizer, set_rate
from evo2cli.training.ranks import Ranks
from evo2cli.training.recipe import Recipe
from evo2cli.training.start import Start, trunk_of
from stripedhyena2 import StripedHyena2
from stripedhyena2.float8.training import use_float8
from stripedhyena2.parallelize import SharedSequence
from stripedhyena2.parametrization import folded_state


@dataclass(frozen=True)
class Parameter:
    """A whole parameter in training form with its optimizer state, in fp32.

    Attributes:
        name: Its name in the model.
        value: Its weights.
        average: Adam's first moment.
        square: Adam's second moment.
    """

    name: str
    value: Tensor
    average: Tensor
    square: Tensor


class Engine(ABC):
    """A model in training.

    Attributes:
        model: The model; its parameters may be sharded over many GPUs, and some may be frozen.
        start: What it was built from.
        ranks: The processes that share it.
        name: Name of the engine in checkpoints.
        part: Start and end of the positions of a window that this rank computes.
    """

    name: str
    model: nn.Module
    start: Start
    ranks: Ranks
    part: tuple[int, int]

    @property
    def trunk(self) -> StripedHyena2:
        """The StripedHyena 2 in the model, which has one."""
        trunk = trunk_of(self.model)
        assert trunk is not None
        return trunk

    @cached_property
    def trained(self) -> dict[str, nn.Parameter]:
        """The parameters that are trained, by name."""
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    @property
    def layout(self) -> dict[str, Any]:
        """Facts that must be equal for `restore` to read what `save` wrote."""
        return {"engine": self.name, "world": self.ranks.world, "zero": 0}

    @property
    def shapes(self) -> dict[str, torch.Size]:
        """Shapes of the whole trained parameters by name, also where they are sharded."""
        return {name: tensor.shape for name, tensor in self.trained.items()}

    @abstractmethod
    def forward(self, *inputs: Tensor) -> Tensor:
        """The model's outputs; of its part of windows that this rank shares with others."""

    @abstractmethod
    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Add the gradient of one micro-batch.

        Args:
            loss: Its part of the loss of the step, which is the sum over micro-batches and ranks.
            last: Whether it is the last micro-batch of the step.
        """

    @abstractmethod
    def step(self, learning_rate: float) -> float:
        """Clip and apply the gradient of the step; if possible, not when it is not finite.

        Returns:
            The norm of the gradient over all parameters, before clipping.
        """

    @abstractmethod
    def nonfinite_gradient(self) -> str | None:
        """The name of a parameter whose gradient is not finite, if the gradient still exists."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write what `restore` needs; all ranks call it together."""

    @abstractmethod
    def restore(self, folder: Path) -> None:
        """Read what `save` wrote with the same engine and the same number of ranks, exactly."""

    @abstractmethod
    def adopt(self, parameters: Iterator[Parameter], steps: int) -> None:
        """Continue a run of another engine, or of another number of ranks.

        Args:
            parameters: All parameters, in any order.
            steps: Number of optimizer steps they have had.
        """

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within the context, the model computes with the weights that `weights` returns."""
        yield

    @abstractmethod
    def weights(self) -> dict[str, Tensor]:
        """Whole folded fp32 weights, on the CPU of the first rank; empty on the other ranks.

        Frozen parameters are left out.
        """


BUCKET = 100_000_000  # numbers of a transfer, unless one parameter has more


def _buckets(parameters: Iterable[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Parameters in their order, in groups of up to `BUCKET` numbers."""
    bucket: list[nn.Parameter] = []
    size = 0
    for parameter in parameters:
        if bucket and size + parameter.numel() > BUCKET:
            yield bucket
            bucket, size = [], 0
        bucket.append(parameter)
        size += parameter.numel()
    yield bucket


class PlainEngine(Engine):
    """Whole weights on one device, in autocast over fp32 parameters.

    Several ranks each hold all weights, and sum their gradients once a step.

    Args:
        recipe: The recipe.
        start: The model that the run starts from.
        ranks: The processes.
    """

    name = "plain"

    def __init__(self, recipe: Recipe, start: Start, ranks: Ranks) -> None:
        self.ranks, self.start = ranks, start
        self._recipe = recipe
        self.model = start.build(recipe, lambda part: part.to(ranks.device)).train()
        self.part = prepare(self.model, recipe, self.ranks)
        self.optimizer = make_optimizer(self.model, recipe.optimizer, recipe.head_scale)
        self.averages: dict[str, Tensor] = {}
        if recipe.optimizer.ema is not None:
            self.averages = {n: p.detach().clone() for n, p in self.trained.items()}

    def forward(self, *inputs: Tensor) -> Tensor:
        """As `Engine`."""
        bf16 = self._recipe.precision.compute == "bf16"
        with torch.autocast(self.ranks.device.type, dtype=torch.bfloat16, enabled=bf16):
            outputs: Tensor = self.model(*inputs)
        return outputs

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """As `Engine`."""
        loss.backward()  # type: ignore[no-untyped-call] # torch does not annotate it
        if last and self.ranks.world > 1:
            self._sum_gradients()

    def _sum_gradients(self) -> None:
        """Sum the gradients of all ranks, many in one transfer."""
        for bucket in _buckets(self.trained.values()):
            # A gradient is missing where no example of this rank needed it.
            found = [torch.zeros_like(p) if p.grad is None else p.grad for p in bucket]
            whole = self.ranks.sum(torch.cat([gradient.flatten() for gradient in found]))
            parts = torch.split(whole, [p.numel() for p in bucket])
            for parameter, part in zip(bucket, parts, strict=True):
                parameter.grad = part.view_as(parameter)

    def step(self, learning_rate: float) -> float:
        """As `Engine`; a gradient that is not finite is kept for `nonfinite_gradient`."""
        set_rate(self.optimizer, learning_rate)
        parameters = list(self.trained.values())
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        norm = get_total_norm(gradients, foreach=True)
        value = norm.item()
        if math.isfinite(value):
            clip_grads_with_norm_(parameters, self._recipe.optimizer.clip, norm, foreach=True)
            self.optimizer.step()
            self.optimizer.zero_grad()
            self._average()
        return value

    @torch.no_grad()
    def _average(self) -> None:
        decay = self._recipe.optimizer.ema
        if decay is None:
            return
        for name, parameter in self.trained.items():
            self.averages[name].lerp_(parameter, 1 - decay)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """As `Engine`."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        """Swap the parameters and their averages."""
        for name, parameter in self.trained.items():
            if name in self.averages:
                parameter.data, self.averages[name] = self.averages[name], parameter.data

    def nonfinite_gradient(self) -> str | None:
        """As `Engine`; then sets the gradient to zero for the next step."""
        bad = [
            name
            for name, parameter in self.trained.items()
            if parameter.grad is not None and not torch.isfinite(parameter.grad).all()
        ]
        self.optimizer.zero_grad()
        return bad[0] if bad else None

    def save(self, folder: Path) -> None:
        """As `Engine`, in resume.pt."""
        if not self.ranks.is_first:  # all ranks have the same
            return
        names = {parameter: name for name, parameter in self.trained.items()}
        groups = self.optimizer.param_groups
        frozen = {n for n, p in self.model.named_parameters() if not p.requires_grad}
        weights = {n: tensor for n, tensor in self.model.state_dict().items() if n not in frozen}
        state = {
            "names": [names[parameter] for group in groups for parameter in group["params"]],
            "model": weights,
            "optimizer": self.optimizer.state_dict(),
            "averages": self.averages,
        }
        torch.save(state, folder / "resume.pt")

    def restore(self, folder: Path) -> None:
        """As `Engine`."""
        state = read_plain(folder, self.ranks.device)
        self.model.load_state_dict({**self.model.state_dict(), **state["model"]})
        self.optimizer.load_state_dict(state["optimizer"])
        self.averages = state["averages"]

    @torch.no_grad()
    def adopt(self, parameters: Iterator[Parameter], steps: int) -> None:
        """As `Engine`."""
        own = self.trained
        for parameter in parameters:
            target = own[parameter.name]
            target.copy_(parameter.value)
            # A capturable or fused AdamW keeps its step count on the device.
            count = torch.tensor(float(steps), device=target.device if target.is_cuda else None)
            self.optimizer.state[target] = {
                "step": count,
                "exp_avg": parameter.average.to(target.device, copy=True),
                "exp_avg_sq": parameter.square.to(target.device, copy=True),
            }

    def weights(self) -> dict[str, Tensor]:
        """As `Engine`; the averaged weights if the recipe has optimizer.ema."""
        if not self.ranks.is_first:
            return {}
        folded = folded_state(self.model, {**self.trained, **self.averages}.items())
        return {name: tensor.cpu() for name, tensor in folded.items()}


def prepare(model: nn.Module, recipe: Recipe, ranks: Ranks) -> tuple[int, int]:
    """Apply the recipe's activation checkpointing, FP8, compilation and context parallelism.

    Returns:
        Start and end of the positions of a window that this rank computes.

    Raises:
        ValueError: A width of the model is not a multiple of what FP8 needs.
    """
    trunk = trunk_of(model)
    if trunk is None:
        return 0, recipe.batch.length
    trunk.activation_checkpointing = recipe.memory.activation_checkpointing
    trunk.checks_ids = False  # they are bytes
    if recipe.precision.fp8:
        use_float8(trunk)
    if recipe.precision.compile:
        raise_recompile_limit(2 * len(trunk.blocks))
        for block in trunk.blocks:
            block.compile()
    if ranks.context_parallel == 1:
        return 0, recipe.batch.length
    shared = SharedSequence(ranks.neighbours, recipe.parallel.schemes)
    shared.put_on(trunk)
    return shared.expect(recipe.batch.length)


def raise_recompile_limit(count: int) -> None:
    """Allow torch.compile to compile `count` more variants of a function than by default.

    Every parametrized operator has a class of its own, so blocks of the same kind do not share
    compiled code.
    """
    # The limit is documented, but only in the private module. Importing it takes seconds.
    from torch._dynamo import config

    config.recompile_limit += count


def read_plain(folder: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """What the plain engine saved; only tensors are unpickled."""
    state: dict[str, Any] = torch.load(folder / "resume.pt", map_location=device, weights_only=True)
    return state


def plain_parameters(folder: Path) -> Iterator[Parameter]:
    """The parameters that the plain engine saved, for another engine to adopt."""
    state = read_plain(folder)
    for index, name in enumerate(state["names"]):  # optimizer states are keyed by index
        entry = state["optimizer"]["state"][index]
        yield Parameter(name, state["model"][name], entry["exp_avg"], entry["exp_avg_sq"])
