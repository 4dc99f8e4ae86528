"""What a layout is: names and forms of the tensors of a model."""

from abc import ABC, abstractmethod
from collections.abc import Collection
from typing import ClassVar

from stripedhyena2.checkpoint.tensors import Tensors
from stripedhyena2.config import ModelConfig


class Layout(ABC):
    """A way to name the tensors of a model, and the form that they are stored in.

    Attributes:
        name: As `evo2 convert --to` and the provenance call it.
    """

    name: ClassVar[str]

    @abstractmethod
    def claims(self, names: Collection[str]) -> bool:
        """Whether tensors of these names are in this layout."""

    @abstractmethod
    def to_ours(self, tensors: Tensors, config: ModelConfig, origin: str) -> Tensors:
        """The model's own tensors, none of them read.

        Raises:
            CheckpointError: A tensor is missing, extra or of another shape.
        """

    @abstractmethod
    def from_ours(self, tensors: Tensors, config: ModelConfig) -> Tensors:
        """The tensors of this layout, none of them read."""
