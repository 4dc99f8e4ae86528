"""Ring attention over shards of a sequence: queries stay, keys and values are received.

At step s rank r computes with the keys of rank (r - s) mod N, while those of step s + 1 are in
flight. The owner of a block sends it directly, only the rows that are visible, and gets its
gradient directly back, so an exchange is a `Route` and its adjoint.

B batch, H heads, L rows of this shard, T keys of a block, R = 2 (keys, values), W channels per
head, N ranks. Source: arXiv:2310.01889.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hyenakernels.attention.block import block_backward, block_forward, merge
from hyenakernels.parallel.exchange import Piece, Route, WaitFunction
from hyenakernels.parallel.sharding import LocalShard, Sharding, Span
from hyenakernels.precision import accumulation_dtype


@dataclass(frozen=True)
class Tile:
    """Keys of one shard that are visible to the same queries of another.

    Attributes:
        first_query: The first row of the queries' shard that sees the keys; all later ones do too.
        keys: Rows of the keys' shard.
    """

    first_query: int
    keys: Span


@cache
def tiles(sharding: Sharding, query_rank: int, key_rank: int) -> tuple[Tile, ...]:
    """The keys of one rank that are visible to the queries of another.

    A rank's own keys are one tile with a causal mask: its rows are in order, whatever the spans.
    """
    length = sharding.lengths[query_rank]
    if query_rank == key_rank:
        return (Tile(0, (0, length)),)
    result: list[Tile] = []
    row = 0
    for start, end in sharding.spans[key_rank]:
        keys = (row, row + end - start)
        row = keys[1]
        before = [b - a for a, b in sharding.spans[query_rank] if b <= start]
        first_query = sum(before)
        if start == end or first_query == length:
            continue
        if result and result[-1].first_query == first_query:
            keys = (result.pop().keys[0], keys[1])
        result.append(Tile(first_query, keys))
    return tuple(result)


def ring(q_BHLW: Tensor, k_BHLW: Tensor, v_BHLW: Tensor, shard: LocalShard) -> Tensor:
    """Causal attention of this rank's queries to the keys of all ranks, differentiable."""
    y_BHLW: Tensor = _Ring.apply(q_BHLW, k_BHLW, v_BHLW, shard)
    return y_BHLW


class _Ring(torch.autograd.Function):
    """See `ring`. Saves only this rank's shard; the backward pass sends the keys again."""

    @staticmethod
    def forward(
        ctx: Any, q_BHLW: Tensor, k_BHLW: Tensor, v_BHLW: Tensor, shard: LocalShard
    ) -> Tensor:
        kv_BLRHW = torch.stack([k_BHLW.transpose(1, 2), v_BHLW.transpose(1, 2)], dim=2)
        out_BLHW = torch.zeros_like(kv_BLRHW[:, :, 0], dtype=accumulation_dtype(q_BHLW))
        out_BHLW = out_BLHW.transpose(1, 2)  # the memory layout of projections and FlashAttention
        lse_BHL = out_BHLW.new_full(q_BHLW.shape[:3], -torch.inf)
        for step, block_BTRHW in _visits(kv_BLRHW, shard):
            for tile, k, v in _blocks(block_BTRHW, shard, step):
                queries = slice(tile.first_query, None)
                out, lse = block_forward(q_BHLW[:, :, queries], k, v, step == 0)
                merge(out_BHLW[:, :, queries], lse_BHL[:, :, queries], out, lse)
        y_BHLW = out_BHLW.to(q_BHLW.dtype)
        ctx.shard = shard
        ctx.save_for_backward(q_BHLW, kv_BLRHW, y_BHLW, lse_BHL)
        return y_BHLW

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_BHLW: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q_BHLW, kv_BLRHW, y_BHLW, lse_BHL = ctx.saved_tensors
        dtype = accumulation_dtype(q_BHLW)
        dq_BHLW = torch.zeros_like(q_BHLW, dtype=dtype)
        dkv_BLRHW = torch.zeros_like(kv_BLRHW, dtype=dtype)
        wait: WaitFunction | None = None
        for step, block_BTRHW in _visits(kv_BLRHW, ctx.shard):
            dblock_BTRHW = torch.empty_like(block_BTRHW)
            blocks = _blocks(block_BTRHW, ctx.shard, step)
            dblocks = _blocks(dblock_BTRHW, ctx.shard, step)
            for (tile, k, v), (_, dk, dv) in zip(blocks, dblocks, strict=True):
                queries = slice(tile.first_query, None)
                dy, q, y, lse = (x[:, :, queries] for x in (dy_BHLW, q_BHLW, y_BHLW, lse_BHL))
                gradients = block_backward(dy, q, k, v, y, lse, step == 0)
                dq_BHLW[:, :, queries] += gradients[0]
                dk.copy_(gradients[1])
                dv.copy_(gradients[2])
            if wait is not None:
                dkv_BLRHW += wait()
            wait = _route(ctx.shard, step).adjoint.begin(dblock_BTRHW)
        assert wait is not None, "there was no step"
        dkv_BLRHW += wait()
        dk, dv = (x.transpose(1, 2).to(q_BHLW.dtype) for x in dkv_BLRHW.unbind(dim=2))
        return dq_BHLW.to(q_BHLW.dtype), dk, dv, None


def _visits(kv_BLRHW: Tensor, shard: LocalShard) -> Iterator[tuple[int, Tensor]]:
    """For each step s, the rows of rank r - s that are visible to the queries of this rank r."""
    block_BTRHW = kv_BLRHW
    for step in range(shard.num_ranks):
        is_last = step + 1 == shard.num_ranks
        wait = None if is_last else _route(shard, step + 1).begin(kv_BLRHW)
        yield step, block_BTRHW
        if wait is not None:
            block_BTRHW = wait()


def _blocks(
    block_BTRHW: Tensor, shard: LocalShard, step: int
) -> Iterator[tuple[Tile, Tensor, Tensor]]:
    """The tiles of a step, each with its keys and values [B, H, T, W]."""
    visible = tiles(shard.sharding, shard.rank, (shard.rank - step) % shard.num_ranks)
    sizes = [tile.keys[1] - tile.keys[0] for tile in visible]
    for tile, kv_BTRHW in zip(visible, torch.split(block_BTRHW, sizes, dim=1), strict=True):
        k_BTHW, v_BTHW = kv_BTRHW.unbind(dim=2)
        yield tile, k_BTHW.transpose(1, 2), v_BTHW.transpose(1, 2)


def _route(shard: LocalShard, step: int) -> Route:
    """The route of a step: the rows that this rank sends, and those that it receives."""
    sources = {shard.rank, (shard.rank - step) % shard.num_ranks}
    pieces = []
    for source in sources:
        target, row = (source + step) % shard.num_ranks, 0
        for tile in tiles(shard.sharding, target, source):
            first, end = tile.keys
            pieces.append(Piece(source, first, target, row, end - first))
            row += end - first
    num_targets = sum(piece.count for piece in pieces if piece.target == shard.rank)
    num_sources = shard.length
    return Route(tuple(pieces), num_sources, num_targets, shard.rank, shard.group)
