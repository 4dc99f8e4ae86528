"""What a model learns: the batches of a run, the loss of a batch, and validation."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from torch import Tensor

WAY_OUT = "lower learning_rate, or delete the newest checkpoints to resume from an earlier one"


@dataclass(frozen=True)
class Batch:
    """Examples of a step on this rank.

    Attributes:
        inputs: What the model is called with; the first axis of each tensor are the examples.
        targets: What it should predict.
        weights: How much each prediction counts; the loss of a step is a mean by these weights.
    """

    inputs: tuple[Tensor, ...]
    targets: Tensor
    weights: Tensor

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, rows: slice) -> "Batch":
        inputs = tuple(tensor[rows] for tensor in self.inputs)
        return Batch(inputs, self.targets[rows], self.weights[rows])


class Objective(ABC):
    """What a model learns; every rank has one.

    Attributes:
        flops_per_token: FLOPs of a training step, per token; None if they are not counted.
    """

    flops_per_token: float | None = None

    @abstractmethod
    def batch(self, step: int) -> Batch:
        """The share of this rank in the examples of a step (0-based), on its device."""

    @abstractmethod
    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """The sum of the losses of predictions, each times its weight."""

    def describe(self, loss: float | None) -> dict[str, Any]:
        """What the log of a step says of its loss per unit of weight; None for a skipped step."""
        return {"loss": loss}

    @abstractmethod
    def validate(self) -> dict[str, Any]:
        """Metrics on held-out data, by keys that begin with `valid_`; all ranks call it together.

        Raises:
            UntrustedNumericsError: A prediction is not finite.
        """
