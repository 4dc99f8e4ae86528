"""Hyena-LI over shards of a sequence, by one FFT that is distributed over all ranks.

B batch, L rows of this shard, C = 3D channels [x2 | x1 | v], F featurizer taps, S modes, N ranks,
M rows of a block, T = N M rows of the transform, E channels transformed at once.
"""

import math

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import pad

from hyenakernels.filters import HyenaPast, ModalFilters
from hyenakernels.gate.reference import gated
from hyenakernels.parallel.butterfly import Hypercube, phases
from hyenakernels.parallel.exchange import AllToAll, Flight, Route
from hyenakernels.parallel.modal import decay
from hyenakernels.parallel.routes import edges, overlaps, start_halo
from hyenakernels.parallel.sharding import HeldSpan, LocalShard, Sharding
from hyenakernels.precision import accumulation_dtype, full_precision

MAX_NUMBERS = 2**28  # numbers that this rank transforms at once: bounds the memory


def hyena_modal_fft(
    z_BLC: Tensor,
    filters: ModalFilters,
    past: HyenaPast | None = None,
    *,
    sharding: Sharding | None = None,
    group: dist.ProcessGroup | None = None,
) -> tuple[Tensor, HyenaPast]:
    """`hyena_modal` of this shard, with the inner convolution by a distributed FFT.

    With theta = pi / (2 T), rows are multiplied by a phase: x[n] = exp(i theta n) u[n]. Products
    that a circular convolution of T points wraps around then have the additional phase theta T, a
    right angle. So the real part is the causal convolution, without padding to 2 T points.
    Arguments, results and the exchange of states are those of `hyena_modal_states`.

    Raises:
        ValueError: The number of ranks is not a power of two, the shapes do not match, or `z` does
            not match the sharding.

    Source: arXiv:2503.01868, appendix A.
    """
    shard = LocalShard.find("hyena_modal_fft", z_BLC, sharding, group)
    num_rows = -(-sum(shard.lengths) // shard.num_ranks)
    cube = Hypercube(shard.rank, shard.num_ranks, num_rows, shard.group)
    reach = filters.featurizer_taps_CF.shape[1] - 1
    z_past, state_BDS = (None, None) if past is None else (past.featurizer_BPC, past.inner)
    z_BLC, _, tail = edges(z_BLC, 0, min(reach, z_BLC.shape[1]))
    z_past = start_halo(tail, z_past, shard, reach).wait()
    dtype = accumulation_dtype(z_BLC)
    log_poles_DS, residues_DS = filters.log_poles_DS.to(dtype), filters.residues_DS.to(dtype)

    def convolve(u_BLD: Tensor) -> tuple[Tensor, Tensor]:
        width = max(1, MAX_NUMBERS // (u_BLD.shape[0] * num_rows))
        slices = [slice(first, first + width) for first in range(0, u_BLD.shape[2], width)]
        parts = [part(u_BLD[:, :, channels], channels) for channels in slices]
        return torch.cat([y for y, _ in parts], dim=2), torch.cat([end for _, end in parts], dim=1)

    def part(u_BLE: Tensor, channels: slice) -> tuple[Tensor, Tensor]:
        u, poles, residues = u_BLE.to(dtype), log_poles_DS[channels], residues_DS[channels]
        with full_precision(u):
            state = None if state_BDS is None else state_BDS[:, channels]
            initial, final = _states(u, state, poles, shard)
            weights = residues * torch.exp(poles) * initial
            y = _convolved(u, poles, residues, shard, cube)
            y = y + _series(weights, poles, u.shape[1])
        return y.to(u_BLE.dtype), final

    return gated(convolve, z_BLC, filters, z_past)


def _convolved(
    u_BLD: Tensor, log_poles_DS: Tensor, residues_DS: Tensor, shard: LocalShard, cube: Hypercube
) -> Tensor:
    """This shard's rows of the convolution, from a zero initial state."""
    route = _to_blocks(shard, cube.num_rows)
    u_BMD = Flight(route, u_BLD).wait()
    theta = math.pi / (2 * cube.num_ranks * cube.num_rows)
    phases_M1 = phases(theta, cube.rank * cube.num_rows, cube.num_rows, u_BMD)
    spectrum_MD = _spectrum(log_poles_DS, residues_DS, theta, cube)
    y_BMD = cube.inverse(cube.transform(phases_M1 * u_BMD) * spectrum_MD)
    return Flight(route.adjoint, (phases_M1.conj() * y_BMD).real).wait()


def _to_blocks(shard: LocalShard, num_rows: int) -> Route:
    """The route from shards to blocks of M rows; the last blocks end in zeros if M N > L."""
    blocks = [HeldSpan(r, 0, r * num_rows, (r + 1) * num_rows) for r in range(shard.num_ranks)]
    pieces = overlaps(shard.sharding.held_spans, tuple(blocks))
    return Route(pieces, shard.length, num_rows, shard.rank, shard.group)


def _spectrum(log_poles_DS: Tensor, residues_DS: Tensor, theta: float, cube: Hypercube) -> Tensor:
    """This rank's frequencies of the filter with its phases, [M, D], without communication.

    The rounds of the FFT turn a mode over all T rows into the same mode over the M rows of this
    rank, with a complex residue: R sum over blocks q of exp((p + i phi) M q).
    """
    num_rows, count = cube.num_rows, cube.num_ranks
    phi = theta - 2 * math.pi * cube.frequency_class / (count * num_rows)
    decays_NDS = decay(log_poles_DS, [num_rows * q for q in range(count)], log_poles_DS)
    phases_N11 = phases(phi * num_rows, 0, count, log_poles_DS)[..., None]
    folded_DS = residues_DS * (decays_NDS * phases_N11).sum(0)
    parts = torch.stack([folded_DS.real, folded_DS.imag])
    real_MD, imaginary_MD = _series(parts, log_poles_DS, num_rows).unbind()
    rows_MD = torch.complex(real_MD, imaginary_MD) * phases(phi, 0, num_rows, real_MD)
    spectrum_MD: Tensor = torch.fft.fft(rows_MD, dim=0)
    return spectrum_MD


def _series(weights_XDS: Tensor, log_poles_DS: Tensor, length: int) -> Tensor:
    """sum_s weights[s] exp(p_s t), t = 0 .. L - 1, [X, L, D], as a product of two short series.

    With t = I i + j and I about sqrt(L), no [D, S, L] tensor of all modes is materialized.
    """
    step = math.isqrt(length - 1) + 1
    count = -(-length // step)
    times_J, times_I = (
        torch.arange(n, dtype=log_poles_DS.dtype, device=log_poles_DS.device) for n in (step, count)
    )
    inner_DSJ = torch.exp(log_poles_DS[..., None] * times_J)
    outer_DIS = torch.exp(log_poles_DS[:, None] * (times_I * step)[:, None])
    weighed_DXS = weights_XDS.transpose(0, 1)
    outer_DYS = (weighed_DXS[:, :, None] * outer_DIS[:, None]).flatten(1, 2)
    rows_DXT = torch.unflatten(outer_DYS @ inner_DSJ, 1, (-1, count)).flatten(2)
    return rows_DXT[:, :, :length].permute(1, 2, 0)


def _state_from_zero(u_BLD: Tensor, log_poles_DS: Tensor) -> Tensor:
    """The final state from zero, sum_t exp(p (L - 1 - t)) u[t], with two series as `_series`."""
    length = u_BLD.shape[1]
    step = math.isqrt(length - 1) + 1
    count = -(-length // step)
    padded_BTD = pad(u_BLD, (0, 0, count * step - length, 0))
    u_BIJD = torch.unflatten(padded_BTD, 1, (count, step))
    back_J, back_I = (
        torch.arange(n - 1, -1, -1, dtype=u_BLD.dtype, device=u_BLD.device) for n in (step, count)
    )
    inner_DJS = torch.exp(log_poles_DS[:, None] * back_J[:, None])
    outer_DIS = torch.exp(log_poles_DS[:, None] * (back_I * step)[:, None])
    gained_DXS = u_BIJD.permute(3, 0, 1, 2).flatten(1, 2) @ inner_DJS
    gained_DBIS = torch.unflatten(gained_DXS, 1, (-1, count))
    return (gained_DBIS * outer_DIS[:, None]).sum(2).transpose(0, 1)


def _states(
    u_BLD: Tensor, state_BDS: Tensor | None, log_poles_DS: Tensor, shard: LocalShard
) -> tuple[Tensor, Tensor]:
    """The initial state of the sequence decayed to this shard, and the state after the shard.

    All ranks gather the final state of each shard from zero, [B, D, S], and the initial state.
    """
    local_BDS = _state_from_zero(u_BLD, log_poles_DS)
    if state_BDS is None or shard.rank > 0:
        state_BDS = torch.zeros_like(local_BDS)
    local_XBDS = torch.stack([local_BDS, state_BDS.to(local_BDS.dtype)])
    counts = (local_XBDS.numel(),) * shard.num_ranks
    sent = local_XBDS.flatten().repeat(shard.num_ranks)
    flight = Flight(AllToAll(counts, counts, shard.group), sent)
    all_NXBDS = flight.wait().view(shard.num_ranks, *local_XBDS.shape)

    rank, before = shard.rank, sum(shard.lengths[: shard.rank])
    after = [sum(shard.lengths[other + 1 : rank + 1]) for other in range(rank + 1)]
    initial, through = decay(log_poles_DS, [before, before + u_BLD.shape[1]], u_BLD)[:, None]
    decays_NDS = decay(log_poles_DS, after, u_BLD)
    from_zero_NBDS, first_BDS = all_NXBDS[: rank + 1, 0], all_NXBDS[0, 1]
    final_BDS = through * first_BDS + (decays_NDS[:, None] * from_zero_NBDS).sum(0)
    return initial * first_BDS, final_BDS
