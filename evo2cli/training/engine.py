"""The interface of training engines, and the plain engine, which does not shard the model.

An engine owns the model and the optimizer. Parameters are trained in fp32 (or as fp32 masters of
bf16 weights), and gradients are accumulated in fp32.
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
    """An unsharded parameter in training form with its optimizer state, in fp32.

    Attributes:
        name: Its name in the model.
        value: The weights.
        exp_avg: Adam's first moment.
        exp_avg_sq: Adam's second moment.
    """

    name: str
    value: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor


class Engine(ABC):
    """A model in training, with its optimizer.

    Attributes:
        model: The model; its parameters may be sharded over the ranks, and some may be frozen.
        start: The initial model that it was built from.
        ranks: The ranks of the run.
        name: Name of the engine in checkpoints.
        positions: First and one-past-last position of a window that this rank computes.
    """

    name: str
    model: nn.Module
    start: Start
    ranks: Ranks
    positions: tuple[int, int]

    @property
    def trunk(self) -> StripedHyena2:
        """The StripedHyena 2 in the model; there must be one."""
        trunk = trunk_of(self.model)
        assert trunk is not None
        return trunk

    @cached_property
    def trainable(self) -> dict[str, nn.Parameter]:
        """The parameters that are not frozen, by name."""
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    @property
    def layout(self) -> dict[str, Any]:
        """Engine, world size and ZeRO stage; `restore` needs those that the checkpoint had."""
        return {"engine": self.name, "world": self.ranks.world, "zero": 0}

    @property
    def shapes(self) -> dict[str, torch.Size]:
        """Unsharded shapes of the trainable parameters, by name."""
        return {name: tensor.shape for name, tensor in self.trainable.items()}

    @abstractmethod
    def forward(self, *inputs: Tensor) -> Tensor:
        """The outputs of the model, under context parallelism for this rank's `positions`."""

    @abstractmethod
    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Accumulate the gradient of one micro-batch.

        Args:
            loss: Its loss; the loss of the step is the sum over micro-batches and ranks.
            last: Whether it is the last micro-batch of the step.
        """

    @abstractmethod
    def step(self, learning_rate: float) -> float:
        """Clip the gradient and update the weights, unless the gradient is found not finite.

        Returns:
            The global gradient norm before clipping.
        """

    @abstractmethod
    def nonfinite_gradient(self) -> str | None:
        """Name of a parameter with a gradient that is not finite; None if none is known."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write weights and optimizer state; all ranks call it together."""

    @abstractmethod
    def restore(self, folder: Path) -> None:
        """Read bit for bit what `save` wrote with the same `layout`."""

    @abstractmethod
    def load_parameters(self, parameters: Iterator[Parameter], steps: int) -> None:
        """Load weights and optimizer state that another engine or world size has written.

        Args:
            parameters: All trainable parameters, in any order.
            steps: Number of optimizer steps taken.
        """

    @contextmanager
    def ema_weights(self) -> Iterator[None]:
        """Within the context, the model has the EMA weights, if the recipe keeps an EMA."""
        yield

    @abstractmethod
    def weights(self) -> dict[str, Tensor]:
        """Unsharded fp32 weights in inference form, on the CPU of rank 0; empty on other ranks.

        Frozen parameters are left out.
        """


BUCKET = 100_000_000  # elements per all-reduce, unless one parameter has more


