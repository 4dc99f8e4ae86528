"""What the layouts have in common that are described against the released one."""

from abc import abstractmethod
from collections.abc import Collection

from stripedhyena2.checkpoint.contents import check_tensors
from stripedhyena2.checkpoint.layouts import vortex
from stripedhyena2.checkpoint.layouts.base import Layout
from stripedhyena2.checkpoint.tensors import Made, Table, Tensors, translate
from stripedhyena2.config import ModelConfig
from stripedhyena2.operators.attention import rotary_frequencies


class Named(Layout):
    """A layout given by two tables: the released tensors made of its own, and the other way."""

    def is_unused(self, name: str) -> bool:
        """Whether a tensor of this layout plays no part in the model."""
        del name
        return False

    def has_any_length(self, name: str) -> bool:
        """Whether a tensor may be longer than the model needs."""
        del name
        return False

    @abstractmethod
    def to_released(self, config: ModelConfig, names: Collection[str], origin: str) -> Table:
        """The released layout's tensors, made of this one's.

        Args:
            config: Shape of the model.
            names: Of the tensors that there are, as not all checkpoints have the same.
            origin: Of the checkpoint, for messages.

        Raises:
            CheckpointError: What is needed is not among `names`.
        """

    @abstractmethod
    def from_released(self, config: ModelConfig) -> Table:
        """This layout's tensors, made of the released one's."""

    def to_ours(self, tensors: Tensors, config: ModelConfig, origin: str) -> Tensors:
        """As `Layout`."""
        used = tensors.renamed(lambda name: None if self.is_unused(name) else name)
        table = self.to_released(config, list(used), origin)
        needed = {name for rule in table.values() for name in rule.of}
        expected = translate(
            Tensors.of(vortex.expected(config)), self.from_released(config), origin
        ).like
        flexible = {name for name in needed if self.has_any_length(name) or name not in expected}
        check_tensors(
            {name: tensor for name, tensor in used.like.items() if name not in flexible},
            {name: expected[name].shape for name in needed - flexible},
            origin,
        )
        return vortex.Vortex().to_ours(translate(used, table, origin), config, origin)

    def from_ours(self, tensors: Tensors, config: ModelConfig) -> Tensors:
        """As `Layout`."""
        released = vortex.Vortex().from_ours(tensors, config)
        return translate(released, self.from_released(config), "this model")


def computed_frequencies(config: ModelConfig) -> Made:
    """The rotary frequencies, where a layout does not store them."""
    return Made((), lambda: rotary_frequencies(config))
