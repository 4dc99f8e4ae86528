"""The learning rate over a run."""

import math

from evo2cli.training.recipe import Optimizer


def learning_rate(step: int, recipe: Optimizer) -> float:
    """Linear warmup to the peak, then a half cosine that reaches the minimum at the last step.

    Where a single step is left for the cosine, it is the peak.

    Args:
        step: 0-based; the first step already has a rate above 0.
        recipe: Peak, minimum, warmup and length.
    """
    if step < recipe.warmup_steps:
        return recipe.learning_rate * (step + 1) / recipe.warmup_steps
    done = (step - recipe.warmup_steps) / max(1, recipe.steps - 1 - recipe.warmup_steps)
    height = 0.5 * (1 + math.cos(math.pi * done))
    return recipe.min_learning_rate + (recipe.learning_rate - recipe.min_learning_rate) * height
