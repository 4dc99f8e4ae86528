"""LoRA: a trainable low-rank update beside each frozen projection.

    y = W x + s B A x      with A [R, I], B [O, R], and s = alpha / R, or alpha / sqrt(R) (rsLoRA)

DoRA also trains a magnitude m for each output channel of the sum:

    y = m / ||W + s B A|| * (W + s B A) x      with the norm of each row, treated as a constant

An adapter is attached to its projection: A and B are submodules of it, so their names are those of
`peft`, and the module with the weight W stays as it is, whatever its precision.

I input channels, O output channels, R the rank. Sources: arXiv:2106.09685 (LoRA), 2312.03732
(rsLoRA), 2402.09353 (DoRA).
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from stripedhyena2.config import ModelConfig
from stripedhyena2.errors import InputError
from stripedhyena2.float8.frozen import Dense, FrozenLinear
from stripedhyena2.float8.inference import ScaledLinear
from stripedhyena2.layers import MIXER_PROJECTIONS, MLP_PROJECTIONS, num_blocks
from stripedhyena2.model import StripedHyena2

SETS = ("all", "mixer", "attention", "mlp")
A, B, MAGNITUDE = "lora_A", "lora_B", "lora_magnitude_vector"


@dataclass(frozen=True)
class LoRA:
    """Hyperparameters of adapters.

    Attributes:
        rank: Rows of A and columns of B.
        alpha: The update B A is scaled by alpha / rank.
        dropout: Dropout probability of the inputs of A in training.
        targets: "all" projections and MLPs, those of the "mixer", of "attention" or of the "mlp";
            or a regular expression that matches whole names of modules.
        rslora: Scale by alpha / sqrt(rank) instead.
        dora: Also train the magnitude of each output channel (DoRA).
    """

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    targets: str = "all"
    rslora: bool = False
    dora: bool = False

    @property
    def scale(self) -> float:
        """The factor of B A x."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


def projections(config: ModelConfig) -> dict[str, frozenset[str]]:
    """The modules that can have an adapter, in order, each with the `SETS` it belongs to."""
    modules: dict[str, frozenset[str]] = {}
    for index, mixer in enumerate(config.mixers):
        kinds = {"all", "mixer"} | ({"attention"} if mixer.is_quadratic else set())
        modules |= {f"blocks.{index}.{name}": frozenset(kinds) for name in MIXER_PROJECTIONS}
        modules |= {f"blocks.{index}.{name}": frozenset({"all", "mlp"}) for name in MLP_PROJECTIONS}
    return modules


def target_names(config: ModelConfig, targets: str, depth: int | None = None) -> list[str]:
    """The modules that get an adapter.

    Args:
        config: The shape of the model.
        targets: As `LoRA.targets`.
        depth: Only these first blocks, because later ones are not computed.

    Raises:
        InputError: No module matches; the message lists the candidates.
    """
    allowed = {
        name: sets
        for name, sets in projections(config).items()
        if depth is None or num_blocks(config, [name]) <= depth
    }
    if targets in SETS:
        chosen = [name for name, sets in allowed.items() if targets in sets]
    else:
        try:
            pattern = re.compile(targets)
        except re.error as error:
            raise InputError(f"targets {targets!r}: not a regular expression ({error})") from None
        chosen = [name for name in allowed if pattern.fullmatch(name)]
    if not chosen:
        names = ", ".join(dict.fromkeys(re.sub(r"\d+", "N", name, count=1) for name in allowed))
        raise InputError(
            f"targets {targets!r}: no module matches; choose {', '.join(SETS)}, or a regular "
            f"expression for whole names among {names}, with N from 0 to "
            f"{(depth or config.depth) - 1}"
        )
    return chosen


