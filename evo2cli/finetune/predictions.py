"""Turn outputs of a head into predictions: calibrated probabilities, or numbers in their units.

N examples, L positions, C classes or numbers.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from evo2cli.finetune.folder import Description
from evo2cli.finetune.tasks import Task

TEMPERATURES = torch.logspace(-1.5, 1.5, 301, dtype=torch.float64)

Predictions = NDArray[np.float64] | list[NDArray[np.float64]]


def predictions(description: Description, outputs: Sequence[Tensor]) -> Predictions:
    """Class probabilities, or numbers: [N, C], or for tokens a list of [L, C]."""
    if description.labels.task is Task.TOKENS:
        return [_values(description, output_LC) for output_LC in outputs]
    if not len(outputs):
        return np.zeros((0, description.num_outputs))
    return _values(description, torch.stack(list(outputs)))


def _values(description: Description, outputs: Tensor) -> NDArray[np.float64]:
    x = outputs.double()
    task = description.labels.task
    if task is Task.REGRESS:
        mean, deviation = (torch.tensor(row).double() for row in description.scale or ((0,), (1,)))
        return (x * deviation + mean).numpy()
    x = x / description.temperature
    return (x.sigmoid() if task is Task.MULTILABEL else x.softmax(dim=-1)).numpy()


def fit_temperature(task: Task, outputs: Tensor, targets: Tensor) -> float:
    """Temperature scaling: the temperature with the lowest loss on held-out examples.

    Logits are divided by it, which does not change the most probable class.

    Args:
        task: A task with classes.
        outputs: Logits [rows, C].
        targets: Classes [rows], negative for none; or flags [rows, C].
    """
    x = outputs.double()
    if task is not Task.MULTILABEL:
        x, targets = x[targets >= 0], targets[targets >= 0]

    def loss(temperature: Tensor) -> float:
        scaled = x / temperature
        if task is Task.MULTILABEL:
            return F.binary_cross_entropy_with_logits(scaled, targets.double()).item()
        return F.cross_entropy(scaled, targets).item()

    if not len(x):
        return 1.0
    return float(min(TEMPERATURES, key=loss))
