"""The base class of layouts: names and stored forms of the tensors of a model."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from typing import ClassVar

from stripedhyena2.checkpoint.tensors import Tensors
from stripedhyena2.config import ModelConfig


class Layout(ABC):
    """Names for the tensors of a model, and the forms in which they are stored.

    Attributes:
        name: The name of the layout.
        stored_as: Its name in the provenance of checkpoints that were read from it.
    """

    name: ClassVar[str]
    stored_as: ClassVar[str]

    def __init_subclass__(cls) -> None:
        if "name" in vars(cls) and "stored_as" not in vars(cls):
            cls.stored_as = cls.name

    @abstractmethod
    def claims(self, names: Collection[str]) -> bool:
        """Whether tensors of these names are in this layout."""

    @abstractmethod
    def to_ours(self, tensors: Tensors, config: ModelConfig, origin: str) -> Tensors:
        """The tensors under the model's own names and in its forms, loaded lazily.

        Raises:
            CheckpointError: A tensor is missing, unexpected, or has the wrong shape.
        """

    @abstractmethod
    def from_ours(self, tensors: Tensors, config: ModelConfig) -> Tensors:
        """The tensors of this layout, from the model's own, loaded lazily."""

    def extra_state(self, blobs: Mapping[str, bytes]) -> dict[str, bytes]:
        """The FP8 records, under the names of the released layout."""
        return dict(blobs)

    def training_form(self, tensors: Tensors, config: ModelConfig) -> Tensors:
        """See `Checkpoint.training_form`; layouts of folded weights have none."""
        del tensors, config
        return Tensors({})
