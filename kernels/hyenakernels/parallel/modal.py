"""Hyena-LI over shards of a sequence: exchanges around the same `hyena_modal`.

B batch, L rows of this shard, C = 3D channels [x2 | x1 | v], F featurizer taps, S modes, N ranks.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from hyenakernels.modal.op import hyena_modal
from hyenakernels.modal.passing import adjoint_from_zero, state_from_zero
from hyenakernels.parallel.channels import mix_channels
from hyenakernels.parallel.routes import edges, start_halo
from hyenakernels.parallel.sharding import Place, Sharding, Span
from hyenakernels.precision import accumulation_dtype


def hyena_modal_states(
    z_BLC: Tensor,
    featurizer_taps_CF: Tensor,
    log_poles_DS: Tensor,
    residues_DS: Tensor,
    skip_D: Tensor | None = None,
    featurizer_past_BFC: Tensor | None = None,
    state_BDS: Tensor | None = None,
    *,
    sharding: Sharding | None = None,
    group: dist.ProcessGroup | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """`hyena_modal` of this shard, from the state in which the ranks before leave it.

    The state a shard leaves is exp(p L) times the one it finds, plus what it would leave from zero.
    So the ranks tell each other only the latter, [B, D, S], at once; going back likewise.

    Args:
        z_BLC: This rank's rows of the projections.
        featurizer_taps_CF: The same on all ranks, as all filters are.
        log_poles_DS: See `hyena_modal`.
        residues_DS: The weight of each mode.
        skip_D: None for no skip.
        featurizer_past_BFC: What is before the sequence, read on the first rank.
        state_BDS: The state before the sequence, read on the first rank.
        sharding: Contiguous; when None the ranks tell each other their lengths.
        group: None for the world.

    Returns:
        y [B, L, D], and the past and the state of what follows this shard: on the last rank those
        of what follows the sequence.

    Raises:
        ValueError: Shapes do not fit each other, or `z` not the sharding.

    Source: arXiv:2503.01868, section 4, for the exchanges; the state form follows from the modes.
    """
    place = Place.find("hyena_modal_states", z_BLC, sharding, group)
    reach = featurizer_taps_CF.shape[1] - 1
    z_BLC, _, tail = edges(z_BLC, 0, min(reach, z_BLC.shape[1]))
    z_past = start_halo(tail, featurizer_past_BFC, place, place.lengths, reach).wait()
    left = state_from_zero(z_BLC, featurizer_taps_CF, log_poles_DS, z_past)
    if place.rank > 0:
        state_BDS = None
    before = _before(left, state_BDS, log_poles_DS, place)
    if place.rank > 0:
        state_BDS = before
    y_BLD, z_after, final_BDS = hyena_modal(
        z_BLC, featurizer_taps_CF, log_poles_DS, residues_DS, skip_D, z_past, state_BDS
    )
    y_BLD, final_BDS = _Chained.apply(
        y_BLD, final_BDS, place, z_BLC, featurizer_taps_CF, log_poles_DS, residues_DS, z_past
    )
    return y_BLD, z_after, final_BDS


def hyena_modal_all_to_all(
    z_BLC: Tensor,
    featurizer_taps_CF: Tensor,
    log_poles_DS: Tensor,
    residues_DS: Tensor,
    skip_D: Tensor | None = None,
    featurizer_past_BFC: Tensor | None = None,
    state_BDS: Tensor | None = None,
    *,
    num_chunks: int = 1,
    sharding: Sharding | None = None,
    group: dist.ProcessGroup | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """`hyena_modal` of the whole sequence, each rank on its part of the channels.

    Arguments and results agree with `hyena_modal_states`, but past and state of what follows are on
    the last rank alone; elsewhere they have no rows and no modes. With several chunks exchange and
    compute overlap.

    Raises:
        ValueError: There are fewer channels than ranks times `num_chunks`.

    Source: arXiv:2503.01868, section 4.1.
    """
    place = Place.find("hyena_modal_all_to_all", z_BLC, sharding, group)
    batch, _, channels = z_BLC.shape
    if featurizer_past_BFC is None:
        featurizer_past_BFC = z_BLC.new_zeros(batch, featurizer_taps_CF.shape[1] - 1, channels)
    if state_BDS is None:
        dtype = accumulation_dtype(z_BLC)
        state_BDS = z_BLC.new_zeros(batch, *log_poles_DS.shape, dtype=dtype)

    def mix(
        span: Span, z_BTE: Tensor, z_past: Tensor, state_BSE: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        own = slice(*span)
        featurizer_taps = torch.unflatten(featurizer_taps_CF, 0, (3, -1))[:, own].flatten(0, 1)
        skip = None if skip_D is None else skip_D[own]
        y_BTE, z_after, state_BES = hyena_modal(
            z_BTE,
            featurizer_taps,
            log_poles_DS[own],
            residues_DS[own],
            skip,
            z_past,
            state_BSE.transpose(1, 2),
        )
        return y_BTE, z_after, state_BES.transpose(1, 2)

    y_BLD, z_after, state_BSD = mix_channels(
        mix,
        z_BLC,
        featurizer_past_BFC,
        state_BDS.transpose(1, 2),
        place,
        unit=1,
        num_chunks=num_chunks,
    )
    return y_BLD, z_after, state_BSD.transpose(1, 2)


class _Chained(torch.autograd.Function):
    """y and the last state as they are; going back, the state's gradient from the ranks after.

    A rank's last state is what the next one began with, though it came by the exchange. So its
    gradient is that of the next rank's first state, found as the state itself is: exp(p L) times
    what reaches that rank from behind, plus what it gives from zero. With true states and true
    adjoints at its ends, each shard's own backward pass is exact, that of the poles included.
    """

    @staticmethod
    def forward(
        ctx: Any,
        y_BLD: Tensor,
        final_BDS: Tensor,
        place: Place,
        *inputs: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """`inputs`: z, featurizer taps, poles, residues and the rows before z."""
        ctx.place = place
        ctx.save_for_backward(*inputs)
        return y_BLD.view_as(y_BLD), final_BDS.view_as(final_BDS)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_BLD: Tensor, dfinal_BDS: Tensor) -> tuple[Tensor | None, ...]:
        place = ctx.place
        z_BLC, featurizer_taps_CF, log_poles_DS, residues_DS, z_past = ctx.saved_tensors
        given = adjoint_from_zero(
            z_BLC, featurizer_taps_CF, log_poles_DS, residues_DS, z_past, dy_BLD
        )
        given = given + decay(log_poles_DS, [place.lengths[place.rank]], given) * dfinal_BDS
        after = range(place.rank + 1, place.count)
        dfinal_BDS = dfinal_BDS + _carried(given, log_poles_DS, place, after)
        return dy_BLD, dfinal_BDS, None, None, None, None, None, None


@torch.no_grad()
def _before(
    left_BDS: Tensor, state_BDS: Tensor | None, log_poles_DS: Tensor, place: Place
) -> Tensor:
    """The state before this shard, from what each shard leaves and the state before the first."""
    if state_BDS is not None:
        kept = decay(log_poles_DS, [place.lengths[place.rank]], left_BDS)
        left_BDS = left_BDS + kept * state_BDS
    return _carried(left_BDS, log_poles_DS, place, range(place.rank))


def _carried(own_BDS: Tensor, log_poles_DS: Tensor, place: Place, ranks: range) -> Tensor:
    """What `ranks` gave, decayed over the rows between them and this one, and added."""
    own_BDS = own_BDS.contiguous()
    all_NBDS = own_BDS.new_empty(place.count, *own_BDS.shape)
    dist.all_gather(list(all_NBDS.unbind()), own_BDS, group=place.group)
    between = [
        sum(place.lengths[min(rank, place.rank) + 1 : max(rank, place.rank)]) for rank in ranks
    ]
    decay_NDS = decay(log_poles_DS, between, own_BDS)
    return (decay_NDS[:, None] * all_NBDS[ranks.start : ranks.stop]).sum(0)


def decay(log_poles_DS: Tensor, num_rows: list[int], like: Tensor) -> Tensor:
    """exp(p * rows), [N, D, S], for each number of rows."""
    # Not blocking: a copy that blocks waits for all that the device has still to do.
    rows_N = torch.tensor(num_rows, dtype=like.dtype).to(like.device, non_blocking=True)
    return torch.exp(log_poles_DS.to(like.dtype) * rows_N[:, None, None])
