"""Reference of the modal convolution in plain PyTorch: any float dtype, linear in L.

Differentiable. B batch, L length, D channels, S modes, C samples of a chunk, N chunks.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from hyenakernels.precision import accumulation_dtype, full_precision

CHUNK = 64  # samples; 32 to 64 are fastest on CPUs, and it does not change the result


def modal_conv(
    u_BLD: Tensor, log_poles_DS: Tensor, residues_DS: Tensor, state_BDS: Tensor
) -> tuple[Tensor, Tensor]:
    """Convolve every channel with h[t] = sum_s residues[s] * exp(log_poles[s] * t).

    A chunked scan of state[t] = exp(log_poles) * state[t - 1] + u[t], with
    y[t] = sum_s residues[s] * state[t, s]: a Toeplitz product inside a chunk, and a recurrence of
    the state from chunk to chunk.

    Args:
        u_BLD: The new samples; L may be 0.
        log_poles_DS: Real; negative for a decaying filter.
        residues_DS: The weight of each mode.
        state_BDS: The state after the sample before `u`.

    Returns:
        y in the shape and dtype of `u`, and the state after the last sample, in fp32 or better.

    Source: arXiv:2503.01868, section 2 (Hyena-LI); the state form follows from the sum.
    """
    length, dtype = u_BLD.shape[1], accumulation_dtype(u_BLD)
    u, state = u_BLD.to(dtype), state_BDS.to(dtype)
    log_poles, residues = log_poles_DS.to(dtype), residues_DS.to(dtype)
    in_chunks = length - length % CHUNK
    with full_precision(u_BLD):
        pieces = []
        if in_chunks:
            y, state = _chunked(u[:, :in_chunks], log_poles, residues, state, CHUNK)
            pieces.append(y)
        if in_chunks < length:
            rest = length - in_chunks
            y, state = _chunked(u[:, in_chunks:], log_poles, residues, state, rest)
            pieces.append(y)
    return (torch.cat(pieces, dim=1) if pieces else u).to(u_BLD.dtype), state


def _chunked(
    u_BLD: Tensor, log_poles_DS: Tensor, residues_DS: Tensor, state_BDS: Tensor, chunk: int
) -> tuple[Tensor, Tensor]:
    """`modal_conv` for a length that is a multiple of `chunk`."""
    batch, length, channels = u_BLD.shape
    num_chunks = length // chunk
    time_C = torch.arange(chunk, device=u_BLD.device, dtype=u_BLD.dtype)
    decay_DSC = torch.exp(log_poles_DS[:, :, None] * time_C)
    # [D, C, B * N]: every product below is a batched matrix product over the channels.
    u_DCX = u_BLD.reshape(batch, num_chunks, chunk, channels).permute(3, 2, 0, 1).flatten(2)

    modes = log_poles_DS.shape[1]
    gained_DSBN = (decay_DSC.flip(2) @ u_DCX).view(channels, modes, batch, num_chunks)
    # exp(p C) - 1, not exp(p C): near 1 the latter loses digits, and the error would accumulate.
    chunk_loss_DS1 = torch.expm1(log_poles_DS * chunk)[:, :, None]
    state_DSB = state_BDS.permute(1, 2, 0)
    before = []
    for gained_DSB in gained_DSBN.unbind(3):
        before.append(state_DSB)
        state_DSB = state_DSB + (chunk_loss_DS1 * state_DSB + gained_DSB)
    before_DSX = torch.stack(before, dim=3).flatten(2)

    filter_DC = torch.einsum("ds,dsc->dc", residues_DS, decay_DSC)
    carried_DCS = (residues_DS * torch.exp(log_poles_DS))[:, None] * decay_DSC.transpose(1, 2)
    y_DCX = torch.baddbmm(carried_DCS @ before_DSX, _toeplitz(filter_DC), u_DCX)
    y_BNCD = y_DCX.view(channels, chunk, batch, num_chunks).permute(2, 3, 1, 0)
    return y_BNCD.reshape(batch, length, channels), state_DSB.permute(2, 0, 1)


def _toeplitz(filter_DC: Tensor) -> Tensor:
    """The causal Toeplitz matrix of each filter: T[d, t, j] = filter[d, t - j] where j <= t."""
    chunk = filter_DC.shape[1]
    padded = F.pad(filter_DC, (chunk - 1, 0))
    return padded.unfold(1, chunk, 1).flip(2)
