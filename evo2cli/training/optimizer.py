"""AdamW, and which parameters have weight decay."""

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

# Savanna excluded parameters called "bias" and the taps of MR from weight decay. Poles, residues,
# other taps, skips, norms and the tied embedding decayed as well, by oversight.
PUBLISHED_WITHOUT_DECAY = ("bias", "parametrizations.taps_GK.original")


def make_optimizer(model: nn.Module, recipe: Optimizer) -> torch.optim.AdamW:
    """AdamW with two groups of parameters: with and without weight decay.

    By default ("matrices") only the weight matrices of projections and MLPs decay; decay would pull
    filters towards zero and the tied head towards a uniform prediction. "evo2-published" reproduces
    the published runs, which also decayed filters and norms.

    Args:
        model: In training form.
        recipe: Its table [optimizer].
    """
    with_decay: list[nn.Parameter] = []
    without: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        (with_decay if decays(name, recipe) else without).append(parameter)
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


def decays(name: str, recipe: Optimizer) -> bool:
    """Whether the parameter of this name has weight decay."""
    if recipe.decay == "evo2-published":
        return not name.endswith(PUBLISHED_WITHOUT_DECAY)
    return name.endswith(MATRICES)
