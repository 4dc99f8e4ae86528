"""Hyena-LI over shards of a sequence: exchanges around the same `hyena_modal`.

B batch, L rows of this shard, C = 3D channels [x2 | x1 | v], F featurizer taps, S modes, N ranks.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from hyenakernels.filters import HyenaPast, ModalFilters
from hyenakernels.modal.op import hyena_modal
from hyenakernels.modal.passing import adjoint_from_zero, state_from_zero
from hyenakernels.parallel.channels import mix_channels
from hyenakernels.parallel.routes import edges, start_halo
from hyenakernels.parallel.sharding import LocalShard, Sharding, Span
from hyenakernels.precision import accumulation_dtype


def hyena_modal_states(
    z_BLC: Tensor,
    filters: ModalFilters,
    past: HyenaPast | None = None,
    *,
    sharding: Sharding | None = None,
    group: dist.ProcessGroup | None = None,
) -> tuple[Tensor, HyenaPast]:
    """`hyena_modal` of this shard, starting from the final state of the preceding ranks.

    The state after a shard is exp(p L) times the state before it, plus the final state of the shard
    from zero. So the ranks exchange only the latter, [B, D, S], in one all-gather; likewise in the
    backward pass.

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

    Source: arXiv:2503.01868, section 4, for the exchanges; the state form follows from the modes.
    """
    shard = LocalShard.find("hyena_modal_states", z_BLC, sharding, group)
    reach = filters.featurizer_taps_CF.shape[1] - 1
    z_past, state_BDS = (None, None) if past is None else (past.featurizer_BPC, past.inner)
    z_BLC, _, tail = edges(z_BLC, 0, min(reach, z_BLC.shape[1]))
    z_past = start_halo(tail, z_past, shard, reach).wait()
    from_zero = state_from_zero(z_BLC, filters, z_past)
    if shard.rank > 0:
        state_BDS = None
    before = _state_before(from_zero, state_BDS, filters.log_poles_DS, shard)
    if shard.rank > 0:
        state_BDS = before
    elif state_BDS is None:
        state_BDS = torch.zeros_like(from_zero)
    y_BLD, past_after = hyena_modal(z_BLC, filters, HyenaPast(z_past, state_BDS))
    y_BLD, final_BDS = _Chained.apply(y_BLD, past_after.inner, shard, z_BLC, z_past, *filters)
    return y_BLD, HyenaPast(past_after.featurizer_BPC, final_BDS)


def hyena_modal_all_to_all(
    z_BLC: Tensor,
    filters: ModalFilters,
    past: HyenaPast | None = None,
    *,
    num_chunks: int = 1,
    sharding: Sharding | None = None,
    group: dist.ProcessGroup | None = None,
) -> tuple[Tensor, HyenaPast]:
    """`hyena_modal` of the whole sequence, where each rank computes some of the channels.

    Arguments and results are those of `hyena_modal_states`, but only the last rank gets the past
    for the samples that follow; on the others it has no rows and no modes. With several chunks of
    channels, exchange and computation are pipelined.

    Raises:
        ValueError: There are fewer channels than ranks times `num_chunks`.

    Source: arXiv:2503.01868, section 4.1.
    """
    shard = LocalShard.find("hyena_modal_all_to_all", z_BLC, sharding, group)
    batch, _, channels = z_BLC.shape
    if past is None:
        dtype = accumulation_dtype(z_BLC)
        past = HyenaPast(
            z_BLC.new_zeros(batch, filters.featurizer_taps_CF.shape[1] - 1, channels),
            z_BLC.new_zeros(batch, *filters.log_poles_DS.shape, dtype=dtype),
        )

    def transposed(past: HyenaPast) -> HyenaPast:
        """States [B, D, S] as rows of channels [B, S, D], and back."""
        return HyenaPast(past.featurizer_BPC, past.inner.transpose(1, 2))

    def mix(span: Span, z_BTE: Tensor, past: HyenaPast) -> tuple[Tensor, HyenaPast]:
        y_BTE, past_after = hyena_modal(z_BTE, filters.of_channels(*span), transposed(past))
        return y_BTE, transposed(past_after)

    y_BLD, past_after = mix_channels(
        mix, z_BLC, transposed(past), shard, unit=1, num_chunks=num_chunks
    )
    return y_BLD, transposed(past_after)


class _Chained(torch.autograd.Function):
    """The identity on y and the final state, whose backward pass adds the later ranks' gradient.

    The final state of a rank is the initial state of the next one, although it gets there by an
    exchange without a graph. So its gradient is that of the next rank's initial state, which is
    computed as the state itself is: exp(p L) times the gradient that the ranks after it send, plus
    the adjoint of the rank from zero. With the true initial state and the true final adjoint, the
    backward pass of each shard is exact on its own, including the gradient of the poles.
    """

    @staticmethod
    def forward(
        ctx: Any,
        y_BLD: Tensor,
        final_BDS: Tensor,
        shard: LocalShard,
        z_BLC: Tensor,
        z_past_BPC: Tensor,
        *filters: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        ctx.shard = shard
        ctx.save_for_backward(z_BLC, z_past_BPC, *filters)
        return y_BLD.view_as(y_BLD), final_BDS.view_as(final_BDS)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_BLD: Tensor, dfinal_BDS: Tensor) -> tuple[Tensor | None, ...]:
        shard = ctx.shard
        z_BLC, z_past_BPC, *saved = ctx.saved_tensors
        filters = ModalFilters(*saved)
        local = adjoint_from_zero(z_BLC, filters, z_past_BPC, dy_BLD)
        local = local + decay(filters.log_poles_DS, [shard.length], local) * dfinal_BDS
        after = range(shard.rank + 1, shard.num_ranks)
        dfinal_BDS = dfinal_BDS + _carried(local, filters.log_poles_DS, shard, after)
        return dy_BLD, dfinal_BDS, *[None] * (3 + len(filters))


@torch.no_grad()
def _state_before(
    from_zero_BDS: Tensor, state_BDS: Tensor | None, log_poles_DS: Tensor, shard: LocalShard
) -> Tensor:
    """The state before this shard, from the final states of all shards from zero.

    `state` is the state before the sequence on the first rank, and None on the others.
    """
    if state_BDS is not None:
        kept = decay(log_poles_DS, [shard.length], from_zero_BDS)
        from_zero_BDS = from_zero_BDS + kept * state_BDS
    return _carried(from_zero_BDS, log_poles_DS, shard, range(shard.rank))


def _carried(local_BDS: Tensor, log_poles_DS: Tensor, shard: LocalShard, ranks: range) -> Tensor:
    """The sum of the tensors of `ranks`, each decayed over the rows between its rank and this."""
    local_BDS = local_BDS.contiguous()
    all_NBDS = local_BDS.new_empty(shard.num_ranks, *local_BDS.shape)
    dist.all_gather(list(all_NBDS.unbind()), local_BDS, group=shard.group)
    between = [
        sum(shard.lengths[min(rank, shard.rank) + 1 : max(rank, shard.rank)]) for rank in ranks
    ]
    decay_NDS = decay(log_poles_DS, between, local_BDS)
    return (decay_NDS[:, None] * all_NBDS[ranks.start : ranks.stop]).sum(0)


def decay(log_poles_DS: Tensor, num_rows: list[int], like: Tensor) -> Tensor:
    """exp(p * rows), [N, D, S], for each number of rows."""
    # A blocking copy would synchronize with all work queued on the device.
    rows_N = torch.tensor(num_rows, dtype=like.dtype).to(like.device, non_blocking=True)
    return torch.exp(log_poles_DS.to(like.dtype) * rows_N[:, None, None])
