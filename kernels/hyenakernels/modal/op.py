"""The public face of the modal convolution: by itself, and fused with what surrounds it."""

import torch
from torch import Tensor

from hyenakernels import rings
from hyenakernels.dispatch import kernels_take, last_rows, packed, rows
from hyenakernels.gate.reference import gated
from hyenakernels.launch import modal_segment
from hyenakernels.modal import reference
from hyenakernels.precision import accumulation_dtype


def modal_conv(
    u_BLD: Tensor, log_poles_DS: Tensor, residues_DS: Tensor, state_BDS: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Convolution with a sum of real exponentials; `modal.reference.modal_conv` holds the contract.

    Args:
        u_BLD: The new samples.
        log_poles_DS: Real, negative for a filter that decays.
        residues_DS: The weight of each mode.
        state_BDS: The state after the sample before `u`; zeros when None.

    Returns:
        The filtered samples, and the state after the last of them.

    Raises:
        ValueError: Poles, residues, state and samples do not fit each other.
    """
    width = u_BLD.shape[2]
    state_BDS = _checked_state("modal_conv", u_BLD, width, log_poles_DS, residues_DS, state_BDS)
    return reference.modal_conv(u_BLD, log_poles_DS, residues_DS, state_BDS)


def hyena_modal(
    z_BLC: Tensor,
    featurizer_taps_CF: Tensor,
    log_poles_DS: Tensor,
    residues_DS: Tensor,
    skip_D: Tensor | None = None,
    featurizer_past_BFC: Tensor | None = None,
    state_BDS: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Hyena-LI between its projections: featurizer, gate, modal convolution, skip, gate.

    y = x2 * (modal(u) + skip * u), u = x1 * v; `gate.reference.gated` holds the contract.

    Args:
        z_BLC: The projections [x2 | x1 | v], each D channels wide.
        featurizer_taps_CF: One filter for each of the 3D channels, tap 0 for the newest sample.
        log_poles_DS: Real, negative for a filter that decays.
        residues_DS: The weight of each mode.
        skip_D: None for no skip.
        featurizer_past_BFC: The F - 1 rows before `z`; zeros when None.
        state_BDS: The state after the row before `z`; zeros when None.

    Returns:
        y [B, L, D] in the dtype of `z`, the past of the featurizer, and the state, both as what
        follows needs them.

    Raises:
        ValueError: Shapes do not fit each other.
    """
    batch, _, channels = z_BLC.shape
    modes, num_featurizer_taps = log_poles_DS.shape[1], featurizer_taps_CF.shape[1]
    state = _checked_state(
        "hyena_modal", z_BLC, channels // 3, log_poles_DS, residues_DS, state_BDS
    )
    expected = (batch, num_featurizer_taps - 1, channels)
    z_past = z_BLC.new_zeros(expected) if featurizer_past_BFC is None else featurizer_past_BFC
    if z_past.shape != expected:
        raise ValueError(
            f"hyena_modal: the featurizer's past is {tuple(z_past.shape)}, needed {expected}"
        )
    if not kernels_take(z_BLC, num_featurizer_taps, num_modes=modes):
        return gated(
            lambda u_BLD: reference.modal_conv(u_BLD, log_poles_DS, residues_DS, state),
            z_BLC,
            featurizer_taps_CF,
            skip_D,
            z_past,
        )
    pasts = (
        z_past.to(z_BLC.dtype).contiguous(),
        state.to(torch.float32).transpose(1, 2).contiguous(),
    )
    filters = (featurizer_taps_CF, log_poles_DS, residues_DS, skip_D)
    y_BLD, final_BSD, _ = fused(rows(z_BLC), *filters, *pasts)
    return y_BLD, last_rows(z_BLC, z_past), final_BSD.transpose(1, 2)


def hyena_modal_step(
    z_B1C: Tensor,
    featurizer_taps_CF: Tensor,
    log_poles_DS: Tensor,
    residues_DS: Tensor,
    skip_D: Tensor | None,
    featurizer_ring_BFC: Tensor,
    state_BDS: Tensor,
    lengths_B: Tensor,
) -> Tensor:
    """`hyena_modal` of a new row of each sequence; without gradients.

    Args:
        z_B1C: The projections of the rows.
        featurizer_taps_CF: One filter for each of the 3D channels.
        log_poles_DS: Real, negative for a filter that decays.
        residues_DS: The weight of each mode.
        skip_D: None for no skip.
        featurizer_ring_BFC: Rows before, as `rings` keeps them; the new ones are put there.
        state_BDS: The state after the row before, channels side by side; moved on in place.
        lengths_B: The positions of the rows, int64.

    Returns:
        y [B, 1, D] in the dtype of `z`.

    Raises:
        ValueError: Shapes do not fit each other.
    """
    width = z_B1C.shape[2] // 3
    rings.check("hyena_modal_step", z_B1C, featurizer_taps_CF, featurizer_ring_BFC)
    _checked_state("hyena_modal_step", z_B1C, width, log_poles_DS, residues_DS, state_BDS)
    filters = featurizer_taps_CF, log_poles_DS, residues_DS
    state_BSD = state_BDS.transpose(1, 2)
    if kernels_take(z_B1C, featurizer_taps_CF.shape[1], num_modes=log_poles_DS.shape[1]) and packed(
        skip_D, featurizer_ring_BFC, state_BSD, lengths_B
    ):
        from hyenakernels.modal.step import step

        contiguous = [x.contiguous() for x in filters]
        pasts = featurizer_ring_BFC, state_BSD, lengths_B
        arguments = [rows(z_B1C), *contiguous, skip_D, *pasts]
        with torch.cuda.device_of(z_B1C):
            y_B1D: Tensor = step(*arguments)
        return y_B1D
    z_past_BPC = rings.past_of(featurizer_ring_BFC, lengths_B)
    y_B1D, _, following_BDS = hyena_modal(z_B1C, *filters, skip_D, z_past_BPC, state_BDS)
    rings.put(featurizer_ring_BFC, lengths_B, z_B1C[:, 0])
    state_BDS.copy_(following_BDS)
    return y_B1D


def _checked_state(
    op: str,
    x: Tensor,
    width: int,
    log_poles_DS: Tensor,
    residues_DS: Tensor,
    state_BDS: Tensor | None,
) -> Tensor:
    if log_poles_DS.shape != residues_DS.shape or log_poles_DS.shape[0] != width:
        raise ValueError(
            f"{op}: x {tuple(x.shape)} needs poles and residues of {width} channels, "
            f"got {tuple(log_poles_DS.shape)} and {tuple(residues_DS.shape)}"
        )
    expected = (x.shape[0], *log_poles_DS.shape)
    if state_BDS is None:
        return x.new_zeros(expected, dtype=accumulation_dtype(x))
    if state_BDS.shape != expected:
        raise ValueError(f"{op}: the state is {tuple(state_BDS.shape)}, needed {expected}")
    return state_BDS


@torch.library.custom_op("hyenakernels::modal", mutates_args=())
def fused(
    z_BLC: Tensor,
    featurizer_taps_CF: Tensor,
    log_poles_DS: Tensor,
    residues_DS: Tensor,
    skip_D: Tensor | None,
    z_past_BFC: Tensor,
    state_BSD: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """`hyena_modal` by the kernels: y, the final state, and the state before each segment."""
    from hyenakernels.modal import kernel

    with torch.cuda.device_of(z_BLC):
        y_BLD, final_BSD, starts_BNSD = kernel.forward(
            z_BLC,
            featurizer_taps_CF.contiguous(),
            log_poles_DS.contiguous(),
            residues_DS.contiguous(),
            skip_D,
            z_past_BFC,
            state_BSD,
        )
    return y_BLD, final_BSD, starts_BNSD


@fused.register_fake
def _(
    z_BLC: Tensor,
    featurizer_taps_CF: Tensor,  # noqa: ARG001 - the fake has the op's signature
    log_poles_DS: Tensor,
    residues_DS: Tensor,  # noqa: ARG001
    skip_D: Tensor | None,  # noqa: ARG001
    z_past_BFC: Tensor,  # noqa: ARG001
    state_BSD: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    batch, length, _ = z_BLC.shape
    width, modes = log_poles_DS.shape
    segments = -(-length // modal_segment(width))
    starts_BNSD = state_BSD.new_empty(batch, segments, modes, width)
    return z_BLC.new_empty(batch, length, width), torch.empty_like(state_BSD), starts_BNSD


@torch.library.custom_op("hyenakernels::modal_gradient", mutates_args=())
def fused_gradient(
    z_BLC: Tensor,
    featurizer_taps_CF: Tensor,
    log_poles_DS: Tensor,
    residues_DS: Tensor,
    skip_D: Tensor | None,
    z_past_BFC: Tensor,
    starts_BNSD: Tensor,
    dy_BLD: Tensor,
    dfinal_BSD: Tensor,
) -> list[Tensor]:
    """Gradients of the inputs of `fused`, in their order; without meaning where there is none."""
    from hyenakernels.modal import gradient

    with torch.cuda.device_of(z_BLC):
        dz_BLC, dfeaturizer, dpoles, dresidues, dskip_D, dz_past, dstate_BSD = gradient.gradients(
            z_BLC,
            featurizer_taps_CF.contiguous(),
            log_poles_DS.contiguous(),
            residues_DS.contiguous(),
            skip_D,
            z_past_BFC,
            starts_BNSD,
            dy_BLD.contiguous(),
            dfinal_BSD.contiguous(),
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


@fused_gradient.register_fake
def _(
    z_BLC: Tensor,
    featurizer_taps_CF: Tensor,
    log_poles_DS: Tensor,
    residues_DS: Tensor,
    skip_D: Tensor | None,
    z_past_BFC: Tensor,
    starts_BNSD: Tensor,
    dy_BLD: Tensor,  # noqa: ARG001
    dfinal_BSD: Tensor,  # noqa: ARG001
) -> list[Tensor]:
    inputs = (
        z_BLC,
        featurizer_taps_CF,
        log_poles_DS,
        residues_DS,
        skip_D,
        z_past_BFC,
        starts_BNSD[:, 0],
    )
    return [
        z_BLC.new_empty(0)
        if tensor is None
        else torch.empty_like(tensor, memory_format=torch.contiguous_format)
        for tensor in inputs
    ]


def _keep(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    *parameters, _ = inputs
    _, _, starts_BNSD = output
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*parameters, starts_BNSD)


def _backward(ctx, dy_BLD, dfinal_BSD, _):  # type: ignore[no-untyped-def]
    inputs = ctx.saved_tensors
    z_BLC, starts_BNSD = inputs[0], inputs[-1]
    if dy_BLD is None:
        dy_BLD = z_BLC.new_zeros(*z_BLC.shape[:2], z_BLC.shape[2] // 3)
    if dfinal_BSD is None:
        dfinal_BSD = torch.zeros_like(starts_BNSD[:, 0])
    gradients = fused_gradient(*inputs, dy_BLD, dfinal_BSD)
    return tuple(
        None if tensor is None else gradient
        for tensor, gradient in zip(inputs, gradients, strict=True)
    )


fused.register_autograd(_backward, setup_context=_keep)
