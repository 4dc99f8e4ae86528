"""Point-to-point routes: which rows are sent where, and the halo from the preceding ranks.

B batch, L rows, C channels, P rows of a halo, N ranks.
"""

from functools import cache
from itertools import accumulate
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from hyenakernels.parallel.exchange import Flight, Piece, Route
from hyenakernels.parallel.sharding import HeldSpan, LocalShard, Sharding


def start_halo(tail_BTC: Tensor, past_BPC: Tensor | None, shard: LocalShard, reach: int) -> Flight:
    """Post the exchange of halos; `wait` returns the `reach` rows before this shard.

    If shards are shorter than the reach, the halo comes from several ranks.

    Args:
        tail_BTC: The last min(reach, length) rows of this shard.
        past_BPC: The `reach` rows before the sequence, read on the first rank; zeros when None.
        shard: The shard of this process.
        reach: P.
    """
    num_sources = tail_BTC.shape[1]
    if shard.rank == 0:
        if past_BPC is None:
            past_BPC = tail_BTC.new_zeros(tail_BTC.shape[0], reach, *tail_BTC.shape[2:])
        tail_BTC = torch.cat([past_BPC.to(tail_BTC.dtype), tail_BTC], dim=1)
        num_sources += reach
    pieces = _halo_pieces(shard.lengths, reach)
    return Flight(Route(pieces, num_sources, reach, shard.rank, shard.group), tail_BTC)


@cache
def _halo_pieces(lengths: tuple[int, ...], reach: int) -> tuple[Piece, ...]:
    """The rows to send; the first rank has the rows before the sequence in front of its tail."""
    ends = list(accumulate(lengths))
    held, needed = [HeldSpan(0, 0, -reach, 0)], []
    for rank, (length, end) in enumerate(zip(lengths, ends, strict=True)):
        held.append(HeldSpan(rank, reach if rank == 0 else 0, end - min(reach, length), end))
        needed.append(HeldSpan(rank, 0, end - length - reach, end - length))
    return overlaps(tuple(held), tuple(needed))


@cache
def overlaps(held: tuple[HeldSpan, ...], needed: tuple[HeldSpan, ...]) -> tuple[Piece, ...]:
    """The rows to send so that every rank gets those it needs, if any rank holds them."""
    pieces = []
    for target in needed:
        for source in held:
            low, high = max(source.start, target.start), min(source.end, target.end)
            if low < high:
                rows = (source.row + low - source.start, target.row + low - target.start)
                pieces.append(Piece(source.rank, rows[0], target.rank, rows[1], high - low))
    return tuple(pieces)


def edges(x_BLC: Tensor, head: int, tail: int) -> tuple[Tensor, Tensor, Tensor]:
    """Copies of the first and last rows, whose gradients are added in place to that of x.

    Returns:
        `x` itself, which only the local operator may read; its first `head` rows; and its last
        `tail` rows.
    """
    result: tuple[Tensor, Tensor, Tensor] = _Edges.apply(x_BLC, head, tail)
    return result


class _Edges(torch.autograd.Function):
    """See `edges`."""

    @staticmethod
    def forward(ctx: Any, x_BLC: Tensor, head: int, tail: int) -> tuple[Tensor, Tensor, Tensor]:
        ctx.head, ctx.tail_start = head, x_BLC.shape[1] - tail
        return (
            x_BLC.view_as(x_BLC),
            x_BLC[:, :head].clone(),
            x_BLC[:, ctx.tail_start :].clone(),
        )

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, dx_BLC: Tensor, dhead_BPC: Tensor, dtail_BPC: Tensor
    ) -> tuple[Tensor, None, None]:
        # In place: nothing else reads the `dx` that the local operator's backward pass created.
        dx_BLC[:, : ctx.head] += dhead_BPC
        dx_BLC[:, ctx.tail_start :] += dtail_BPC
        return dx_BLC, None, None


def halo(
    x_BLC: Tensor,
    reach: int,
    past_BPC: Tensor | None = None,
    *,
    sharding: Sharding | None = None,
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    """The `reach` rows before this shard, from the one or more ranks that hold them.

    Args:
        x_BLC: This rank's shard.
        reach: P.
        past_BPC: The P rows before the sequence, read on the first rank; zeros when None.
        sharding: Contiguous; when None the ranks exchange their lengths first.
        group: The process group; None for all ranks.

    Returns:
        [B, P, C].

    Raises:
        ValueError: `x` does not match the sharding.
    """
    shard = LocalShard.find("halo", x_BLC, sharding, group)
    tail = x_BLC[:, max(x_BLC.shape[1] - reach, 0) :]
    return start_halo(tail, past_BPC, shard, reach).wait()
