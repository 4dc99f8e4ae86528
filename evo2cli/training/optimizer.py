"""AdamW, with decay where it belongs."""

import torch
from torch import nn

from evo2cli.training.recipe import Optimizer
from stripedhyena2 import StripedHyena2
from stripedhyena2.parametrization import folded_name

MLP = ("mlp.gate.weight", "mlp.up.weight", "mlp.down.weight")


def make_optimizer(model: StripedHyena2, recipe: Optimizer) -> torch.optim.AdamW:
    """AdamW in two groups: what decays, and what does not.

    "matrices" lets projections and MLPs decay, and nothing else: elsewhere decay would pull filters
    towards silence and the tied head towards a uniform guess. "evo2-published" decays what the
    published runs did.

    Args:
        model: In training form.
        recipe: Rates and decay.
    """
    names = decaying(model, recipe)
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        (decayed if name in names else free).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": decayed, "weight_decay": recipe.weight_decay},
            {"params": free, "weight_decay": 0.0},
        ],
        lr=recipe.learning_rate,
        betas=recipe.betas,
        eps=1e-8,
        fused=next(model.parameters()).is_cuda,
    )


def decaying(model: StripedHyena2, recipe: Optimizer) -> set[str]:
    """The names of the parameters that decay.

    Savanna spares biases and the taps of MR, and by accident nothing else: poles and residues,
    other taps, skips, norms and the tied embedding all decay.
    """
    matrices, published_free = set(), set()
    for index, mixer in enumerate(model.mixers):
        matrices |= {f"blocks.{index}.{name}" for name in MLP}
        matrices |= {f"blocks.{index}.mixer.{name}" for name in mixer.decaying}
        published_free |= {f"blocks.{index}.mixer.{name}" for name in mixer.published_free}
    if recipe.decay == "evo2-published":
        return {n for n, _ in model.named_parameters() if folded_name(n) not in published_free}
    return {n for n, _ in model.named_parameters() if folded_name(n) in matrices}
