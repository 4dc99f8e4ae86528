"""Hyena-LI over shards of a sequence by one Fourier transform that all ranks share.

B batch, L rows of this shard, C = 3D channels [x2 | x1 | v], F featurizer taps, S modes, N ranks,
M rows of a block, T = N M rows that are transformed, E channels that are transformed at once.
"""

import math

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import pad

from hyenakernels.gate.reference import gated
from hyenakernels.parallel.butterfly import Hypercube, turns
from hyenakernels.parallel.exchange import AllToAll, Flight, Route
from hyenakernels.parallel.modal import decay
from hyenakernels.parallel.routes import edges, overlaps, start_halo
from hyenakernels.parallel.sharding import Place, Sharding, Stretch
from hyenakernels.precision import accumulation_dtype, full_precision

MOST_NUMBERS = 2**28  # of this rank that are transformed at once: bounds the memory


def hyena_modal_fft(
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
    """`hyena_modal` of this shard, the inner convolution by point-to-point FFT.

    With theta = pi / (2 T) the rows are turned: x[n] = exp(i theta n) u[n]. What a circular product
    of T points wraps around then comes back turned by theta T, a right angle. So the real part
    is the causal convolution, and nothing is padded to 2 T. Arguments and results agree with
    `hyena_modal_states`; states pass by the modes, as there.

    Raises:
        ValueError: The number of ranks is no power of two, shapes do not fit each other, or `z` not
            the sharding.

    Source: arXiv:2503.01868, appendix A.
    """
    place = Place.find("hyena_modal_fft", z_BLC, sharding, group)
    num_rows = -(-sum(place.lengths) // place.count)
    cube = Hypercube(place.rank, place.count, num_rows, place.group)
    reach = featurizer_taps_CF.shape[1] - 1
    z_BLC, _, tail = edges(z_BLC, 0, min(reach, z_BLC.shape[1]))
    z_past = start_halo(tail, featurizer_past_BFC, place, place.lengths, reach).wait()
    dtype = accumulation_dtype(z_BLC)
    log_poles_DS, residues_DS = log_poles_DS.to(dtype), residues_DS.to(dtype)

    def convolve(u_BLD: Tensor) -> tuple[Tensor, Tensor]:
        width = max(1, MOST_NUMBERS // (u_BLD.shape[0] * num_rows))
        parts = [
            part(u_BLD[:, :, own], own)
            for own in (slice(first, first + width) for first in range(0, u_BLD.shape[2], width))
        ]
        return torch.cat([y for y, _ in parts], dim=2), torch.cat([end for _, end in parts], dim=1)

    def part(u_BLE: Tensor, own: slice) -> tuple[Tensor, Tensor]:
        u, poles, residues = u_BLE.to(dtype), log_poles_DS[own], residues_DS[own]
        with full_precision(u):
            state = None if state_BDS is None else state_BDS[:, own]
            initial, final = _states(u, state, poles, place)
            heard = residues * torch.exp(poles) * initial
            y = _convolved(u, poles, residues, place, cube)
            y = y + _series(heard, poles, u.shape[1])
        return y.to(u_BLE.dtype), final

    return gated(convolve, z_BLC, featurizer_taps_CF, skip_D, z_past)


def _convolved(
    u_BLD: Tensor, log_poles_DS: Tensor, residues_DS: Tensor, place: Place, cube: Hypercube
) -> Tensor:
    """This shard's rows of the convolution from a zero state."""
    route = _to_blocks(place, cube.num_rows)
    u_BMD = Flight(route, u_BLD).wait()
    turn = math.pi / (2 * cube.count * cube.num_rows)
    turned_M1 = turns(turn, cube.rank * cube.num_rows, cube.num_rows, u_BMD)
    spectrum_MD = _spectrum(log_poles_DS, residues_DS, turn, cube)
    y_BMD = cube.inverse(cube.transform(turned_M1 * u_BMD) * spectrum_MD)
    return Flight(route.adjoint, (turned_M1.conj() * y_BMD).real).wait()


def _to_blocks(place: Place, num_rows: int) -> Route:
    """From shards to blocks of M rows; the last blocks end in zeros where M N > L."""
    blocks = [Stretch(r, 0, r * num_rows, (r + 1) * num_rows) for r in range(place.count)]
    pieces = overlaps(place.sharding.stretches, tuple(blocks))
    own = place.lengths[place.rank]
    return Route(pieces, own, num_rows, place.rank, place.group)


def _spectrum(log_poles_DS: Tensor, residues_DS: Tensor, turn: float, cube: Hypercube) -> Tensor:
    """This rank's frequencies of the turned filter, [M, D]; no row of it travels.

    What the rounds of the transform would leave here of a mode over all T rows is the mode over M
    rows, with a complex residue: R sum over blocks q of exp((p + i phi) M q).
    """
    num_rows, count = cube.num_rows, cube.count
    phi = turn - 2 * math.pi * cube.frequency_class / (count * num_rows)
    decays_NDS = decay(log_poles_DS, [num_rows * q for q in range(count)], log_poles_DS)
    turns_N11 = turns(phi * num_rows, 0, count, log_poles_DS)[..., None]
    folded_DS = residues_DS * (decays_NDS * turns_N11).sum(0)
    parts = torch.stack([folded_DS.real, folded_DS.imag])
    real_MD, imaginary_MD = _series(parts, log_poles_DS, num_rows).unbind()
    rows_MD = torch.complex(real_MD, imaginary_MD) * turns(phi, 0, num_rows, real_MD)
    spectrum_MD: Tensor = torch.fft.fft(rows_MD, dim=0)
    return spectrum_MD


def _series(weights_XDS: Tensor, log_poles_DS: Tensor, length: int) -> Tensor:
    """sum_s weights[s] exp(p_s t), t = 0 .. L - 1, [X, L, D], in a product of two short series.

    A [D, S, L] tensor of all modes never exists: t = I i + j, with I about the root of L.
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


def _left(u_BLD: Tensor, log_poles_DS: Tensor) -> Tensor:
    """The state after the last row from zero, sum_t exp(p (L - 1 - t)) u[t], cut as `_series`."""
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
    u_BLD: Tensor, state_BDS: Tensor | None, log_poles_DS: Tensor, place: Place
) -> tuple[Tensor, Tensor]:
    """What the state before the sequence is before this shard, and the state after the shard.

    An all-gather of what each shard leaves from zero, [B, D, S], and of the first state.
    """
    left_BDS = _left(u_BLD, log_poles_DS)
    if state_BDS is None or place.rank > 0:
        state_BDS = torch.zeros_like(left_BDS)
    own = torch.stack([left_BDS, state_BDS.to(left_BDS.dtype)])
    share = (own.numel(),) * place.count
    flight = Flight(AllToAll(share, share, place.group), own.flatten().repeat(place.count))
    all_NXBDS = flight.wait().view(place.count, *own.shape)

    rank, before = place.rank, sum(place.lengths[: place.rank])
    after = [sum(place.lengths[other + 1 : rank + 1]) for other in range(rank + 1)]
    initial, through = decay(log_poles_DS, [before, before + u_BLD.shape[1]], u_BLD)[:, None]
    decays_NDS = decay(log_poles_DS, after, u_BLD)
    left_NBDS, first_BDS = all_NXBDS[: rank + 1, 0], all_NXBDS[0, 1]
    final_BDS = through * first_BDS + (decays_NDS[:, None] * left_NBDS).sum(0)
    return initial * first_BDS, final_BDS
