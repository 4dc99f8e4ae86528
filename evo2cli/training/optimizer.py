"""AdamW, with decay where it belongs."""

import torch
from torch import nn

from evo2cli.training.recipe import Optimizer

MATRICES = (
    "project_in.weight",
    "project_out.weight",
    "mlp.gate.weight",
    "mlp.up.weight",
    "mlp.down.weight",
)

# Savanna spares what is called "bias" and the taps of MR, and by accident nothing else: poles and
# residues, other taps, skips, norms and the tied embedding all decay.
PUBLISHED_FREE = ("bias", "parametrizations.taps_GK.original")


def make_optimizer(model: nn.Module, recipe: Optimizer) -> torch.optim.AdamW:
    """AdamW in two groups: what decays, and what does not.

    "matrices" lets projections and MLPs decay, and nothing else: elsewhere decay would pull filters
    towards silence and the tied head towards a uniform guess. "evo2-published" decays what the
    published runs did.

    Args:
        model: In training form.
        recipe: Rates and decay.
    """
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        (decayed if decays(name, recipe) else free).append(parameter)
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


def decays(name: str, recipe: Optimizer) -> bool:
    """Whether the parameter of this name decays."""
    if recipe.decay == "evo2-published":
        return not name.endswith(PUBLISHED_FREE)
    return name.endswith(MATRICES)
