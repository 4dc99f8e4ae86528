"""What a model remembers of the tokens it has seen: one past for each block.

Every operator has pasts and slots of its own.
"""

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

Past = Any  # what a block remembers of a batch of sequences; every operator has a type of its own


class Slots:
    """What a block remembers of sequences of different lengths that grow in place.

    These are the slots of an operator that remembers nothing.
    """

    def put(self, row: int, past: Any, length: int) -> None:
        """Copy the past of one sequence of `length` tokens into a row."""

    def past_in(self, row: int) -> Past | None:  # noqa: ARG002 - most pasts are small
        """An empty past that grows inside the memory of a row; None if pasts bring their own."""
        return None

    def state(self) -> tuple[Tensor, ...]:
        """The tensors that computing a step twice would change twice."""
        return ()


@dataclass
class Cache:
    """The state of a batch of sequences, updated by the model.

    The model replaces the pasts and changes no tensor in place, except those of a `PreallocatedKV`.

    Attributes:
        batch_size: Number of sequences.
        position: Tokens seen by each of them.
        pasts: One for each block; None before the first token.
    """

    batch_size: int
    position: int
    pasts: list[Past | None]

    def clone(self) -> "Cache":
        """A copy that can be continued independently, unless it has a `PreallocatedKV`."""
        return replace(self, pasts=list(self.pasts))
