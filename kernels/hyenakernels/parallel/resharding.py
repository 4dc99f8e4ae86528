"""Resharding of a sequence, and ring attention between two such exchanges.

B batch, H heads, L rows of this shard, C channels, W channels per head.
"""

import torch
import torch.distributed as dist
from torch import Tensor

from hyenakernels.parallel.attention import attention_ring
from hyenakernels.parallel.exchange import Flight, Route
from hyenakernels.parallel.routes import overlaps
from hyenakernels.parallel.sharding import LocalShard, Sharding


def reshard(
    x_BLC: Tensor, source: Sharding, target: Sharding, *, group: dist.ProcessGroup | None = None
) -> Tensor:
    """This rank's rows in the sharding `target`, from the ranks that hold them in `source`.

    Args:
        x_BLC: This rank's rows in the sharding `source`.
        source: The current sharding.
        target: The new sharding, of the same length.
        group: The process group; None for all ranks.

    Returns:
        [B, L, C].

    Raises:
        ValueError: `x` does not match `source`, or `source` does not match `target`.
    """
    shard = LocalShard.find("reshard", x_BLC, source, group, contiguous=False)
    if sum(source.lengths) != sum(target.lengths) or len(source.spans) != len(target.spans):
        raise ValueError(
            f"reshard: {source.spans} and {target.spans} differ in length or number of ranks"
        )
    pieces = overlaps(source.held_spans, target.held_spans)
    route = Route(pieces, shard.length, target.lengths[shard.rank], shard.rank, group)
    return Flight(route, x_BLC).wait()


def attention_zigzag(
    q_BHLW: Tensor,
    k_BHLW: Tensor,
    v_BHLW: Tensor,
    *,
    sharding: Sharding,
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    """`attention_ring` with balanced work, for any sharding.

    One exchange reshards queries, keys and values to `Sharding.zigzag`, another the result back.
    Arguments and result are those of `attention_ring`.
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
