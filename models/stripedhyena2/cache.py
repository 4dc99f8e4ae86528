"""The state of a model after the tokens it has seen: for each block a past.

A past is a recurrent state or a KV cache; every operator has pasts, slots and pools of its own.

B batch, L new tokens, T tokens seen.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

Past = Any  # the state of a block after a batch of sequences; every operator has its own type


class Slots:
    """The pasts of a decoding batch in one block: a row per sequence, updated in place.

    The lengths of the sequences may differ. This base class is for an operator without state.
    """

    def put(self, row: int, past: Any, length: int) -> None:
        """Copy the past of one sequence of `length` tokens into a row."""

    def take(self, row: int, length: int) -> Past | None:  # noqa: ARG002
        """A copy of the past in a row, of one sequence of `length` tokens."""
        assert not self.state(), "slots with state define this method"
        return None

    def past_in(self, row: int) -> Past | None:  # noqa: ARG002 - most pasts are small
        """An empty past that grows in the memory of a row; None if `put` copies pasts."""
        return None

    def state(self) -> tuple[Tensor, ...]:
        """The tensors that a step advances: repeating the step would advance them twice."""
        return ()


@dataclass(frozen=True)
class Launch:
    """A forward pass over a batch of sequences, each after a cached prefix of its own.

    The pool of a block holds the state after each prefix, by index; index 0 is the empty prefix.
    That of attention holds every token of the prefixes: a paged KV cache with pages of one token.

    Attributes:
        prefix_states_B: Index of the state after the prefix of each sequence, int64.
        past_lengths_B: The lengths of the prefixes in tokens, int32.
        page_table_BT: The pages of the tokens of each prefix, int32; entries beyond its length are
            unused.
        new_states_N: Indices at which the states after the first N sequences are stored, int64;
            None stores none.
        new_pages_NL: Pages for the new tokens of these sequences, int64.
        copies: This launch on other devices.
    """

    prefix_states_B: Tensor
    past_lengths_B: Tensor
    page_table_BT: Tensor
    new_states_N: Tensor | None = None
    new_pages_NL: Tensor | None = None
    copies: dict[torch.device, "Launch"] = field(default_factory=dict, init=False)

    def to(self, device: torch.device) -> "Launch":
        """The same on the device of a block."""
        if self.prefix_states_B.device == device:
            return self
        if device not in self.copies:
            tensors = (getattr(self, each.name) for each in fields(self) if each.init)
            moved: list[Any] = [None if x is None else x.to(device) for x in tensors]
            self.copies[device] = Launch(*moved)
        return self.copies[device]


class Pool:
    """The cache of a block for many prefixes.

    This base class holds pasts of any type, for an operator that defines no pool of its own.

    Attributes:
        is_paged: Whether it is a KV cache, with a page for every token.
        pasts: Pasts by state index.
    """

    is_paged = False

    def __init__(self) -> None:
        self.pasts: dict[int, Past] = {}

    def reserve(self, num_states: int, num_pages: int) -> None:
        """Make room for at least this many states (index 0 included) and pages."""


@dataclass(frozen=True)
class Pooled:
    """Passed to a block in place of a past: its pool, and the launch that reads from it."""

    pool: Pool
    launch: Launch


def padded_rows(x_NX: Tensor, size: int) -> Tensor:
    """`x` if it has at least `size` rows; else a copy padded with rows of zeros."""
    if len(x_NX) >= size:
        return x_NX
    longer_NX = x_NX.new_zeros(size, *x_NX.shape[1:])
    longer_NX[: len(x_NX)] = x_NX
    return longer_NX


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

    def select(self, rows: Sequence[int]) -> "Cache":
        """A copy of some of the sequences, in this order; one may be taken several times.

        Raises:
            ValueError: The cache was allocated with a capacity.
        """

        def chosen(x: Tensor) -> Tensor:
            return x[torch.tensor(rows, device=x.device)]

        pasts = [_mapped(chosen, [past]) for past in self.pasts]
        return Cache(len(rows), self.position, pasts)

    @classmethod
    def join(cls, caches: Sequence["Cache"]) -> "Cache":
        """The sequences of several caches, all of the same number of tokens, in one.

        Raises:
            ValueError: A cache was allocated with a capacity.
        """
        pasts = zip(*(cache.pasts for cache in caches), strict=True)
        batch_size = sum(cache.batch_size for cache in caches)
        return cls(batch_size, caches[0].position, [_mapped(_concatenated, past) for past in pasts])


def _concatenated(*tensors: Tensor) -> Tensor:
    return torch.cat(tensors)


def _mapped(function: Callable[..., Tensor], pasts: Sequence[Past | None]) -> Past | None:
    """A past of the same kind, whose tensors are those of a function of all the pasts' tensors."""
    first = pasts[0]
    if isinstance(first, Tensor):
        return function(*pasts)
    if is_dataclass(first) and not isinstance(first, type):
        names = [each.name for each in fields(first)]
        return replace(
            first, **{name: _mapped(function, [getattr(p, name) for p in pasts]) for name in names}
        )
    if first is not None:
        raise ValueError("a cache that was allocated with a capacity cannot be cut or joined")
    return None
