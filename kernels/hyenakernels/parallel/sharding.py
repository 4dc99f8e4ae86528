"""Shardings of a sequence: which rows each rank holds, and which rank this process is.

N ranks, L rows of the whole sequence.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
import torch.distributed as dist
from torch import Tensor

Span = tuple[int, int]  # start and end, 0-based, half-open


def partition(total: int, count: int) -> tuple[Span, ...]:
    """Cut [0, total) into `count` contiguous spans whose lengths differ by at most one."""
    borders = [total * i // count for i in range(count + 1)]
    return tuple(pairwise(borders))


@dataclass(frozen=True)
class HeldSpan:
    """Positions [start, end) of the sequence, which `rank` holds from its row `row` on."""

    rank: int
    row: int
    start: int
    end: int


@dataclass(frozen=True)
class Sharding:
    """The rows of each rank, in the order in which the rank holds them.

    Attributes:
        spans: For each rank, the spans of the sequence that it holds; together they cover every row
            once.
    """

    spans: tuple[tuple[Span, ...], ...]

    def __post_init__(self) -> None:
        if min(self.lengths) < 1:
            raise ValueError(
                f"Sharding: every rank needs at least one row, the lengths are {self.lengths}"
            )

    @classmethod
    def contiguous(cls, lengths: Sequence[int]) -> "Sharding":
        """Rank r holds the `lengths[r]` rows after those of rank r - 1."""
        borders = accumulate(lengths, initial=0)
        return cls(tuple((span,) for span in pairwise(borders)))

    @classmethod
    def even(cls, length: int, count: int) -> "Sharding":
        """Contiguous shards whose lengths differ by at most one."""
        return cls(tuple((span,) for span in partition(length, count)))

    @classmethod
    def zigzag(cls, length: int, count: int) -> "Sharding":
        """Rank r holds chunks r and 2N - 1 - r of 2N, which balances causal attention."""
        chunks = partition(length, 2 * count)
        return cls(tuple((chunks[rank], chunks[-1 - rank]) for rank in range(count)))

    @property
    def lengths(self) -> tuple[int, ...]:
        """The number of rows of each rank."""
        return tuple(sum(end - start for start, end in spans) for spans in self.spans)

    @property
    def is_contiguous(self) -> bool:
        """Whether each rank holds one span, which follows that of the preceding rank."""
        spans = [spans[0] for spans in self.spans if len(spans) == 1]
        return len(spans) == len(self.spans) and all(
            left[1] == right[0] for left, right in pairwise([(0, 0), *spans])
        )

    @property
    def held_spans(self) -> tuple[HeldSpan, ...]:
        """Every span, with its rank and its first row in the shard of that rank."""
        held = []
        for rank, spans in enumerate(self.spans):
            row = 0
            for start, end in spans:
                held.append(HeldSpan(rank, row, start, end))
                row += end - start
        return tuple(held)

    def positions(self, rank: int, device: torch.device | None = None) -> Tensor:
        """The position in the sequence of each row of `rank`, e.g. for rotary embedding."""
        spans = [torch.arange(start, end, device=device) for start, end in self.spans[rank]]
        return torch.cat(spans)

    def order(self, device: torch.device | None = None) -> Tensor:
        """The position in the sequence of each row of all shards, concatenated by rank."""
        return torch.cat([self.positions(rank, device) for rank in range(len(self.spans))])

    def cut(self, x: Tensor, rank: int, dim: int = 1) -> Tensor:
        """The shard of `rank`, cut from the whole sequence."""
        pieces = [x.narrow(dim, start, end - start) for start, end in self.spans[rank]]
        return torch.cat(pieces, dim=dim)

    def join(self, shards: Sequence[Tensor], dim: int = 1) -> Tensor:
        """The whole sequence from the shards of all ranks."""
        joined = torch.cat(list(shards), dim=dim)
        return joined.index_select(dim, self.order(joined.device).argsort())


@dataclass(frozen=True)
class LocalShard:
    """The sharding of a sequence, and the shard of this process in it.

    Attributes:
        sharding: The rows of every rank.
        rank: This process's rank within the group.
        group: The process group; None for all ranks.
    """

    sharding: Sharding
    rank: int
    group: dist.ProcessGroup | None

    @classmethod
    def find(
        cls,
        op: str,
        x_BLC: Tensor,
        sharding: Sharding | None,
        group: dist.ProcessGroup | None,
        *,
        contiguous: bool = True,
    ) -> "LocalShard":
        """The shard of this process; without a sharding the ranks exchange their lengths.

        Raises:
            ValueError: `x` does not have the number of rows that the sharding gives this rank, the
                group has another number of ranks, or the sharding must be contiguous and is not.
        """
        rank, count = dist.get_rank(group), dist.get_world_size(group)
        if sharding is None:
            sharding = Sharding.contiguous(_all_lengths(x_BLC, count, group))
        if len(sharding.spans) != count:
            raise ValueError(f"{op}: {len(sharding.spans)} shards for a group of {count} ranks")
        if sharding.lengths[rank] != x_BLC.shape[1]:
            raise ValueError(
                f"{op}: rank {rank} has x {tuple(x_BLC.shape)}, "
                f"but its shard is {sharding.lengths[rank]} rows"
            )
        if contiguous and not sharding.is_contiguous:
            raise ValueError(f"{op} needs contiguous shards, the sharding is {sharding.spans}")
        return cls(sharding, rank, group)

    @property
    def num_ranks(self) -> int:
        """The number of ranks that share the sequence."""
        return len(self.sharding.spans)

    @property
    def lengths(self) -> tuple[int, ...]:
        """The number of rows of each rank."""
        return self.sharding.lengths

    @property
    def length(self) -> int:
        """The number of rows of this rank."""
        return self.lengths[self.rank]


def _all_lengths(x_BLC: Tensor, count: int, group: dist.ProcessGroup | None) -> list[int]:
    lengths = torch.empty(count, dtype=torch.int64, device=x_BLC.device)
    local = torch.tensor([x_BLC.shape[1]], device=x_BLC.device)
    dist.all_gather(list(torch.split(lengths, 1)), local, group=group)
    return [int(length) for length in lengths.tolist()]
