"""What a shard passes on, as if nothing had reached it: its state, and going back the adjoint.

Either is found in one pass over two thirds of what the operator itself reads.

B batch, L rows, D channels, C = 3D channels [x2 | x1 | v], F featurizer taps, S modes.
"""

import torch
from torch import Tensor

from hyenakernels.dispatch import kernels_take, rows
from hyenakernels.fir.reference import causal_fir
from hyenakernels.launch import modal_segment
from hyenakernels.modal import reference
from hyenakernels.precision import accumulation_dtype


def state_from_zero(
    z_BLC: Tensor, featurizer_taps_CF: Tensor, log_poles_DS: Tensor, z_past_BFC: Tensor
) -> Tensor:
    """The state after the last row, had it been zero before the first: sum_t exp(p (L-1-t)) u[t].

    Args:
        z_BLC: The projections, L >= 1.
        featurizer_taps_CF: Tap 0 for the newest sample.
        log_poles_DS: Real.
        z_past_BFC: The F - 1 rows before `z`.

    Returns:
        [B, D, S] in fp32 or better; no gradient passes.
    """
    width, modes = log_poles_DS.shape
    # No state depends on residues: where they are asked for, the poles stand in.
    with torch.no_grad():
        if kernels_take(z_BLC, featurizer_taps_CF.shape[1], num_modes=modes):
            return _state_by_kernels(
                rows(z_BLC), featurizer_taps_CF.contiguous(), log_poles_DS.contiguous(), z_past_BFC
            )
        gates_BLC, _ = causal_fir(
            z_BLC[:, :, width:], featurizer_taps_CF[width:], z_past_BFC[:, :, width:]
        )
        x1_BLD, v_BLD = gates_BLC.chunk(2, dim=2)
        _, state = reference.modal_conv(
            x1_BLD * v_BLD, log_poles_DS, log_poles_DS, _zeros(z_BLC, log_poles_DS)
        )
        return state


def adjoint_from_zero(
    z_BLC: Tensor,
    featurizer_taps_CF: Tensor,
    log_poles_DS: Tensor,
    residues_DS: Tensor,
    z_past_BFC: Tensor,
    dy_BLD: Tensor,
) -> Tensor:
    """The gradient of the state before the first row, were that of the last state zero.

    That is R sum_t exp(p (t + 1)) g[t], g = dy * x2: the state of g in reverse, and one step.

    Args:
        z_BLC: The projections, L >= 1.
        featurizer_taps_CF: Tap 0 for the newest sample.
        log_poles_DS: Real.
        residues_DS: The weight of each mode.
        z_past_BFC: The F - 1 rows before `z`.
        dy_BLD: Gradient of y.

    Returns:
        [B, D, S] in fp32 or better; no gradient passes.
    """
    width, modes = log_poles_DS.shape
    with torch.no_grad():
        if kernels_take(z_BLC, featurizer_taps_CF.shape[1], num_modes=modes):
            return _adjoint_by_kernels(
                rows(z_BLC),
                featurizer_taps_CF.contiguous(),
                log_poles_DS.contiguous(),
                residues_DS.contiguous(),
                z_past_BFC,
                dy_BLD.contiguous(),
            )
        x2_BLD, _ = causal_fir(
            z_BLC[:, :, :width], featurizer_taps_CF[:width], z_past_BFC[:, :, :width]
        )
        dtype = accumulation_dtype(z_BLC)
        g_BLD = (dy_BLD.to(dtype) * x2_BLD.to(dtype)).flip(1)
        _, sums = reference.modal_conv(
            g_BLD, log_poles_DS, log_poles_DS, _zeros(z_BLC, log_poles_DS)
        )
        return (residues_DS * torch.exp(log_poles_DS)).to(dtype) * sums


def _zeros(z_BLC: Tensor, log_poles_DS: Tensor) -> Tensor:
    return z_BLC.new_zeros(z_BLC.shape[0], *log_poles_DS.shape, dtype=accumulation_dtype(z_BLC))


def _state_by_kernels(
    z_BLC: Tensor, featurizer_taps_CF: Tensor, log_poles_DS: Tensor, z_past_BFC: Tensor
) -> Tensor:
    """The state before the last segment, by the scan; then that segment alone."""
    from hyenakernels.modal import kernel

    segment = modal_segment(log_poles_DS.shape[0])
    last = (z_BLC.shape[1] - 1) // segment * segment
    past = z_past_BFC.to(z_BLC.dtype).contiguous()
    zeros_BSD = _zeros(z_BLC, log_poles_DS.T)
    filters = (featurizer_taps_CF, log_poles_DS)
    with torch.cuda.device_of(z_BLC):
        starts_BNSD = kernel.starts(z_BLC, *filters, past, zeros_BSD)
        if last:
            past = z_BLC[:, last - past.shape[1] : last].contiguous()
        state_BSD: Tensor
        _, state_BSD, _ = kernel.forward(
            z_BLC[:, last:], *filters, log_poles_DS, None, past, starts_BNSD[:, -1].contiguous()
        )
    return state_BSD.transpose(1, 2)


def _adjoint_by_kernels(
    z_BLC: Tensor,
    featurizer_taps_CF: Tensor,
    log_poles_DS: Tensor,
    residues_DS: Tensor,
    z_past_BFC: Tensor,
    dy_BLD: Tensor,
) -> Tensor:
    """The adjoint after the first segment, by the scan; then that segment alone."""
    from hyenakernels.modal import adjoint

    segment = modal_segment(log_poles_DS.shape[0])
    past = z_past_BFC.to(z_BLC.dtype).contiguous()
    zeros_BSD = _zeros(z_BLC, log_poles_DS.T)
    first_dy = dy_BLD[:, :segment].contiguous()
    with torch.cuda.device_of(z_BLC):
        found_BNSD = adjoint.adjoints(
            z_BLC, featurizer_taps_CF, log_poles_DS, residues_DS, dy_BLD, zeros_BSD, segment
        )
        first = (z_BLC[:, :segment], past, featurizer_taps_CF, log_poles_DS, residues_DS)
        # Nor does the adjoint of the state depend on the skip, or on the gradient of x2.
        dstate_BSD: Tensor
        *_, dstate_BSD = adjoint.input_gradient(
            (*first, log_poles_DS, first_dy),
            first_dy,
            found_BNSD[:, :1].contiguous(),
            segment,
            has_skip=False,
        )
    return dstate_BSD.transpose(1, 2)
