"""The base class of layouts that are defined relative to the released one."""

from abc import abstractmethod
from collections.abc import Collection

from stripedhyena2.checkpoint.contents import check_tensors
from stripedhyena2.checkpoint.layouts import vortex
from stripedhyena2.checkpoint.layouts.base import Layout
from stripedhyena2.checkpoint.tensors import Rule, Table, Tensors, translate
from stripedhyena2.config import ModelConfig
from stripedhyena2.operators.attention import rotary_frequencies


class Named(Layout):
    """A layout defined by two tables: from its tensors to the released ones, and back."""

    def is_unused(self, name: str) -> bool:
        """Whether a tensor of this layout is not used by the model."""
        del name
        return False

    def has_any_length(self, name: str) -> bool:
        """Whether a tensor may be longer than the model needs."""
        del name
        return False

    @abstractmethod
    def to_released(self, config: ModelConfig, names: Collection[str], origin: str) -> Table:
        """The table of the tensors of the released layout, from those of this one.

        Args:
            config: Shape of the model.
            names: The tensors of the checkpoint, since not all checkpoints have the same.
            origin: The checkpoint, for messages.

        Raises:
            CheckpointError: A tensor that is needed is not among `names`.
        """

    @abstractmethod
    def from_released(self, config: ModelConfig) -> Table:
        """The table of the tensors of this layout, from those of the released one."""

    def to_ours(self, tensors: Tensors, config: ModelConfig, origin: str) -> Tensors:
        """As in `Layout`."""
        used = tensors.renamed(lambda name: None if self.is_unused(name) else name)
        table = self.to_released(config, list(used), origin)
        needed = {name for rule in table.values() for name in rule.sources}
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
        """As in `Layout`."""
        released = vortex.Vortex().from_ours(tensors, config)
        return translate(released, self.from_released(config), "this model")


def computed_frequencies(config: ModelConfig) -> Rule:
    """A rule for the rotary frequencies, which some layouts do not store."""
    return Rule((), lambda: rotary_frequencies(config))
