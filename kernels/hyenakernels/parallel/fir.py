"""Hyena-SE and -MR over shards of a sequence: three exchanges around the same `hyena_fir`.

B batch, L rows of this shard, C = 3D channels [x2 | x1 | v], F featurizer taps, G groups, K taps.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from hyenakernels.fir.op import hyena_fir
from hyenakernels.parallel.channels import mix_channels
from hyenakernels.parallel.exchange import Flight
from hyenakernels.parallel.routes import edges, start_halo
from hyenakernels.parallel.sharding import Place, Sharding, Span


def hyena_fir_halo(
    z_BLC: Tensor,
    featurizer_taps_CF: Tensor,
    taps_GK: Tensor,
    skip_D: Tensor | None = None,
    featurizer_past_BFC: Tensor | None = None,
    past_BPD: Tensor | None = None,
    *,
    sharding: Sharding | None = None,
    group: dist.ProcessGroup | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """`hyena_fir` of this shard: its pasts are the last rows of z and u of the ranks before.

    Args:
        z_BLC: This rank's rows of the projections.
        featurizer_taps_CF: The same on all ranks, as all filters are.
        taps_GK: See `hyena_fir`.
        skip_D: None for no skip.
        featurizer_past_BFC: What is before the sequence, read on the first rank.
        past_BPD: The same of u.
        sharding: Contiguous; when None the ranks tell each other their lengths.
        group: None for the world.

    Returns:
        y [B, L, D], and the pasts of what follows this shard: on the last rank those of what
        follows the sequence.

    Raises:
        ValueError: Shapes do not fit each other, or `z` not the sharding.

    Source: arXiv:2503.01868, section 4.2.
    """
    place = Place.find("hyena_fir_halo", z_BLC, sharding, group)
    z_BLC, _, tail = edges(z_BLC, 0, min(_reach(featurizer_taps_CF, taps_GK), z_BLC.shape[1]))
    pasts = (featurizer_past_BFC, past_BPD)
    flights = _start(tail, featurizer_taps_CF, taps_GK, pasts, place)
    z_past, past = (flight.wait() for flight in flights)
    return hyena_fir(z_BLC, featurizer_taps_CF, taps_GK, skip_D, z_past, past)


def hyena_fir_overlapped(
    z_BLC: Tensor,
    featurizer_taps_CF: Tensor,
    taps_GK: Tensor,
    skip_D: Tensor | None = None,
    featurizer_past_BFC: Tensor | None = None,
    past_BPD: Tensor | None = None,
    *,
    sharding: Sharding | None = None,
    group: dist.ProcessGroup | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """`hyena_fir_halo`, but the shard is computed from zeros while the halo travels.

    Then the first K + F - 2 rows, all that a past reaches, are computed again. Going back the
    adjoint of the halo travels during the backward pass of the shard. Shards no longer than that
    wait as in `hyena_fir_halo`, with which all arguments and results agree.

    Source: arXiv:2503.01868, section 4.2.
    """
    reach = _reach(featurizer_taps_CF, taps_GK)
    if z_BLC.shape[1] <= reach:
        return hyena_fir_halo(
            z_BLC,
            featurizer_taps_CF,
            taps_GK,
            skip_D,
            featurizer_past_BFC,
            past_BPD,
            sharding=sharding,
            group=group,
        )
    place = Place.find("hyena_fir_overlapped", z_BLC, sharding, group)
    z_BLC, head, tail = edges(z_BLC, reach, reach)
    pasts = (featurizer_past_BFC, past_BPD)
    flights = _start(tail, featurizer_taps_CF, taps_GK, pasts, place)
    y_BLD, z_after, past_after = hyena_fir(z_BLC, featurizer_taps_CF, taps_GK, skip_D)
    z_past, past = (flight.wait() for flight in flights)
    right, _, _ = hyena_fir(head, featurizer_taps_CF, taps_GK, skip_D, z_past, past)
    from_zeros, _, _ = hyena_fir(head, featurizer_taps_CF, taps_GK, skip_D)
    y_BLD = _Corrected.apply(y_BLD, right, from_zeros)
    return y_BLD, z_after, past_after


def hyena_fir_all_to_all(
    z_BLC: Tensor,
    featurizer_taps_CF: Tensor,
    taps_GK: Tensor,
    skip_D: Tensor | None = None,
    featurizer_past_BFC: Tensor | None = None,
    past_BPD: Tensor | None = None,
    *,
    num_chunks: int = 1,
    sharding: Sharding | None = None,
    group: dist.ProcessGroup | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """`hyena_fir` of the whole sequence, each rank on whole filter groups of the channels.

    Arguments and results agree with `hyena_fir_halo`, but the pasts of what follows are on the last
    rank alone; elsewhere they have no rows. With several chunks exchange and compute overlap.

    Raises:
        ValueError: There are fewer groups than ranks times `num_chunks`.

    Source: arXiv:2503.01868, section 4.1.
    """
    place = Place.find("hyena_fir_all_to_all", z_BLC, sharding, group)
    batch, _, channels = z_BLC.shape
    width, (num_groups, num_taps) = channels // 3, taps_GK.shape
    if featurizer_past_BFC is None:
        featurizer_past_BFC = z_BLC.new_zeros(batch, featurizer_taps_CF.shape[1] - 1, channels)
    if past_BPD is None:
        past_BPD = z_BLC.new_zeros(batch, num_taps - 1, width)
    unit = width // num_groups

    def mix(
        span: Span, z_BTE: Tensor, z_past: Tensor, past: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        own = slice(*span)
        featurizer_taps = torch.unflatten(featurizer_taps_CF, 0, (3, -1))[:, own].flatten(0, 1)
        taps = taps_GK[span[0] // unit : span[1] // unit]
        skip = None if skip_D is None else skip_D[own]
        return hyena_fir(z_BTE, featurizer_taps, taps, skip, z_past, past)

    return mix_channels(
        mix, z_BLC, featurizer_past_BFC, past_BPD, place, unit=unit, num_chunks=num_chunks
    )


def _reach(featurizer_taps_CF: Tensor, taps_GK: Tensor) -> int:
    return featurizer_taps_CF.shape[1] + taps_GK.shape[1] - 2


def _start(
    tail_BTC: Tensor,
    featurizer_taps_CF: Tensor,
    taps_GK: Tensor,
    pasts: tuple[Tensor | None, Tensor | None],
    place: Place,
) -> tuple[Flight, Flight]:
    """Send z's last F - 1 rows and u's last K - 1; `tail` is the K + F - 2 rows they come from.

    u is a third as wide as z, so its own rows travel rather than more of z. In a shard shorter than
    K + F - 2 rows u's rows depend on the halo of z, and wait for it.
    """
    z_reach, u_reach = featurizer_taps_CF.shape[1] - 1, taps_GK.shape[1] - 1
    rows = tail_BTC.shape[1]
    z_tail = tail_BTC[:, max(rows - z_reach, 0) :]
    z_flight = start_halo(z_tail, pasts[0], place, place.lengths, z_reach)
    if rows == z_reach + u_reach:
        before, tail_BTC = tail_BTC[:, :z_reach], tail_BTC[:, z_reach:]
    else:
        before = z_flight.wait()
    num_rows = tail_BTC.shape[1]
    _, _, u_tail = hyena_fir(tail_BTC, featurizer_taps_CF, taps_GK, None, before)
    u_tail = u_tail[:, max(u_reach - num_rows, 0) :]
    return z_flight, start_halo(u_tail, pasts[1], place, place.lengths, u_reach)


class _Corrected(torch.autograd.Function):
    """y + (right - from_zeros) on the first rows, where y and `from_zeros` are the same numbers.

    So the forward pass puts `right` in place, and the backward pass hands dy on uncopied.
    """

    @staticmethod
    def forward(ctx: Any, y_BLD: Tensor, right_BPD: Tensor, from_zeros_BPD: Tensor) -> Tensor:
        ctx.mark_dirty(y_BLD)
        ctx.num_rows = from_zeros_BPD.shape[1]
        y_BLD[:, : ctx.num_rows] = right_BPD
        return y_BLD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_BLD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        dright_BPD = dy_BLD[:, : ctx.num_rows]
        return dy_BLD, dright_BPD, -dright_BPD
