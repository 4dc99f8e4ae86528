"""What the loop asks of an engine, and the plain one: a single process, no extra package.

An engine owns model and optimizer. Parameters train in fp32 (or as fp32 masters of bf16 copies),
and gradients are summed in fp32.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from evo2cli.training.optimizer import make_optimizer
from evo2cli.training.ranks import Ranks
from evo2cli.training.recipe import Recipe
from stripedhyena2 import ModelConfig, StripedHyena2
from stripedhyena2.assembly import assemble
from stripedhyena2.float8.training import use_float8
from stripedhyena2.parallelize import SharedSequence
from stripedhyena2.parametrization import folded_state


@dataclass(frozen=True)
class Start:
    """Where a run begins.

    Attributes:
        config: The shape.
        weights: Folded weights by name; None for fresh ones from the recipe's seed.
    """

    config: ModelConfig
    weights: Mapping[str, Tensor] | None = None


@dataclass(frozen=True)
class Parameter:
    """A parameter with the moments of its optimizer, whole, in fp32 and in training form.

    Attributes:
        name: In the model.
        value: Its weights.
        average: Adam's running mean of gradients.
        square: Adam's running mean of their squares.
    """

    name: str
    value: Tensor
    average: Tensor
    square: Tensor


class Engine(ABC):
    """A model in training.

    Attributes:
        model: Runs forward; its parameters may lie in pieces over many GPUs.
        ranks: The processes that share it.
        name: Of the engine, as checkpoints tell it.
        part: Start and end of the positions of a window that this rank sees.
    """

    name: str
    model: StripedHyena2
    ranks: Ranks
    part: tuple[int, int]

    @property
    def layout(self) -> dict[str, Any]:
        """What must be equal for `restore` to take what `save` wrote."""
        return {"engine": self.name, "world": self.ranks.world, "zero": 0}

    @property
    def shapes(self) -> dict[str, torch.Size]:
        """Of whole parameters, by name, whatever this rank holds of them."""
        named = self.model.named_parameters()
        return {name: getattr(tensor, "ds_shape", tensor.shape) for name, tensor in named}

    @abstractmethod
    def forward(self, ids_BL: Tensor) -> Tensor:
        """Logits [B, L, V] of this rank's part of its windows."""

    @abstractmethod
    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Add the gradient of one micro-batch; losses of all ranks and micro-batches add up.

        Args:
            loss: This micro-batch's part of the step's loss.
            last: Whether it is the step's last one.
        """

    @abstractmethod
    def step(self, learning_rate: float) -> float:
        """Clip and apply the step's gradient; one that is not finite changes nothing if it can.

        Returns:
            The gradient's norm over all parameters, before clipping.
        """

    @abstractmethod
    def nonfinite_gradient(self) -> str | None:
        """The name of a parameter whose gradient is not finite, if it can still be told."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write what `restore` needs, all ranks together."""

    @abstractmethod
    def restore(self, folder: Path) -> None:
        """Take back exactly what `save` wrote with this engine on as many ranks."""

    @abstractmethod
    def adopt(self, parameters: Iterator[Parameter], steps: int) -> None:
        """Take over a run of another engine, or of another number of ranks.

        Args:
            parameters: In any order, all of them.
            steps: That the optimizer has done.
        """

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """While inside, the model computes with what `weights` gives."""
        yield

    @abstractmethod
    def weights(self) -> dict[str, Tensor]:
        """Folded fp32 weights, whole, on the CPU of the first rank; empty on the others."""


