"""AdamW, with decay where it belongs."""

import torch

from evo2cli.training.recipe import Optimizer
from stripedhyena2 import StripedHyena2

DECAYED = (
    "project_in.weight",
    "project_out.weight",
    "mlp.gate.weight",
    "mlp.up.weight",
    "mlp.down.weight",
)


def make_optimizer(model: StripedHyena2, recipe: Optimizer) -> torch.optim.AdamW:
    """AdamW that decays the matrices of projections and MLPs, and nothing else.

    Norms, biases, skips, taps, poles, residues and the embedding stay free: decay would pull
    filters towards silence and the tied head towards a uniform guess.
    """
    decayed: list[torch.nn.Parameter] = []
    free: list[torch.nn.Parameter] = []
    for name, parameter in model.named_parameters():
        (decayed if name.endswith(DECAYED) else free).append(parameter)
    on_gpu = next(model.parameters()).is_cuda
    return torch.optim.AdamW(
        [
            {"params": decayed, "weight_decay": recipe.weight_decay},
            {"params": free, "weight_decay": 0.0},
        ],
        lr=recipe.learning_rate,
        betas=recipe.betas,
        eps=1e-8,
        fused=on_gpu,
    )
