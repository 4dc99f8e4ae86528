"""The public functions of the causal FIR: on its own, and as a whole Hyena operator."""

import torch
from torch import Tensor

from hyenakernels import rings
from hyenakernels.dispatch import all_contiguous, contiguous_rows, kernels_support, last_rows
from hyenakernels.filters import FIRFilters, HyenaPast
from hyenakernels.fir import reference
from hyenakernels.gate.reference import gated
from hyenakernels.gradients import Fused, fake_gradients, needed_gradients


def causal_fir(
    x_BLD: Tensor, taps_GK: Tensor, past_BPD: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Causal depthwise FIR with grouped taps; defined by `fir.reference.causal_fir`.

    Args:
        x_BLD: The new samples.
        taps_GK: One filter per group, tap 0 for the newest sample.
        past_BPD: The K - 1 samples before `x`, oldest first; zeros when None.

    Returns:
        The filtered samples, and the past for the samples that follow.

    Raises:
        ValueError: The groups do not divide the channels, or the past does not have K - 1 samples.
    """
    expected = _past_shape("causal_fir", x_BLD, x_BLD.shape[2], taps_GK, past_BPD)
    if past_BPD is None:
        past_BPD = x_BLD.new_zeros(expected)
    return reference.causal_fir(x_BLD, taps_GK, past_BPD)


def hyena_fir(
    z_BLC: Tensor, filters: FIRFilters, past: HyenaPast | None = None
) -> tuple[Tensor, HyenaPast]:
    """The operator of Hyena-SE and Hyena-MR: featurizer, gate, grouped FIR with skip, gate.

    y = x2 * (fir(u) + skip * u), u = x1 * v; defined by `gate.reference.gated`.

    Args:
        z_BLC: The projections [x2 | x1 | v], D channels each.
        filters: The taps of the featurizer and of the FIR, and the skip.
        past: The F - 1 rows of z and the K - 1 rows of u before the first row; zeros when None.

    Returns:
        y [B, L, D] in the dtype of `z`, and the past for the samples that follow.

    Raises:
        ValueError: The shapes do not match.
    """
    featurizer_taps_CF, taps_GK, _ = filters
    channels = z_BLC.shape[2]
    z_past, inner_past = (None, None) if past is None else (past.featurizer_BPC, past.inner)
    z_shape = _past_shape("hyena_fir", z_BLC, channels, featurizer_taps_CF, z_past)
    inner_shape = _past_shape("hyena_fir", z_BLC, channels // 3, taps_GK, inner_past)
    if kernels_support(z_BLC, featurizer_taps_CF.shape[1], num_taps=taps_GK.shape[1]):
        y_BLD, inner_after = fused(
            contiguous_rows(z_BLC),
            *filters,
            None if z_past is None else z_past.to(z_BLC.dtype).contiguous(),
            None if inner_past is None else inner_past.to(z_BLC.dtype).contiguous(),
        )
        return y_BLD, HyenaPast(last_rows(z_BLC, z_past, z_shape[1]), inner_after)
    if past is None:
        past = HyenaPast(z_BLC.new_zeros(z_shape), z_BLC.new_zeros(inner_shape))
    before_BPD = past.inner
    return gated(
        lambda u_BLD: reference.causal_fir(u_BLD, taps_GK, before_BPD),
        z_BLC,
        filters,
        past.featurizer_BPC,
    )


def hyena_fir_step(z_B1C: Tensor, filters: FIRFilters, slots: rings.HyenaSlots) -> Tensor:
    """One decoding step of `hyena_fir`: one new row of each sequence, without gradients.

    Args:
        z_B1C: The projections of the new rows.
        filters: The taps of the featurizer and of the FIR, and the skip.
        slots: The rings of rows of z and u, to which the new rows are written, and the positions
            of the new rows.

    Returns:
        y [B, 1, D] in the dtype of `z`.

    Raises:
        ValueError: The shapes do not match.
    """
    featurizer_taps_CF, taps_GK, _ = filters
    z_ring_BFC, ring_BKD, lengths_B = slots.featurizer_BFC, slots.inner, slots.lengths_B
    rings.check("hyena_fir_step", z_B1C, featurizer_taps_CF, z_ring_BFC)
    rings.check("hyena_fir_step", z_B1C[:, :, : z_B1C.shape[2] // 3], taps_GK, ring_BKD)
    if kernels_support(
        z_B1C, featurizer_taps_CF.shape[1], num_taps=taps_GK.shape[1]
    ) and all_contiguous(*filters, z_ring_BFC, ring_BKD, lengths_B):
        from hyenakernels.fir.step import step

        with torch.cuda.device_of(z_B1C):
            y_B1D: Tensor = step(contiguous_rows(z_B1C), filters, slots)
        return y_B1D
    past = HyenaPast(rings.past_of(z_ring_BFC, lengths_B), rings.past_of(ring_BKD, lengths_B))
    y_B1D, past = hyena_fir(z_B1C, filters, past)
    rings.put(z_ring_BFC, lengths_B, z_B1C[:, 0])
    if past.inner.shape[1]:
        rings.put(ring_BKD, lengths_B, past.inner[:, -1])
    return y_B1D


def _past_shape(
    op: str, x: Tensor, width: int, taps_GK: Tensor, past: Tensor | None
) -> tuple[int, int, int]:
    """The shape of the past; raises ValueError if taps or past do not match `x`."""
    groups, num_taps = taps_GK.shape
    if width % groups:
        raise ValueError(
            f"{op}: {groups} filter groups do not divide {width} channels "
            f"(x is {tuple(x.shape)}, taps are {tuple(taps_GK.shape)})"
        )
    expected = (x.shape[0], num_taps - 1, width)
    if past is not None and past.shape != expected:
        raise ValueError(
            f"{op}: the past is {tuple(past.shape)}, but {num_taps} taps over "
            f"x {tuple(x.shape)} need {expected}"
        )
    return expected


# Custom operators take plain tensors, so records are unpacked for the call and rebuilt inside.


def _forward(
    z_BLC: Tensor,
    featurizer_taps_CF: Tensor,
    taps_GK: Tensor,
    skip_D: Tensor | None,
    z_past_BPC: Tensor | None,
    past_BPD: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """`hyena_fir` by the kernels, with both pasts or neither; returns y and the new inner past."""
    from hyenakernels.fir import kernel

    filters = FIRFilters(featurizer_taps_CF, taps_GK, skip_D).contiguous()
    with torch.cuda.device_of(z_BLC):
        y_BLD, past_after = kernel.forward(z_BLC, filters, _past(z_past_BPC, past_BPD))
    return y_BLD, past_after


def _fake(
    z_BLC: Tensor,
    featurizer_taps_CF: Tensor,  # noqa: ARG001 - the fake has the operator's signature
    taps_GK: Tensor,
    skip_D: Tensor | None,  # noqa: ARG001
    z_past_BPC: Tensor | None,  # noqa: ARG001
    past_BPD: Tensor | None,  # noqa: ARG001
) -> tuple[Tensor, Tensor]:
    batch, length, channels = z_BLC.shape
    width = channels // 3
    y_BLD = z_BLC.new_empty(batch, length, width)
    return y_BLD, z_BLC.new_empty(batch, taps_GK.shape[1] - 1, width)


def _gradient(
    z_BLC: Tensor,
    featurizer_taps_CF: Tensor,
    taps_GK: Tensor,
    skip_D: Tensor | None,
    z_past_BPC: Tensor | None,
    past_BPD: Tensor | None,
    dy_BLD: Tensor,
    dpast_after_BPD: Tensor | None,
    frozen: bool,
) -> list[Tensor]:
    """Gradients of the inputs of `fused`, in their order; arbitrary where an input is None.

    Those of taps and skip are empty if the filters are frozen.
    """
    from hyenakernels.fir import adjoint, kernel

    filters = FIRFilters(featurizer_taps_CF, taps_GK, skip_D).contiguous()
    past, dy_BLD = _past(z_past_BPC, past_BPD), dy_BLD.contiguous()
    if dpast_after_BPD is not None:
        dpast_after_BPD = dpast_after_BPD.contiguous()
    with torch.cuda.device_of(z_BLC):
        dx2_BLD = kernel.gate_gradient(z_BLC, filters, past, dy_BLD)
        dz_BLC, dfeaturizer, dtaps_GK, dskip_D, dz_past, dpast_BPD = adjoint.gradients(
            z_BLC, filters, past, dy_BLD, dpast_after_BPD, dx2_BLD, frozen
        )
    dskip_D = dskip_D if skip_D is None else dskip_D.to(skip_D.dtype)
    return [
        dz_BLC,
        dfeaturizer.to(featurizer_taps_CF.dtype),
        dtaps_GK.to(taps_GK.dtype).contiguous(),
        dskip_D,
        dz_past,
        dpast_BPD,
    ]


def _fake_gradient(
    z_BLC: Tensor,
    featurizer_taps_CF: Tensor,
    taps_GK: Tensor,
    skip_D: Tensor | None,
    z_past_BPC: Tensor | None,
    past_BPD: Tensor | None,
    dy_BLD: Tensor,  # noqa: ARG001
    dpast_after_BPD: Tensor | None,  # noqa: ARG001
    frozen: bool,
) -> list[Tensor]:
    trained = (None, None) if frozen else (taps_GK, skip_D)
    inputs = (z_BLC, featurizer_taps_CF, *trained, z_past_BPC, past_BPD)
    return fake_gradients(inputs, z_BLC)


def _past(z_past_BPC: Tensor | None, past_BPD: Tensor | None) -> HyenaPast | None:
    if z_past_BPC is None or past_BPD is None:
        return None
    return HyenaPast(z_past_BPC, past_BPD)


def _save(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]  # noqa: ARG001
    ctx.save_for_backward(*inputs)


def _backward(gradient, ctx, dy_BLD, dpast_after_BPD):  # type: ignore[no-untyped-def]
    inputs = ctx.saved_tensors
    if dy_BLD is None:
        z_BLC = inputs[0]
        dy_BLD = z_BLC.new_zeros(*z_BLC.shape[:2], z_BLC.shape[2] // 3)
    frozen = not any(ctx.needs_input_grad[2:4])
    gradients = gradient(*inputs, dy_BLD, dpast_after_BPD, frozen)
    return needed_gradients(ctx, gradients)


fused = Fused(
    "fir",
    _forward,
    _gradient,
    fakes=(_fake, _fake_gradient),
    save=_save,
    backward=_backward,
)