def add_adapters(
    model: StripedHyena2, lora: LoRA, names: Iterable[str], *, seed: int = 0
) -> list[str]:
    """Attach fp32 adapters to modules of a model; its outputs do not change, because B is 0.

    Args:
        model: The model.
        lora: Hyperparameters of the adapters.
        names: Names of the modules.
        seed: Seed of the initial values of A, which are drawn on the CPU, module by module.

    Returns:
        The names of the new parameters.
    """
    generator = torch.Generator().manual_seed(seed)
    parameters = []
    for name in names:
        linear: Any = model.get_submodule(name)
        kind = _ADAPTED.get(type(linear))
        if kind is not None and not (lora.dora or lora.dropout):
            linear.__class__, linear.scale = kind, lora.scale
            linear.requires_grad_(False)
        else:
            linear.register_forward_hook(_AdapterHook(lora))
        height, width = linear.weight.shape
        device = linear.weight.device
        bound = 1 / math.sqrt(width)  # as torch and peft initialize linear layers
        a_RI = torch.empty(lora.rank, width).uniform_(-bound, bound, generator=generator)
        linear.add_module(A, _linear(a_RI.to(device)))
        linear.add_module(B, _linear(torch.zeros(height, lora.rank, device=device)))
        parameters += [f"{name}.{A}.weight", f"{name}.{B}.weight"]
        if lora.dora:
            norms_O = dense_weight(linear).norm(dim=1)
            linear.register_parameter(MAGNITUDE, nn.Parameter(norms_O))
            parameters.append(f"{name}.{MAGNITUDE}")
    return parameters


