"""The interface of training objectives: batches, loss and validation."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from torch import Tensor

WAY_OUT = "lower learning_rate, or delete the newest checkpoints to resume from an earlier one"


@dataclass(frozen=True)
class Batch:
    """The examples of a step on this rank.

    Attributes:
        inputs: Arguments of the model; the first dim of each tensor is the batch.
        targets: Targets of the predictions.
        weights: Loss weights of the targets; the loss of a step is the weighted mean.
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
    """A training objective; every rank has one.

    Attributes:
        flops_per_token: FLOPs of a training step, per token; None if unknown.
    """

    flops_per_token: float | None = None

    @abstractmethod
    def batch(self, step: int) -> Batch:
        """This rank's shard of the batch of a step (0-based), on its device."""

    @abstractmethod
    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """The weighted sum of the losses of a (micro-)batch."""

    def describe(self, loss: float | None) -> dict[str, Any]:
        """The metrics to log for the weighted mean loss of a step; None for a skipped step."""
        return {"loss": loss}

    @abstractmethod
    def validate(self) -> dict[str, Any]:
        """Metrics on held-out data; keys begin with `valid_`. All ranks call it together.

        Raises:
            UntrustedNumericsError: A prediction is not finite.
        """
