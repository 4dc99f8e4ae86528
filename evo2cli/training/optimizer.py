"""AdamW: parameter groups for weight decay, and the learning-rate schedule."""

import math
from typing import Any

import torch
from torch import nn

from evo2cli.training.recipe import Optimizer
from evo2cli.training.start import trunk_of
from stripedhyena2 import StripedHyena2
from stripedhyena2.adapters.lora import is_adapter_parameter
from stripedhyena2.mixer import folded_name

HEAD = ("head.", "pooling.")  # name prefixes of the modules that fine-tuning adds on top
MLP = ("mlp.gate.weight", "mlp.up.weight", "mlp.down.weight")


def make_optimizer(
    model: nn.Module, recipe: Optimizer, head_scale: float = 1.0
) -> torch.optim.AdamW:
    """AdamW with three parameter groups: with weight decay, without it, and the head.

    By default ("matrices") only the weight matrices of projections and MLPs decay; decay would pull
    filters towards zero and the tied head towards a uniform prediction. "evo2-published" reproduces
    the published runs, which also decayed filters and norms. Adapters and heads always decay.

    Args:
        model: The model in training form; frozen parameters are left out.
        recipe: The [optimizer] table.
        head_scale: Learning rate of the head as a multiple of that of the rest.
    """
    trunk = trunk_of(model)
    in_trunk = set() if trunk is None else decaying(trunk, recipe)
    with_decay: list[nn.Parameter] = []
    without: list[nn.Parameter] = []
    head: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if name.startswith(HEAD):
            head.append(parameter)
        elif is_adapter_parameter(name) or name.removeprefix("trunk.") in in_trunk:
            with_decay.append(parameter)
        else:
            without.append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": with_decay, "weight_decay": recipe.weight_decay},
        {"params": without, "weight_decay": 0.0},
        {"params": head, "weight_decay": recipe.weight_decay, "scale": head_scale},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=recipe.learning_rate,
        betas=recipe.betas,
        eps=1e-8,
        fused=next(model.parameters()).is_cuda,
    )


def learning_rate(step: int, recipe: Optimizer) -> float:
    """The learning rate of a step (0-based): linear warmup, then cosine decay.

    Warmup step i of n has (i + 1) / n of the peak. The step after warmup has the peak, and the last
    step the minimum; if they are the same step, it has the peak.
    """
    if step < recipe.warmup_steps:
        return recipe.learning_rate * (step + 1) / recipe.warmup_steps
    progress = (step - recipe.warmup_steps) / max(1, recipe.steps - 1 - recipe.warmup_steps)
    height = 0.5 * (1 + math.cos(math.pi * progress))
    return recipe.min_learning_rate + (recipe.learning_rate - recipe.min_learning_rate) * height


def set_rate(optimizer: Any, learning_rate: float) -> None:
    """Set the learning rate of all groups; that of the head is scaled by its `head_scale`."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group.get("scale", 1.0)


def decaying(model: StripedHyena2, recipe: Optimizer) -> set[str]:
    """Names of the parameters with weight decay.

    For the published runs, Savanna excluded only biases and the taps of MR; poles, residues, other
    taps, skips, norms and the tied embedding decayed as well, by oversight.
    """
    matrices, published_free = set(), set()
    for index, mixer in enumerate(model.mixers):
        matrices |= {f"blocks.{index}.{name}" for name in MLP}
        matrices |= {f"blocks.{index}.mixer.{name}" for name in mixer.decaying}
        published_free |= {f"blocks.{index}.mixer.{name}" for name in mixer.published_free}
    if recipe.decay == "evo2-published":
        return {n for n, _ in model.named_parameters() if folded_name(n) not in published_free}
    return {n for n, _ in model.named_parameters() if folded_name(n) in matrices}
