"""From one sharding of a sequence to another, and ring attention between two such moves.

B batch, H heads, L rows of this shard, C channels, W channels a head.
"""

from functools import cache

import torch
import torch.distributed as dist
from torch import Tensor

from hyenakernels.parallel.attention import attention_ring
from hyenakernels.parallel.exchange import Flight, Piece, Route
from hyenakernels.parallel.sharding import Place, Sharding


def reshard(
    x_BLC: Tensor, given: Sharding, wanted: Sharding, *, group: dist.ProcessGroup | None = None
) -> Tensor:
    """The rows that `wanted` gives this rank, from the ranks that hold them.

    Args:
        x_BLC: This rank's rows, as `given` says.
        given: Who holds which rows.
        wanted: Who shall hold them; of the same length.
        group: None for the world.

    Returns:
        [B, L, C].

    Raises:
        ValueError: `x` does not fit `given`, or the shardings each other.
    """
    place = Place.find("reshard", x_BLC, given, group, contiguous=False)
    if sum(given.lengths) != sum(wanted.lengths) or len(given.spans) != len(wanted.spans):
        raise ValueError(f"reshard: {given.spans} cannot become {wanted.spans}")
    rows = (given.lengths[place.rank], wanted.lengths[place.rank])
    route = Route(_pieces(given, wanted), *rows, place.rank, group)
    return Flight(route, x_BLC).wait()


@cache
def _pieces(given: Sharding, wanted: Sharding) -> tuple[Piece, ...]:
    pieces = []
    for source, source_row, first, last in _located(given):
        for target, target_row, start, end in _located(wanted):
            low, high = max(first, start), min(last, end)
            if low < high:
                rows = (source_row + low - first, target_row + low - start)
                pieces.append(Piece(source, rows[0], target, rows[1], high - low))
    return tuple(pieces)


def _located(sharding: Sharding) -> list[tuple[int, int, int, int]]:
    """Rank, row there, and start and end in the sequence of each span."""
    found = []
    for rank, spans in enumerate(sharding.spans):
        row = 0
        for start, end in spans:
            found.append((rank, row, start, end))
            row += end - start
    return found


def attention_zigzag(
    q_BHLW: Tensor,
    k_BHLW: Tensor,
    v_BHLW: Tensor,
    *,
    sharding: Sharding,
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    """`attention_ring` with the same work for every rank, whatever the sharding.

    Queries, keys and values go to `Sharding.zigzag` in one exchange, and the result comes back.
    Arguments and result agree with `attention_ring`.
    """
    count, num_heads = len(sharding.spans), q_BHLW.shape[1]
    balanced = Sharding.zigzag(sum(sharding.lengths), count)
    qkv_BLRHW = torch.stack([x.transpose(1, 2) for x in (q_BHLW, k_BHLW, v_BHLW)], dim=2)
    moved_BLC = reshard(qkv_BLRHW.flatten(2), sharding, balanced, group=group)
    moved_BLRHW = torch.unflatten(moved_BLC, 2, (3, num_heads, -1))
    q, k, v = (x.transpose(1, 2) for x in moved_BLRHW.unbind(dim=2))
    y_BHLW = attention_ring(q, k, v, sharding=balanced, group=group)
    y_BLC = reshard(y_BHLW.transpose(1, 2).flatten(2), balanced, sharding, group=group)
    return torch.unflatten(y_BLC, 2, (num_heads, -1)).transpose(1, 2)
