"""The learning rate schedule."""

import math

from evo2cli.training.recipe import Optimizer


def learning_rate(step: int, recipe: Optimizer) -> float:
    """The learning rate of a step (0-based).

    It rises linearly from above 0 to the peak during warmup, then follows a half cosine down to the
    minimum, which it reaches at the last step. If only one step follows warmup, it has the peak.
    """
    if step < recipe.warmup_steps:
        return recipe.learning_rate * (step + 1) / recipe.warmup_steps
    progress = (step - recipe.warmup_steps) / max(1, recipe.steps - 1 - recipe.warmup_steps)
    height = 0.5 * (1 + math.cos(math.pi * progress))
    return recipe.min_learning_rate + (recipe.learning_rate - recipe.min_learning_rate) * height
