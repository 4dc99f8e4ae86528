"""What the shards of a sequence exchange: final states from zero, and their adjoints.

Each is computed in one pass that reads two thirds of what the operator itself reads.

B batch, L rows, D channels, C = 3D channels [x2 | x1 | v], F featurizer taps, P = F - 1, S modes.
"""

import torch
from torch import Tensor

from hyenakernels.dispatch import contiguous_rows, kernels_support
from hyenakernels.filters import ModalFilters
from hyenakernels.fir.reference import causal_fir
from hyenakernels.launch import modal_segment
from hyenakernels.modal import reference
from hyenakernels.precision import accumulation_dtype


def state_from_zero(z_BLC: Tensor, filters: ModalFilters, z_past_BPC: Tensor) -> Tensor:
    """The final state from a zero initial state: sum_t exp(p (L - 1 - t)) u[t].

    Args:
        z_BLC: The projections, L >= 1.
        filters: As for `hyena_modal`.
        z_past_BPC: The F - 1 rows before `z`.

    Returns:
        [B, D, S] in fp32 or better, without a gradient.
    """
    featurizer_taps_CF, log_poles_DS, residues_DS, _ = filters
    width, modes = log_poles_DS.shape
    with torch.no_grad():
        if kernels_support(z_BLC, featurizer_taps_CF.shape[1], num_modes=modes):
            return _state_by_kernels(
                contiguous_rows(z_BLC), _without_skip(filters).contiguous(), z_past_BPC
            )
        gates_BLC, _ = causal_fir(
            z_BLC[:, :, width:], featurizer_taps_CF[width:], z_past_BPC[:, :, width:]
        )
        x1_BLD, v_BLD = gates_BLC.chunk(2, dim=2)
        _, state = reference.modal_conv(
            x1_BLD * v_BLD, log_poles_DS, residues_DS, _zeros(z_BLC, log_poles_DS)
        )
        return state


def adjoint_from_zero(
    z_BLC: Tensor, filters: ModalFilters, z_past_BPC: Tensor, dy_BLD: Tensor
) -> Tensor:
    """The gradient of the initial state if that of the final state is zero.

    It is R sum_t exp(p (t + 1)) g[t], g = dy * x2: the state of the reversed g, one step later.

    Args:
        z_BLC: The projections, L >= 1.
        filters: As for `hyena_modal`.
        z_past_BPC: The F - 1 rows before `z`.
        dy_BLD: The gradient of y.

    Returns:
        [B, D, S] in fp32 or better, without a gradient.
    """
    featurizer_taps_CF, log_poles_DS, residues_DS, _ = filters
    width, modes = log_poles_DS.shape
    with torch.no_grad():
        if kernels_support(z_BLC, featurizer_taps_CF.shape[1], num_modes=modes):
            return _adjoint_by_kernels(
                contiguous_rows(z_BLC),
                _without_skip(filters).contiguous(),
                z_past_BPC,
                dy_BLD.contiguous(),
            )
        x2_BLD, _ = causal_fir(
            z_BLC[:, :, :width], featurizer_taps_CF[:width], z_past_BPC[:, :, :width]
        )
        dtype = accumulation_dtype(z_BLC)
        g_BLD = (dy_BLD.to(dtype) * x2_BLD.to(dtype)).flip(1)
        _, sums = reference.modal_conv(
            g_BLD, log_poles_DS, residues_DS, _zeros(z_BLC, log_poles_DS)
        )
        return (residues_DS * torch.exp(log_poles_DS)).to(dtype) * sums


def _without_skip(filters: ModalFilters) -> ModalFilters:
    """Neither the state nor its adjoint depends on the skip."""
    featurizer_taps_CF, log_poles_DS, residues_DS, _ = filters
    return ModalFilters(featurizer_taps_CF, log_poles_DS, residues_DS)


def _zeros(z_BLC: Tensor, log_poles_DS: Tensor) -> Tensor:
    return z_BLC.new_zeros(z_BLC.shape[0], *log_poles_DS.shape, dtype=accumulation_dtype(z_BLC))


def _state_by_kernels(z_BLC: Tensor, filters: ModalFilters, z_past_BPC: Tensor) -> Tensor:
    """Scan to the state before the last segment, then compute that segment alone."""
    from hyenakernels.modal import kernel

    segment = modal_segment(filters.log_poles_DS.shape[0])
    last = (z_BLC.shape[1] - 1) // segment * segment
    past = z_past_BPC.to(z_BLC.dtype).contiguous()
    zeros_BSD = _zeros(z_BLC, filters.log_poles_DS.T)
    with torch.cuda.device_of(z_BLC):
        starts_BNSD = kernel.starts(z_BLC, filters, past, zeros_BSD)
        if last:
            past = z_BLC[:, last - past.shape[1] : last].contiguous()
        state_BSD: Tensor
        _, state_BSD, _ = kernel.forward(
            z_BLC[:, last:], filters, past, starts_BNSD[:, -1].contiguous()
        )
    return state_BSD.transpose(1, 2)


def _adjoint_by_kernels(
    z_BLC: Tensor, filters: ModalFilters, z_past_BPC: Tensor, dy_BLD: Tensor
) -> Tensor:
    """Scan to the adjoint after the first segment, then compute that segment alone."""
    from hyenakernels.modal import adjoint

    segment = modal_segment(filters.log_poles_DS.shape[0])
    past = z_past_BPC.to(z_BLC.dtype).contiguous()
    zeros_BSD = _zeros(z_BLC, filters.log_poles_DS.T)
    first_dy = dy_BLD[:, :segment].contiguous()
    with torch.cuda.device_of(z_BLC):
        adjoints_BNSD = adjoint.adjoints(z_BLC, filters, dy_BLD, zeros_BSD, segment)
        dstate_BSD: Tensor
        *_, dstate_BSD = adjoint.input_gradient(
            z_BLC[:, :segment],
            filters,
            past,
            first_dy,
            first_dy,  # in place of the gradient of x2, on which the adjoint does not depend
            adjoints_BNSD[:, :1].contiguous(),
            segment,
        )
    return dstate_BSD.transpose(1, 2)
