"""Lazily loaded tensors by name, and tables that translate them between layouts.

A checkpoint of 40B is larger than the memory of most machines. `Tensors` knows the shape and dtype
of each tensor and reads its data on access; `translate` defines the tensors of one layout in terms
of those of another, without reading any.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple

from torch import Tensor

from stripedhyena2.checkpoint.contents import CheckpointError


class Stored(NamedTuple):
    """A tensor that is not loaded.

    Attributes:
        like: Its shape and dtype, as a tensor on the meta device.
        read: Loads it into host memory.
    """

    like: Tensor
    read: Callable[[], Tensor]


def in_memory(tensor: Tensor) -> Stored:
    """A `Stored` for a tensor that is in memory already."""
    return Stored(tensor.to("meta"), lambda: tensor)


class Tensors(Mapping[str, Tensor]):
    """Tensors by name, each loaded again on every access."""

    def __init__(self, stored: Mapping[str, Stored]) -> None:
        self._stored = dict(stored)

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> "Tensors":
        """These tensors, whether they are in memory or not."""
        if isinstance(tensors, Tensors):
            return tensors
        return cls({name: in_memory(tensor) for name, tensor in tensors.items()})

    @classmethod
    def joined(cls, groups: Sequence["Tensors"]) -> "Tensors":
        """The union of several; of equal names, the last counts."""
        return cls({name: stored for group in groups for name, stored in group._stored.items()})

    def __getitem__(self, name: str) -> Tensor:
        return self._stored[name].read()

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)

    def __contains__(self, name: object) -> bool:
        return name in self._stored

    @property
    def like(self) -> dict[str, Tensor]:
        """The shape and dtype of each, as tensors on the meta device."""
        return {name: stored.like for name, stored in self._stored.items()}

    @property
    def nbytes(self) -> int:
        """The total size in bytes."""
        return sum(stored.like.nbytes for stored in self._stored.values())

    def watched(self, on_read: Callable[[int], None]) -> "Tensors":
        """The same tensors; `on_read` is called with the bytes of each one that is loaded."""

        def read(stored: Stored) -> Tensor:
            tensor = stored.read()
            on_read(tensor.nbytes)
            return tensor

        return Tensors({name: Stored(s.like, partial(read, s)) for name, s in self._stored.items()})

    def only(self, names: Iterable[str]) -> "Tensors":
        """The tensors of these names."""
        return Tensors({name: self._stored[name] for name in names})

    def renamed(self, rename: Callable[[str], str | None]) -> "Tensors":
        """The same tensors under other names, without those for which `rename` returns None."""
        renamed = {rename(name): stored for name, stored in self._stored.items()}
        return Tensors({name: stored for name, stored in renamed.items() if name is not None})


class Rule(NamedTuple):
    """How a tensor of one layout is computed from those of another.

    Attributes:
        sources: Names in the other layout.
        convert: Computes it from these tensors, in this order; works on the meta device, too.
    """

    sources: tuple[str, ...]
    convert: Callable[..., Tensor] = lambda tensor: tensor


Table = Mapping[str, Rule]  # a rule for every tensor of a layout


def translate(tensors: Tensors, table: Table, origin: str) -> Tensors:
    """The tensors that a table defines in terms of others, each computed when it is loaded.

    Raises:
        CheckpointError: A tensor is missing, or has a shape that cannot be converted.
    """
    likes = tensors.like

    def converted(name: str, rule: Rule) -> Stored:
        for part in rule.sources:
            if part not in likes:
                raise CheckpointError(f"{origin}: tensor {part!r} is missing")
        parts = [likes[part] for part in rule.sources]
        try:
            like = rule.convert(*parts).to("meta")
        except RuntimeError:
            shapes = " and ".join(
                f"{part!r} {list(tensor.shape)}"
                for part, tensor in zip(rule.sources, parts, strict=True)
            )
            raise CheckpointError(
                f"{origin}: {shapes} cannot become {name!r}; is this the right config?"
            ) from None
        return Stored(
            like, lambda: rule.convert(*(tensors[part] for part in rule.sources)).contiguous()
        )

    return Tensors({name: converted(name, rule) for name, rule in table.items()})
