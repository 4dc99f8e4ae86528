"""Causal attention over shards of a sequence: all-to-all from rows to heads, or a ring of keys.

B batch, H heads, L rows of this shard, T rows of the sequence, R = 3 (queries, keys, values),
C = HW channels, E channels that one rank gets, W channels per head, N ranks.
"""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from hyenakernels.parallel.channels import ToChannels, ToSequence
from hyenakernels.parallel.ring import ring
from hyenakernels.parallel.sharding import LocalShard, Sharding, Span, partition


def attention_all_to_all(
    q_BHLW: Tensor,
    k_BHLW: Tensor,
    v_BHLW: Tensor,
    *,
    sharding: Sharding | None = None,
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    """Causal attention where each rank computes some of the heads, over the whole sequence.

    Args:
        q_BHLW: This rank's queries, already rotated by their positions in the sequence.
        k_BHLW: Its keys, also rotated.
        v_BHLW: Its values.
        sharding: Contiguous or not; when None the shards are contiguous, and the ranks exchange
            their lengths first.
        group: The process group; None for all ranks.

    Returns:
        softmax(q k^T / sqrt(W)) v, [B, H, L, W].

    Raises:
        ValueError: The shapes do not match each other or the sharding, or there are fewer heads
            than ranks.

    Source: arXiv:2309.14509.
    """
    shard = _local_shard("attention_all_to_all", q_BHLW, k_BHLW, v_BHLW, sharding, group)
    _, num_heads, _, width = q_BHLW.shape
    if num_heads < shard.num_ranks:
        raise ValueError(
            f"attention_all_to_all: {num_heads} heads for {shard.num_ranks} ranks, but each rank "
            "needs at least one; attention_ring has no such limit"
        )
    slices = [(start * width, end * width) for start, end in partition(num_heads, shard.num_ranks)]
    parts = [x.transpose(1, 2).flatten(2) for x in (q_BHLW, k_BHLW, v_BHLW)]
    qkv_BLRC = torch.stack(parts, dim=2)
    qkv_BTRE = ToChannels(qkv_BLRC, slices, shard.lengths, shard).wait()
    order = [span for spans in shard.sharding.spans for span in spans]
    qkv_BTRE = _reordered(qkv_BTRE, order, sorted(order))
    q_BHTW, k_BHTW, v_BHTW = (
        torch.unflatten(x, 2, (-1, width)).transpose(1, 2) for x in qkv_BTRE.unbind(dim=2)
    )
    y_BHTW = F.scaled_dot_product_attention(q_BHTW, k_BHTW, v_BHTW, is_causal=True)
    y_BTE = _reordered(y_BHTW.transpose(1, 2).flatten(2), sorted(order), order)
    flight = ToSequence(y_BTE[:, :, None], slices, shard.lengths, shard)
    y_BLC = torch.cat(flight.wait(), dim=3)[:, :, 0]
    return torch.unflatten(y_BLC, 2, (num_heads, width)).transpose(1, 2)


def attention_ring(
    q_BHLW: Tensor,
    k_BHLW: Tensor,
    v_BHLW: Tensor,
    *,
    sharding: Sharding | None = None,
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    """Causal attention where keys and values are sent to every rank whose queries see them.

    Arguments and result are those of `attention_all_to_all`, for any number of heads. With
    contiguous shards the first ranks idle; `Sharding.zigzag` gives every rank the same work.

    Raises:
        ValueError: The shapes do not match each other or the sharding, or a rank does not hold its
            spans in the order of the sequence.

    Source: arXiv:2310.01889.
    """
    shard = _local_shard("attention_ring", q_BHLW, k_BHLW, v_BHLW, sharding, group)
    for rank, spans in enumerate(shard.sharding.spans):
        if list(spans) != sorted(spans):
            raise ValueError(
                f"attention_ring: rank {rank} holds the spans {spans}; they must be ascending"
            )
    return ring(q_BHLW, k_BHLW, v_BHLW, shard)


def _local_shard(
    op: str,
    q_BHLW: Tensor,
    k_BHLW: Tensor,
    v_BHLW: Tensor,
    sharding: Sharding | None,
    group: dist.ProcessGroup | None,
) -> LocalShard:
    if not q_BHLW.shape == k_BHLW.shape == v_BHLW.shape:
        raise ValueError(
            f"{op}: q is {tuple(q_BHLW.shape)}, k {tuple(k_BHLW.shape)} and v "
            f"{tuple(v_BHLW.shape)}; all three must have the same [batch, heads, rows, width]"
        )
    return LocalShard.find(op, q_BHLW.transpose(1, 2), sharding, group, contiguous=False)


def _reordered(x_BTE: Tensor, source: list[Span], target: list[Span]) -> Tensor:
    """Reorder rows from the order of the spans `source` to that of the spans `target`."""
    if source == target:
        return x_BTE
    pieces = torch.split(x_BTE, [end - start for start, end in source], dim=1)
    piece_of = dict(zip(source, pieces, strict=True))
    return torch.cat([piece_of[span] for span in target], dim=1)
