"""The public functions of the modal convolution: on its own, and as the operator of Hyena-LI."""

import torch
from torch import Tensor

from hyenakernels import rings
from hyenakernels.dispatch import all_contiguous, contiguous_rows, kernels_support, last_rows
from hyenakernels.filters import HyenaPast, ModalFilters
from hyenakernels.gate.reference import gated
from hyenakernels.gradients import Fused, fake_gradients, needed_gradients
from hyenakernels.launch import modal_segment
from hyenakernels.modal import reference
from hyenakernels.precision import accumulation_dtype


def modal_conv(
    u_BLD: Tensor, log_poles_DS: Tensor, residues_DS: Tensor, state_BDS: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Convolution with a sum of real exponentials; defined by `modal.reference.modal_conv`.

    Args:
        u_BLD: The new samples.
        log_poles_DS: Real; negative for a decaying filter.
        residues_DS: The weight of each mode.
        state_BDS: The state after the sample before `u`; zeros when None.

    Returns:
        The filtered samples, and the state after the last of them.

    Raises:
        ValueError: The shapes of poles, residues, state and samples do not match.
    """
    width = u_BLD.shape[2]
    state_BDS = _checked_state("modal_conv", u_BLD, width, log_poles_DS, residues_DS, state_BDS)
    return reference.modal_conv(u_BLD, log_poles_DS, residues_DS, state_BDS)


def hyena_modal(
    z_BLC: Tensor, filters: ModalFilters, past: HyenaPast | None = None
) -> tuple[Tensor, HyenaPast]:
    """The operator of Hyena-LI: featurizer, gate, modal convolution with skip, gate.

    y = x2 * (modal(u) + skip * u), u = x1 * v; defined by `gate.reference.gated`.

    Args:
        z_BLC: The projections [x2 | x1 | v], D channels each.
        filters: The taps of the featurizer, poles, residues and skip.
        past: The F - 1 rows before `z`, and the state after the last of them; zeros when None.

    Returns:
        y [B, L, D] in the dtype of `z`, and the past for the samples that follow.

    Raises:
        ValueError: The shapes do not match.
    """
    featurizer_taps_CF, log_poles_DS, residues_DS, _ = filters
    batch, _, channels = z_BLC.shape
    num_featurizer_taps, num_modes = featurizer_taps_CF.shape[1], log_poles_DS.shape[1]
    state_BDS = _checked_state(
        "hyena_modal",
        z_BLC,
        channels // 3,
        log_poles_DS,
        residues_DS,
        None if past is None else past.inner,
    )
    expected = (batch, num_featurizer_taps - 1, channels)
    z_past_BPC = z_BLC.new_zeros(expected) if past is None else past.featurizer_BPC
    if z_past_BPC.shape != expected:
        raise ValueError(
            f"hyena_modal: the featurizer's past is {tuple(z_past_BPC.shape)}, expected {expected}"
        )
    if not kernels_support(z_BLC, num_featurizer_taps, num_modes=num_modes):
        return gated(
            lambda u_BLD: reference.modal_conv(u_BLD, log_poles_DS, residues_DS, state_BDS),
            z_BLC,
            filters,
            z_past_BPC,
        )
    y_BLD, final_BSD, _ = fused(
        contiguous_rows(z_BLC),
        *filters,
        z_past_BPC.to(z_BLC.dtype).contiguous(),
        state_BDS.to(torch.float32).transpose(1, 2).contiguous(),
    )
    return y_BLD, HyenaPast(last_rows(z_BLC, z_past_BPC, expected[1]), final_BSD.transpose(1, 2))


def hyena_modal_step(z_B1C: Tensor, filters: ModalFilters, slots: rings.HyenaSlots) -> Tensor:
    """One decoding step of `hyena_modal`: one new row of each sequence, without gradients.

    Args:
        z_B1C: The projections of the new rows.
        filters: The taps of the featurizer, poles, residues and skip.
        slots: The ring of rows of z, to which the new rows are written; the states, which are
            updated in place; and the positions of the new rows.

    Returns:
        y [B, 1, D] in the dtype of `z`.

    Raises:
        ValueError: The shapes do not match.
    """
    featurizer_taps_CF, log_poles_DS, residues_DS, _ = filters
    z_ring_BFC, state_BDS, lengths_B = slots.featurizer_BFC, slots.inner, slots.lengths_B
    width = z_B1C.shape[2] // 3
    rings.check("hyena_modal_step", z_B1C, featurizer_taps_CF, z_ring_BFC)
    _checked_state("hyena_modal_step", z_B1C, width, log_poles_DS, residues_DS, state_BDS)
    if kernels_support(
        z_B1C, featurizer_taps_CF.shape[1], num_modes=log_poles_DS.shape[1]
    ) and all_contiguous(*filters, z_ring_BFC, state_BDS.transpose(1, 2), lengths_B):
        from hyenakernels.modal.step import step

        with torch.cuda.device_of(z_B1C):
            y_B1D: Tensor = step(contiguous_rows(z_B1C), filters, slots)
        return y_B1D
    past = HyenaPast(rings.past_of(z_ring_BFC, lengths_B), state_BDS)
    y_B1D, past = hyena_modal(z_B1C, filters, past)
    rings.put(z_ring_BFC, lengths_B, z_B1C[:, 0])
    state_BDS.copy_(past.inner)
    return y_B1D


def _checked_state(
    op: str,
    x: Tensor,
    width: int,
    log_poles_DS: Tensor,
    residues_DS: Tensor,
    state_BDS: Tensor | None,
) -> Tensor:
    """The state, zeros when None; raises ValueError if any shape does not match that of `x`."""
    if log_poles_DS.shape != residues_DS.shape or log_poles_DS.shape[0] != width:
        raise ValueError(
            f"{op}: x {tuple(x.shape)} needs poles and residues of {width} channels, "
            f"got {tuple(log_poles_DS.shape)} and {tuple(residues_DS.shape)}"
        )
    expected = (x.shape[0], *log_poles_DS.shape)
    if state_BDS is None:  # laid out as the kernels take it, [B, S, D]
        batch, width, modes = expected
        return x.new_zeros(batch, modes, width, dtype=accumulation_dtype(x)).transpose(1, 2)
    if state_BDS.shape != expected:
        raise ValueError(f"{op}: the state is {tuple(state_BDS.shape)}, expected {expected}")
    return state_BDS


# Custom operators take plain tensors, so records are unpacked for the call and rebuilt inside.


def _forward(
    z_BLC: Tensor,
    featurizer_taps_CF: Tensor,
    log_poles_DS: Tensor,
    residues_DS: Tensor,
    skip_D: Tensor | None,
    z_past_BPC: Tensor,
    state_BSD: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """`hyena_modal` by the kernels: y, the final state, and the state before each segment."""
    from hyenakernels.modal import kernel

    filters = ModalFilters(featurizer_taps_CF, log_poles_DS, residues_DS, skip_D).contiguous()
    with torch.cuda.device_of(z_BLC):
        y_BLD, final_BSD, starts_BNSD = kernel.forward(z_BLC, filters, z_past_BPC, state_BSD)
    return y_BLD, final_BSD, starts_BNSD


def _fake(
    z_BLC: Tensor,
    featurizer_taps_CF: Tensor,  # noqa: ARG001 - the fake has the operator's signature
    log_poles_DS: Tensor,
    residues_DS: Tensor,  # noqa: ARG001
    skip_D: Tensor | None,  # noqa: ARG001
    z_past_BPC: Tensor,  # noqa: ARG001
    state_BSD: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    batch, length, _ = z_BLC.shape
    width, modes = log_poles_DS.shape
    segments = -(-length // modal_segment(width))
    starts_BNSD = state_BSD.new_empty(batch, segments, modes, width)
    return z_BLC.new_empty(batch, length, width), torch.empty_like(state_BSD), starts_BNSD


def _gradient(
    z_BLC: Tensor,
    featurizer_taps_CF: Tensor,
    log_poles_DS: Tensor,
    residues_DS: Tensor,
    skip_D: Tensor | None,
    z_past_BPC: Tensor,
    starts_BNSD: Tensor,
    dy_BLD: Tensor,
    dfinal_BSD: Tensor,
    frozen: bool,
) -> list[Tensor]:
    """Gradients of the inputs of `fused`, in their order; arbitrary where an input is None.

    Those of poles, residues and skip are empty if the filters are frozen.
    """
    from hyenakernels.modal import gradient

    filters = ModalFilters(featurizer_taps_CF, log_poles_DS, residues_DS, skip_D).contiguous()
    with torch.cuda.device_of(z_BLC):
        dz_BLC, dfeaturizer, dpoles, dresidues, dskip_D, dz_past, dstate_BSD = gradient.gradients(
            z_BLC,
            filters,
            z_past_BPC,
            starts_BNSD,
            dy_BLD.contiguous(),
            dfinal_BSD.contiguous(),
            frozen,
        )
    dskip_D = dskip_D if skip_D is None else dskip_D.to(skip_D.dtype)
    return [
        dz_BLC,
        dfeaturizer.to(featurizer_taps_CF.dtype),
        dpoles.to(log_poles_DS.dtype).contiguous(),
        dresidues.to(residues_DS.dtype).contiguous(),
        dskip_D,
        dz_past,
        dstate_BSD,
    ]


def _fake_gradient(
    z_BLC: Tensor,
    featurizer_taps_CF: Tensor,
    log_poles_DS: Tensor,
    residues_DS: Tensor,
    skip_D: Tensor | None,
    z_past_BPC: Tensor,
    starts_BNSD: Tensor,
    dy_BLD: Tensor,  # noqa: ARG001
    dfinal_BSD: Tensor,  # noqa: ARG001
    frozen: bool,
) -> list[Tensor]:
    trained = (None, None, None) if frozen else (log_poles_DS, residues_DS, skip_D)
    inputs = (z_BLC, featurizer_taps_CF, *trained, z_past_BPC, starts_BNSD[:, 0])
    return fake_gradients(inputs, z_BLC)


def _save(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    *parameters, _ = inputs
    _, _, starts_BNSD = output
    ctx.save_for_backward(*parameters, starts_BNSD)


def _backward(gradient, ctx, dy_BLD, dfinal_BSD, _):  # type: ignore[no-untyped-def]
    inputs = ctx.saved_tensors
    z_BLC, starts_BNSD = inputs[0], inputs[-1]
    if dy_BLD is None:
        dy_BLD = z_BLC.new_zeros(*z_BLC.shape[:2], z_BLC.shape[2] // 3)
    if dfinal_BSD is None:
        dfinal_BSD = torch.zeros_like(starts_BNSD[:, 0])
    frozen = not any(ctx.needs_input_grad[2:5])
    return needed_gradients(ctx, gradient(*inputs, dy_BLD, dfinal_BSD, frozen))


fused = Fused(
    "modal",
    _forward,
    _gradient,
    fakes=(_fake, _fake_gradient),
    save=_save,
    backward=_backward,
)
