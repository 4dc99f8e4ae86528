"""Named tensors that stay in their file until they are read, and tables that translate them.

A checkpoint of 40B is larger than the memory of most machines. `Tensors` knows the shape and dtype
of each tensor and reads it when it is asked for; `translate` makes the tensors of one layout from
those of another without reading any.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple

from torch import Tensor

from stripedhyena2.checkpoint.contents import CheckpointError


class Stored(NamedTuple):
    """A tensor that has not been read.

    Attributes:
        like: Its shape and dtype, on the meta device.
        read: Reads it into the memory of the host.
    """

    like: Tensor
    read: Callable[[], Tensor]


def in_memory(tensor: Tensor) -> Stored:
    """A tensor that is in memory already."""
    return Stored(tensor.to("meta"), lambda: tensor)


class Tensors(Mapping[str, Tensor]):
    """Tensors by name, each read anew whenever it is asked for."""

    def __init__(self, stored: Mapping[str, Stored]) -> None:
        self._stored = dict(stored)

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> "Tensors":
        """These tensors, whether they are in memory or not."""
        if isinstance(tensors, Tensors):
            return tensors
        return cls({name: in_memory(tensor) for name, tensor in tensors.items()})

    @classmethod
    def joined(cls, several: Sequence["Tensors"]) -> "Tensors":
        """All of several."""
        return cls({name: stored for each in several for name, stored in each._stored.items()})

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
        """Shape and dtype of each, on the meta device."""
        return {name: stored.like for name, stored in self._stored.items()}

    @property
    def nbytes(self) -> int:
        """Bytes of all of them."""
        return sum(stored.like.nbytes for stored in self._stored.values())

    def watched(self, seen: Callable[[int], None]) -> "Tensors":
        """The same tensors; `seen` is called with the bytes of each that is read."""

        def read(stored: Stored) -> Tensor:
            tensor = stored.read()
            seen(tensor.nbytes)
            return tensor

        return Tensors({name: Stored(s.like, partial(read, s)) for name, s in self._stored.items()})

    def only(self, names: Iterable[str]) -> "Tensors":
        """Those of these names."""
        return Tensors({name: self._stored[name] for name in names})

    def renamed(self, rename: Callable[[str], str | None]) -> "Tensors":
        """The same tensors under other names; those that `rename` gives None are left out."""
        found = {rename(name): stored for name, stored in self._stored.items()}
        return Tensors({name: stored for name, stored in found.items() if name is not None})


class Made(NamedTuple):
    """How a tensor of one layout is made.

    Attributes:
        of: Names in the other layout.
        by: Makes it from those tensors, in this order; also from tensors on the meta device.
    """

    of: tuple[str, ...]
    by: Callable[..., Tensor] = lambda tensor: tensor


Table = Mapping[str, Made]  # of every tensor of a layout


def translate(tensors: Tensors, table: Table, origin: str) -> Tensors:
    """The tensors that a table makes of others, each made when it is read.

    Raises:
        CheckpointError: A tensor is missing, or its shape is impossible.
    """
    likes = tensors.like

    def made(name: str, rule: Made) -> Stored:
        for part in rule.of:
            if part not in likes:
                raise CheckpointError(f"{origin}: tensor {part!r} is missing")
        parts = [likes[part] for part in rule.of]
        try:
            like = rule.by(*parts).to("meta")
        except RuntimeError:
            shapes = " and ".join(
                f"{part!r} {list(tensor.shape)}"
                for part, tensor in zip(rule.of, parts, strict=True)
            )
            raise CheckpointError(
                f"{origin}: {shapes} cannot become {name!r}; is this the right config?"
            ) from None
        return Stored(like, lambda: rule.by(*(tensors[part] for part in rule.of)).contiguous())

    return Tensors({name: made(name, rule) for name, rule in table.items()})