def _linear(weight: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    layer.weight = nn.Parameter(weight)
    return layer


class _Adapted(nn.Module):
    """A projection with an adapter, as one fused operation: `_AdaptedProduct`."""

    def forward(self, x: Tensor) -> Tensor:
        """Compute x W^T + s (x A^T) B^T in the dtype of autocast if it is on, else that of `x`."""
        kind = x.device.type
        is_autocast = torch.is_autocast_enabled(kind)
        dtype = torch.get_autocast_dtype(kind) if is_autocast else x.dtype
        layer: Any = self
        bias_O: Tensor | None = layer.bias
        product: Any = _AdaptedProduct.apply
        y: Tensor = product(
            x.to(dtype),
            layer.dense,
            None if bias_O is None else bias_O.to(dtype),
            layer.lora_A.weight,
            layer.lora_B.weight,
            layer.scale,
        )
        return y


class _AdaptedLinear(_Adapted, nn.Linear):
    """A dense projection with an adapter."""

    def dense(self, dtype: torch.dtype) -> Tensor:
        """The weight in another dtype."""
        return self.weight.to(dtype)


class _AdaptedFrozenLinear(_Adapted, FrozenLinear):
    """A projection whose weight is stored in FP8, with an adapter."""


_ADAPTED: dict[type[nn.Module], type[_Adapted]] = {
    nn.Linear: _AdaptedLinear,
    FrozenLinear: _AdaptedFrozenLinear,
}


class _AdaptedProduct(torch.autograd.Function):
    """x W^T + bias + s (x A^T) B^T in the dtype of x, with gradients for x, A and B alone.

    `dense` returns W in a dtype. The backward pass calls it again, so that no dequantized copy of a
    weight in FP8 is saved.

    Products with low-rank matrices are memory-bound: they read or write all of x or y. So no sum
    takes a pass of its own: the large product accumulates onto the result of the small one.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        dense: Dense,
        bias_O: Tensor | None,
        a_RI: Tensor,
        b_OR: Tensor,
        scale: float,
    ) -> Tensor:
        ctx.shape, ctx.scale, ctx.dtype, ctx.dense = x.shape, scale, a_RI.dtype, dense
        a_RI, b_OR, rows_NI = a_RI.to(x.dtype), b_OR.to(x.dtype), x.flatten(0, -2)
        inner_NR = (rows_NI @ a_RI.T).mul_(scale)
        y_NO = inner_NR @ b_OR.T if bias_O is None else torch.addmm(bias_O, inner_NR, b_OR.T)
        y_NO.addmm_(rows_NI, dense(x.dtype).T)
        ctx.save_for_backward(rows_NI, a_RI, b_OR, inner_NR)
        return y_NO.view(*x.shape[:-1], -1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        rows_NI, a_RI, b_OR, inner_NR = ctx.saved_tensors
        dy_NO = dy.flatten(0, -2)
        dinner_NR = (dy_NO @ b_OR).mul_(ctx.scale)
        dx = None
        if ctx.needs_input_grad[0]:
            dx = (dinner_NR @ a_RI).addmm_(dy_NO, ctx.dense(dy.dtype)).view(ctx.shape)
        da_RI, db_OR = dinner_NR.T @ rows_NI, dy_NO.T @ inner_NR
        return dx, None, None, da_RI.to(ctx.dtype), db_OR.to(ctx.dtype), None


@dataclass(frozen=True)
class _AdapterHook:
    """The forward hook for DoRA, dropout, and projections that `_Adapted` does not cover."""

    lora: LoRA

    def __call__(self, linear: Any, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        x = inputs[0]
        if not torch.is_autocast_enabled(x.device.type):
            x = x.to(linear.lora_A.weight.dtype)
        x = nn.functional.dropout(x, self.lora.dropout, linear.training)
        a: Tensor = self.lora.scale * linear.lora_A(x)
        b_OR: Tensor = linear.lora_B.weight
        if not self.lora.dora:
            # A single pass over the output, which is much wider than the rank.
            rows = output.to(a.dtype).flatten(0, -2)
            return torch.addmm(rows, a.flatten(0, -2), b_OR.T).view_as(output).to(output.dtype)
        added = nn.functional.linear(a, b_OR)
        with torch.no_grad():
            norms_O = (dense_weight(linear) + _product(linear, self.lora.scale)).norm(dim=1)
        stored: Tensor | None = getattr(linear, "bias", None)
        bias = output.new_zeros(()) if stored is None else stored
        factor_O: Tensor = getattr(linear, MAGNITUDE) / norms_O
        return (factor_O * (output - bias + added) + bias).to(output.dtype)


def dense_weight(linear: Any) -> Tensor:
    """The weight of a projection in fp32 or better, whatever dtype it is stored in."""
    weight: Tensor = linear.weight.detach()
    if isinstance(linear, FrozenLinear | ScaledLinear):
        return linear.dense(torch.float32)
    return weight.to(torch.promote_types(weight.dtype, torch.float32))


def _product(linear: Any, scale: float) -> Tensor:
    """The matrix s B A."""
    a_RI: Tensor = linear.lora_A.weight.detach().float()
    b_OR: Tensor = linear.lora_B.weight.detach().float()
    return scale * (b_OR @ a_RI)


def is_adapter_parameter(name: str) -> bool:
    """Whether a parameter of this name belongs to an adapter."""
    return any(part in (A, B, MAGNITUDE) for part in name.split("."))


def adapter_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The parameters of all adapters of a model, by name."""
    return {
        name: parameter.detach()
        for name, parameter in model.named_parameters()
        if is_adapter_parameter(name)
    }


@torch.no_grad()
def merged_weight(weight_OI: Tensor, lora: LoRA, tensors: Mapping[str, Tensor]) -> Tensor:
    """The weight of a projection with its adapter merged into it, in fp32 or better.

    Args:
        weight_OI: The weight of the projection.
        lora: Hyperparameters of the adapter.
        tensors: Its tensors by their names within the projection.
    """
    wide = torch.promote_types(weight_OI.dtype, torch.float32)
    a_RI, b_OR = (tensors[f"{part}.weight"].to(weight_OI.device, wide) for part in (A, B))
    merged_OI = weight_OI.to(wide) + lora.scale * (b_OR @ a_RI)
    if lora.dora:
        magnitude_O = tensors[MAGNITUDE].to(weight_OI.device, wide)
        merged_OI *= (magnitude_O / merged_OI.norm(dim=1))[:, None]
    return merged_OI


def merged_weights(
    weights: Mapping[str, Tensor], lora: LoRA, tensors: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The weights of a model with its adapters merged into them, in their own dtypes.

    Args:
        weights: Weights of the base model by name.
        lora: Hyperparameters of the adapters.
        tensors: The tensors of all adapters by name.
    """
    merged = dict(weights)
    for module, parts in by_module(tensors).items():
        name = f"{module}.weight"
        merged[name] = merged_weight(weights[name], lora, parts).to(weights[name].dtype)
    return merged


def by_module(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The tensors of adapters by the module that they adapt, under their names within it."""
    modules: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        module, part = re.split(rf"\.(?=(?:{A}|{B}|{MAGNITUDE})(?:\.|$))", name, maxsplit=1)
        modules.setdefault(module, {})[part] = tensor
    return modules


@torch.no_grad()
def put_on(model: StripedHyena2, lora: LoRA, tensors: Mapping[str, Tensor]) -> None:
    """Apply adapters to a model that was loaded for inference.

    They are merged into the weights, in the precision of the model. For projections that are stored
    in FP8 they stay separate, in the dtype of the activations.
    """
    for module, parts in by_module(tensors).items():
        linear: Any = model.get_submodule(module)
        if isinstance(linear, nn.Linear):
            linear.weight.copy_(merged_weight(linear.weight, lora, parts))
            continue
        add_adapters(model, lora, [module])
        for name, tensor in parts.items():
            parameter = linear.get_parameter(name)
            parameter.data = tensor.to(parameter.device, model.embedding.weight.dtype)
            parameter.requires_grad_(False)