class PlainEngine(Engine):
    """One process on one device: autocast over fp32 parameters.

    Args:
        recipe: What to do.
        start: Where to begin.
        device: Where.
    """

    name = "plain"

    def __init__(self, recipe: Recipe, start: Start, device: torch.device) -> None:
        self.ranks = Ranks.alone(device)
        self._recipe = recipe
        self.model = assemble(
            start.config,
            seed=recipe.seed,
            weights=start.weights,
            published=recipe.optimizer.decay == "evo2-published",
            adopt=lambda part: part.to(device),
        ).train()
        self.part = prepare(self.model, recipe, self.ranks)
        self.optimizer = make_optimizer(self.model, recipe.optimizer)
        self.averages: dict[str, Tensor] = {}
        if recipe.optimizer.ema is not None:
            self.averages = {n: p.detach().clone() for n, p in self.model.named_parameters()}

    def forward(self, ids_BL: Tensor) -> Tensor:
        """As `Engine`."""
        narrow = self._recipe.precision.compute == "bf16"
        with torch.autocast(ids_BL.device.type, dtype=torch.bfloat16, enabled=narrow):
            logits: Tensor = self.model(ids_BL)
        return logits

    def backward(self, loss: Tensor, *, last: bool) -> None:  # noqa: ARG002 - all are alike here
        """As `Engine`."""
        loss.backward()  # type: ignore[no-untyped-call] # torch does not annotate it

    def step(self, learning_rate: float) -> float:
        """As `Engine`; a gradient that is not finite stays for `nonfinite_gradient`."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        parameters = list(self.model.parameters())
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
        for name, parameter in self.model.named_parameters():
            self.averages[name].lerp_(parameter, 1 - decay)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """As `Engine`."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def _exchange(self) -> None:
        """The averages for the parameters, and back."""
        for name, parameter in self.model.named_parameters():
            if name in self.averages:
                parameter.data, self.averages[name] = self.averages[name], parameter.data

    def nonfinite_gradient(self) -> str | None:
        """As `Engine`; drops the gradient, so that the next step starts anew."""
        bad = [
            name
            for name, parameter in self.model.named_parameters()
            if parameter.grad is not None and not torch.isfinite(parameter.grad).all()
        ]
        self.optimizer.zero_grad()
        return bad[0] if bad else None

    def save(self, folder: Path) -> None:
        """As `Engine`: resume.pt."""
        names = {parameter: name for name, parameter in self.model.named_parameters()}
        groups = self.optimizer.param_groups
        state = {
            "names": [names[parameter] for group in groups for parameter in group["params"]],
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "averages": self.averages,
        }
        torch.save(state, folder / "resume.pt")

    def restore(self, folder: Path) -> None:
        """As `Engine`."""
        state = read_plain(folder, self.ranks.device)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.averages = state["averages"]

    @torch.no_grad()
    def adopt(self, parameters: Iterator[Parameter], steps: int) -> None:
        """As `Engine`."""
        own = dict(self.model.named_parameters())
        for parameter in parameters:
            target = own[parameter.name]
            target.copy_(parameter.value)
            # A capturable or fused AdamW counts steps on the device.
            count = torch.tensor(float(steps), device=target.device if target.is_cuda else None)
            self.optimizer.state[target] = {
                "step": count,
                "exp_avg": parameter.average.to(target.device, copy=True),
                "exp_avg_sq": parameter.square.to(target.device, copy=True),
            }

    def weights(self) -> dict[str, Tensor]:
        """As `Engine`; the averaged ones where the recipe asks for an average."""
        folded = folded_state(self.model, self.averages.items() if self.averages else None)
        return {name: tensor.cpu() for name, tensor in folded.items()}


def prepare(model: StripedHyena2, recipe: Recipe, ranks: Ranks) -> tuple[int, int]:
    """Put on a model what a recipe says of memory, precision and sharing of windows.

    Returns:
        Start and end of the positions of a window that this rank sees.

    Raises:
        ValueError: A width does not suit FP8.
    """
    model.activation_checkpointing = recipe.memory.activation_checkpointing
    if recipe.precision.fp8:
        use_float8(model)
    if recipe.precision.compile:
        from torch import _dynamo as dynamo  # seconds, for whoever compiles

        # A parametrized operator has a class of its own, so that blocks of a kind share no code.
        limit = 2 * len(model.blocks) + dynamo.config.recompile_limit
        dynamo.config.recompile_limit = limit
        for block in model.blocks:
            block.compile()
    if ranks.context == 1:
        return 0, recipe.batch.length
    shared = SharedSequence(ranks.neighbours, recipe.parallel.schemes)
    shared.put_on(model)
    return shared.expect(recipe.batch.length)


def read_plain(folder: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """What the plain engine saved; nothing but tensors is unpickled."""
    state: dict[str, Any] = torch.load(folder / "resume.pt", map_location=device, weights_only=True)
    return state


def plain_parameters(folder: Path) -> Iterator[Parameter]:
    """The parameters that a plain engine saved, for another engine to adopt."""
    state = read_plain(folder)
    for index, name in enumerate(state["names"]):  # an optimizer counts its parameters through
        entry = state["optimizer"]["state"][index]
        yield Parameter(name, state["model"][name], entry["exp_avg"], entry["exp_avg_sq"])