def _buckets(parameters: Iterable[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Group parameters, in order, into buckets of up to `BUCKET` elements."""
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
    """Unsharded fp32 parameters under autocast.

    With several ranks it is plain data parallelism: each holds all weights, and gradients are
    all-reduced once per step.

    Args:
        recipe: The recipe.
        start: The model that the run starts from.
        ranks: The ranks of the run.
    """

    name = "plain"

    def __init__(self, recipe: Recipe, start: Start, ranks: Ranks) -> None:
        self.ranks, self.start = ranks, start
        self._recipe = recipe
        self.model = start.build(recipe, lambda part: part.to(ranks.device)).train()
        self.positions = prepare(self.model, recipe, self.ranks)
        self.optimizer = make_optimizer(self.model, recipe.optimizer, recipe.head_scale)
        self.ema: dict[str, Tensor] = {}
        if recipe.optimizer.ema is not None:
            self.ema = {n: p.detach().clone() for n, p in self.trainable.items()}

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
        """All-reduce the gradients in buckets."""
        for bucket in _buckets(self.trainable.values()):
            # A gradient is None where no example of this rank used the parameter.
            gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in bucket]
            flat = self.ranks.sum(torch.cat([gradient.flatten() for gradient in gradients]))
            reduced = torch.split(flat, [p.numel() for p in bucket])
            for parameter, gradient in zip(bucket, reduced, strict=True):
                parameter.grad = gradient.view_as(parameter)

    def step(self, learning_rate: float) -> float:
        """As `Engine`; gradients that are not finite are kept for `nonfinite_gradient`."""
        set_rate(self.optimizer, learning_rate)
        parameters = list(self.trainable.values())
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        norm = get_total_norm(gradients, foreach=True)
        value = norm.item()
        if math.isfinite(value):
            clip_grads_with_norm_(parameters, self._recipe.optimizer.clip, norm, foreach=True)
            self.optimizer.step()
            self.optimizer.zero_grad()
            self._update_ema()
        return value

    @torch.no_grad()
    def _update_ema(self) -> None:
        decay = self._recipe.optimizer.ema
        if decay is None:
            return
        for name, parameter in self.trainable.items():
            self.ema[name].lerp_(parameter, 1 - decay)

    @contextmanager
    def ema_weights(self) -> Iterator[None]:
        """As `Engine`."""
        self._swap_ema()
        try:
            yield
        finally:
            self._swap_ema()

    def _swap_ema(self) -> None:
        """Swap the parameters and their EMA."""
        for name, parameter in self.trainable.items():
            if name in self.ema:
                parameter.data, self.ema[name] = self.ema[name], parameter.data

    def nonfinite_gradient(self) -> str | None:
        """As `Engine`; then discards the gradients."""
        bad = [
            name
            for name, parameter in self.trainable.items()
            if parameter.grad is not None and not torch.isfinite(parameter.grad).all()
        ]
        self.optimizer.zero_grad()
        return bad[0] if bad else None

    def save(self, folder: Path) -> None:
        """As `Engine`, in resume.pt."""
        if not self.ranks.is_first:  # the state is the same on all ranks
            return
        names = {parameter: name for name, parameter in self.trainable.items()}
        groups = self.optimizer.param_groups
        frozen = {n for n, p in self.model.named_parameters() if not p.requires_grad}
        weights = {n: tensor for n, tensor in self.model.state_dict().items() if n not in frozen}
        state = {
            "names": [names[parameter] for group in groups for parameter in group["params"]],
            "model": weights,
            "optimizer": self.optimizer.state_dict(),
            "averages": self.ema,
        }
        torch.save(state, folder / "resume.pt")

    def restore(self, folder: Path) -> None:
        """As `Engine`."""
        state = read_plain(folder, self.ranks.device)
        self.model.load_state_dict({**self.model.state_dict(), **state["model"]})
        self.optimizer.load_state_dict(state["optimizer"])
        self.ema = state["averages"]

    @torch.no_grad()
    def load_parameters(self, parameters: Iterator[Parameter], steps: int) -> None:
        """As `Engine`."""
        trainable = self.trainable
        for parameter in parameters:
            target = trainable[parameter.name]
            target.copy_(parameter.value)
            # A capturable or fused AdamW keeps its step count on the device.
            count = torch.tensor(float(steps), device=target.device if target.is_cuda else None)
            self.optimizer.state[target] = {
                "step": count,
                "exp_avg": parameter.exp_avg.to(target.device, copy=True),
                "exp_avg_sq": parameter.exp_avg_sq.to(target.device, copy=True),
            }

    def weights(self) -> dict[str, Tensor]:
        """As `Engine`; the EMA weights if the recipe has optimizer.ema."""
        if not self.ranks.is_first:
            return {}
        folded = folded_state(self.model, {**self.trainable, **self.ema}.items())
        return {name: tensor.cpu() for name, tensor in folded.items()}


def prepare(model: nn.Module, recipe: Recipe, ranks: Ranks) -> tuple[int, int]:
    """Apply the recipe's activation checkpointing, FP8, compilation and context parallelism.

    Returns:
        First and one-past-last position of a window that this rank computes.

    Raises:
        ValueError: A width of the model is not a multiple of what FP8 needs.
    """
    trunk = trunk_of(model)
    if trunk is None:
        return 0, recipe.batch.length
    trunk.activation_checkpointing = recipe.memory.activation_checkpointing
    trunk.checks_ids = False  # token ids are bytes, so always valid
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
    """Raise torch.compile's limit of compiled variants per function by `count`.

    `parametrize` gives every operator a class of its own, so blocks of the same kind do not share
    compiled code.
    """
    # The limit is documented, but only in the private module. Importing it takes seconds.
    from torch._dynamo import config

    config.recompile_limit += count


def read_plain(folder: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read the state that the plain engine saved; only tensors are unpickled."""
    state: dict[str, Any] = torch.load(folder / "resume.pt", map_location=device, weights_only=True)
    return state


def plain_parameters(folder: Path) -> Iterator[Parameter]:
    """The parameters that the plain engine saved, for `Engine.load_parameters`."""
    state = read_plain(folder)
    for index, name in enumerate(state["names"]):  # optimizer states are keyed by index
        entry = state["optimizer"]["state"][index]
        yield Parameter(name, state["model"][name], entry["exp_avg"], entry["exp_avg_sq"])
