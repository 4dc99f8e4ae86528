"""AdamW, and which parameters have weight decay."""

import torch
from torch import nn

from evo2cli.training.recipe import Optimizer
from stripedhyena2 import StripedHyena2
from stripedhyena2.mixer import folded_name

MLP = ("mlp.gate.weight", "mlp.up.weight", "mlp.down.weight")


def make_optimizer(model: StripedHyena2, recipe: Optimizer) -> torch.optim.AdamW:
    """AdamW with two groups of parameters: with and without weight decay.

    By default ("matrices") only the weight matrices of projections and MLPs decay; decay would pull
    filters towards zero and the tied head towards a uniform prediction. "evo2-published" reproduces
    the published runs, which also decayed filters and norms.

    Args:
        model: In training form.
        recipe: Its table [optimizer].
    """
    names = decaying(model, recipe)
    with_decay: list[nn.Parameter] = []
    without: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        (with_decay if name in names else without).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": with_decay, "weight_decay": recipe.weight_decay},
            {"params": without, "weight_decay": 0.0},
        ],
        lr=recipe.learning_rate,
        betas=recipe.betas,
        eps=1e-8,
        fused=next(model.parameters()).is_cuda,
    )


def decaying(model: StripedHyena2, recipe: Optimizer) -> set[str]:
    """The names of the parameters with weight decay.

    Savanna excluded biases and the taps of MR; poles, residues, other taps, skips, norms and the
    tied embedding decayed as well, by oversight.
    """
    matrices, published_free = set(), set()
    for index, mixer in enumerate(model.mixers):
        matrices |= {f"blocks.{index}.{name}" for name in MLP}
        matrices |= {f"blocks.{index}.mixer.{name}" for name in mixer.decaying}
        published_free |= {f"blocks.{index}.mixer.{name}" for name in mixer.published_free}
    if recipe.decay == "evo2-published":
        return {n for n, _ in model.named_parameters() if folded_name(n) not in published_free}
    return {n for n, _ in model.named_parameters() if folded_name(n) in matrices}
