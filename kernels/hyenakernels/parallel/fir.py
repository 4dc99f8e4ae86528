"""Hyena-SE and -MR over shards of a sequence: three exchanges around the same `hyena_fir`.

B batch, L rows of this shard, C = 3D channels [x2 | x1 | v], F featurizer taps, G groups, K taps.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from hyenakernels.filters import FIRFilters, HyenaPast
from hyenakernels.fir.op import hyena_fir
from hyenakernels.parallel.channels import mix_channels
from hyenakernels.parallel.exchange import Flight
from hyenakernels.parallel.routes import edges, start_halo
from hyenakernels.parallel.sharding import LocalShard, Sharding


def hyena_fir_halo(
    z_BLC: Tensor,
    filters: FIRFilters,
    past: HyenaPast | None = None,
    *,
    sharding: Sharding | None = None,
    group: dist.ProcessGroup | None = None,
) -> tuple[Tensor, HyenaPast]:
    """`hyena_fir` of this shard; its past is the halo, the last rows of z and u of earlier ranks.

    Args:
        z_BLC: This rank's rows of the projections.
        filters: The same on all ranks.
        past: The past of the whole sequence, read on the first rank only; zeros when None.
        sharding: Contiguous; when None the ranks exchange their lengths first.
        group: The process group; None for all ranks.

    Returns:
        y [B, L, D], and the past for the samples that follow this shard; that of the last rank is
        for the samples that follow the sequence.

    Raises:
        ValueError: The shapes do not match, or `z` does not match the sharding.

    Source: arXiv:2503.01868, section 4.2.
    """
    shard = LocalShard.find("hyena_fir_halo", z_BLC, sharding, group)
    z_BLC, _, tail = edges(z_BLC, 0, min(_reach(filters), z_BLC.shape[1]))
    flights = _send_tails(tail, filters, past, shard)
    return hyena_fir(z_BLC, filters, HyenaPast(*(flight.wait() for flight in flights)))


def hyena_fir_overlapped(
    z_BLC: Tensor,
    filters: FIRFilters,
    past: HyenaPast | None = None,
    *,
    sharding: Sharding | None = None,
    group: dist.ProcessGroup | None = None,
) -> tuple[Tensor, HyenaPast]:
    """`hyena_fir_halo`, with the transfer overlapped: the shard is computed from a zero past first.

    Then the first K + F - 2 rows, which are all that depend on the past, are recomputed. In the
    backward pass the adjoint of the halo overlaps with the backward pass of the shard. Shards of at
    most K + F - 2 rows wait as `hyena_fir_halo` does. Arguments and results are the same.

    Source: arXiv:2503.01868, section 4.2.
    """
    reach = _reach(filters)
    if z_BLC.shape[1] <= reach:
        return hyena_fir_halo(z_BLC, filters, past, sharding=sharding, group=group)
    shard = LocalShard.find("hyena_fir_overlapped", z_BLC, sharding, group)
    z_BLC, head, tail = edges(z_BLC, reach, reach)
    flights = _send_tails(tail, filters, past, shard)
    y_BLD, past_after = hyena_fir(z_BLC, filters)
    corrected, _ = hyena_fir(head, filters, HyenaPast(*(flight.wait() for flight in flights)))
    from_zeros, _ = hyena_fir(head, filters)
    y_BLD = _Corrected.apply(y_BLD, corrected, from_zeros)
    return y_BLD, past_after


def hyena_fir_all_to_all(
    z_BLC: Tensor,
    filters: FIRFilters,
    past: HyenaPast | None = None,
    *,
    num_chunks: int = 1,
    sharding: Sharding | None = None,
    group: dist.ProcessGroup | None = None,
) -> tuple[Tensor, HyenaPast]:
    """`hyena_fir` of the whole sequence, where each rank computes some of the filter groups.

    Arguments and results are those of `hyena_fir_halo`, but only the last rank gets the past for
    the samples that follow; on the others it has no rows. With several chunks of channels, exchange
    and computation are pipelined.

    Raises:
        ValueError: There are fewer groups than ranks times `num_chunks`.

    Source: arXiv:2503.01868, section 4.1.
    """
    shard = LocalShard.find("hyena_fir_all_to_all", z_BLC, sharding, group)
    batch, _, channels = z_BLC.shape
    width, (num_groups, num_taps) = channels // 3, filters.taps_GK.shape
    if past is None:
        past = HyenaPast(
            z_BLC.new_zeros(batch, filters.featurizer_taps_CF.shape[1] - 1, channels),
            z_BLC.new_zeros(batch, num_taps - 1, width),
        )
    return mix_channels(
        lambda span, z_BTE, past: hyena_fir(z_BTE, filters.of_channels(*span), past),
        z_BLC,
        past,
        shard,
        unit=width // num_groups,
        num_chunks=num_chunks,
    )


def _reach(filters: FIRFilters) -> int:
    """The number of earlier rows of z that a row of y depends on."""
    return filters.featurizer_taps_CF.shape[1] + filters.taps_GK.shape[1] - 2


def _send_tails(
    tail_BTC: Tensor, filters: FIRFilters, past: HyenaPast | None, shard: LocalShard
) -> tuple[Flight, Flight]:
    """Send the last F - 1 rows of z and K - 1 of u; `tail` is the K + F - 2 rows they depend on.

    u is a third as wide as z, so its rows are sent rather than more of z. In a shard of fewer than
    K + F - 2 rows, the rows of u depend on the halo of z and wait for it.
    """
    featurizer_taps_CF, taps_GK, _ = filters
    z_reach, u_reach = featurizer_taps_CF.shape[1] - 1, taps_GK.shape[1] - 1
    rows = tail_BTC.shape[1]
    z_past, u_past = (None, None) if past is None else (past.featurizer_BPC, past.inner)
    z_flight = start_halo(tail_BTC[:, max(rows - z_reach, 0) :], z_past, shard, z_reach)
    if rows == z_reach + u_reach:
        before, tail_BTC = tail_BTC[:, :z_reach], tail_BTC[:, z_reach:]
    else:
        before = z_flight.wait()
    batch, num_rows, channels = tail_BTC.shape
    zeros_BPD = tail_BTC.new_zeros(batch, u_reach, channels // 3)
    _, after_tail = hyena_fir(
        tail_BTC, FIRFilters(featurizer_taps_CF, taps_GK), HyenaPast(before, zeros_BPD)
    )
    u_tail = after_tail.inner[:, max(u_reach - num_rows, 0) :]
    return z_flight, start_halo(u_tail, u_past, shard, u_reach)


class _Corrected(torch.autograd.Function):
    """y + (corrected - from_zeros) on the first rows, where y and `from_zeros` are equal.

    So the forward pass just writes `corrected` into y, and the backward pass returns dy without a
    copy.
    """

    @staticmethod
    def forward(ctx: Any, y_BLD: Tensor, corrected_BPD: Tensor, from_zeros_BPD: Tensor) -> Tensor:
        ctx.mark_dirty(y_BLD)
        ctx.num_rows = from_zeros_BPD.shape[1]
        y_BLD[:, : ctx.num_rows] = corrected_BPD
        return y_BLD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_BLD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        dcorrected_BPD = dy_BLD[:, : ctx.num_rows]
        return dy_BLD, dcorrected_BPD, -dcorrected_BPD
