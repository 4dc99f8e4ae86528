"""The public face of the causal FIR: by itself, and fused with what surrounds it in a mixer."""

import torch
from torch import Tensor

from hyenakernels import rings
from hyenakernels.dispatch import kernels_take, last_rows, packed, rows
from hyenakernels.fir import reference
from hyenakernels.gate.reference import gated


def causal_fir(
    x_BLD: Tensor, taps_GK: Tensor, past_BPD: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Causal depthwise FIR with grouped taps; `fir.reference.causal_fir` holds the contract.

    Args:
        x_BLD: The new samples.
        taps_GK: One filter a group, tap 0 for the newest sample.
        past_BPD: The K - 1 samples before `x`, oldest first; zeros when None.

    Returns:
        The filtered samples, and the past of what follows.

    Raises:
        ValueError: The groups do not divide the channels, or the past has not K - 1 samples.
    """
    expected = _past_shape("causal_fir", x_BLD, x_BLD.shape[2], taps_GK, past_BPD)
    return reference.causal_fir(x_BLD, taps_GK, _or_zeros(past_BPD, x_BLD, expected))


def hyena_fir(
    z_BLC: Tensor,
    featurizer_taps_CF: Tensor,
    taps_GK: Tensor,
    skip_D: Tensor | None = None,
    featurizer_past_BFC: Tensor | None = None,
    past_BPD: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Hyena-SE and -MR between their projections: featurizer, gate, grouped FIR, skip, gate.

    y = x2 * (fir(u) + skip * u), u = x1 * v; `gate.reference.gated` holds the contract.

    Args:
        z_BLC: The projections [x2 | x1 | v], each D channels wide.
        featurizer_taps_CF: One filter for each of the 3D channels, tap 0 for the newest sample.
        taps_GK: One filter for D / G neighbouring channels, tap 0 for the newest sample.
        skip_D: None for no skip.
        featurizer_past_BFC: The F - 1 rows before `z`; zeros when None.
        past_BPD: The K - 1 rows of u before those of `z`; zeros when None.

    Returns:
        y [B, L, D] in the dtype of `z`, and the two pasts of what follows.

    Raises:
        ValueError: Shapes do not fit each other.
    """
    channels, starts = z_BLC.shape[2], featurizer_past_BFC is None and past_BPD is None
    expected = _past_shape("hyena_fir", z_BLC, channels, featurizer_taps_CF, featurizer_past_BFC)
    z_past = _or_zeros(featurizer_past_BFC, z_BLC, expected)
    expected = _past_shape("hyena_fir", z_BLC, channels // 3, taps_GK, past_BPD)
    if kernels_take(z_BLC, featurizer_taps_CF.shape[1], num_taps=taps_GK.shape[1]):
        pasts: tuple[Tensor | None, Tensor | None] = (None, None)
        if not starts:
            past = _or_zeros(past_BPD, z_BLC, expected)
            pasts = z_past.to(z_BLC.dtype).contiguous(), past.to(z_BLC.dtype).contiguous()
        y_BLD, past_after = fused(rows(z_BLC), featurizer_taps_CF, taps_GK, skip_D, *pasts)
        return y_BLD, last_rows(z_BLC, z_past), past_after
    past = _or_zeros(past_BPD, z_BLC, expected)
    return gated(
        lambda u_BLD: reference.causal_fir(u_BLD, taps_GK, past),
        z_BLC,
        featurizer_taps_CF,
        skip_D,
        z_past,
    )


def hyena_fir_step(
    z_B1C: Tensor,
    featurizer_taps_CF: Tensor,
    taps_GK: Tensor,
    skip_D: Tensor | None,
    featurizer_ring_BFC: Tensor,
    ring_BKD: Tensor,
    lengths_B: Tensor,
) -> Tensor:
    """`hyena_fir` of a new row of each sequence; without gradients.

    Args:
        z_B1C: The projections of the rows.
        featurizer_taps_CF: One filter for each of the 3D channels.
        taps_GK: One filter for D / G neighbouring channels.
        skip_D: None for no skip.
        featurizer_ring_BFC: Rows before, as `rings` keeps them; the new ones are put there.
        ring_BKD: Rows of u; as well.
        lengths_B: The positions of the rows, int64.

    Returns:
        y [B, 1, D] in the dtype of `z`.

    Raises:
        ValueError: Shapes do not fit each other.
    """
    rings.check("hyena_fir_step", z_B1C, featurizer_taps_CF, featurizer_ring_BFC)
    rings.check("hyena_fir_step", z_B1C[:, :, : z_B1C.shape[2] // 3], taps_GK, ring_BKD)
    if kernels_take(z_B1C, featurizer_taps_CF.shape[1], num_taps=taps_GK.shape[1]) and packed(
        skip_D, featurizer_ring_BFC, ring_BKD, lengths_B
    ):
        from hyenakernels.fir.step import step

        taps = featurizer_taps_CF.contiguous(), taps_GK.contiguous()
        with torch.cuda.device_of(z_B1C):
            y_B1D: Tensor = step(
                rows(z_B1C), *taps, skip_D, featurizer_ring_BFC, ring_BKD, lengths_B
            )
        return y_B1D
    pasts = rings.past_of(featurizer_ring_BFC, lengths_B), rings.past_of(ring_BKD, lengths_B)
    y_B1D, _, past_BPD = hyena_fir(z_B1C, featurizer_taps_CF, taps_GK, skip_D, *pasts)
    rings.put(featurizer_ring_BFC, lengths_B, z_B1C[:, 0])
    if past_BPD.shape[1]:
        rings.put(ring_BKD, lengths_B, past_BPD[:, -1])
    return y_B1D


def _past_shape(
    op: str, x: Tensor, width: int, taps_GK: Tensor, past: Tensor | None
) -> tuple[int, int, int]:
    """The shape of the past; raises if taps or past do not fit."""
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


def _or_zeros(past: Tensor | None, x: Tensor, shape: tuple[int, int, int]) -> Tensor:
    return x.new_zeros(shape) if past is None else past


@torch.library.custom_op("hyenakernels::fir", mutates_args=())
def fused(
    z_BLC: Tensor,
    featurizer_taps_CF: Tensor,
    taps_GK: Tensor,
    skip_D: Tensor | None,
    z_past_BFC: Tensor | None,
    past_BPD: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """`hyena_fir` by the kernels; both pasts or neither. Returns y and the inner past."""
    from hyenakernels.fir import kernel

    inputs = (featurizer_taps_CF.contiguous(), taps_GK.contiguous(), skip_D, z_past_BFC, past_BPD)
    with torch.cuda.device_of(z_BLC):
        y_BLD, past_after = kernel.forward(z_BLC, *inputs)
    return y_BLD, past_after


@fused.register_fake
def _(
    z_BLC: Tensor,
    featurizer_taps_CF: Tensor,  # noqa: ARG001 - the fake has the op's signature
    taps_GK: Tensor,
    skip_D: Tensor | None,  # noqa: ARG001
    z_past_BFC: Tensor | None,  # noqa: ARG001
    past_BPD: Tensor | None,  # noqa: ARG001
) -> tuple[Tensor, Tensor]:
    batch, length, channels = z_BLC.shape
    width = channels // 3
    y_BLD = z_BLC.new_empty(batch, length, width)
    return y_BLD, z_BLC.new_empty(batch, taps_GK.shape[1] - 1, width)


@torch.library.custom_op("hyenakernels::fir_gradient", mutates_args=())
def fused_gradient(
    z_BLC: Tensor,
    featurizer_taps_CF: Tensor,
    taps_GK: Tensor,
    skip_D: Tensor | None,
    z_past_BFC: Tensor | None,
    past_BPD: Tensor | None,
    dy_BLD: Tensor,
    dpast_after_BPD: Tensor | None,
) -> list[Tensor]:
    """Gradients of the inputs of `fused`, in their order; without meaning where there is none."""
    from hyenakernels.fir import adjoint, gradient

    featurizer_taps_CF = featurizer_taps_CF.contiguous()
    dy_BLD = dy_BLD.contiguous()
    inputs = (z_BLC, featurizer_taps_CF, taps_GK.contiguous(), skip_D, z_past_BFC, past_BPD)
    if dpast_after_BPD is not None:
        dpast_after_BPD = dpast_after_BPD.contiguous()
    with torch.cuda.device_of(z_BLC):
        dx2_BLD, dtaps_GK, dskip_D = gradient.filter_gradient(*inputs, dy_BLD)
        dz_BLC, dfeaturizer, dz_past, dpast_BPD = adjoint.input_gradient(
            *inputs, dy_BLD, dpast_after_BPD, dx2_BLD
        )
    dskip_D = dskip_D if skip_D is None else dskip_D.to(skip_D.dtype)
    return [
        dz_BLC,
        dfeaturizer.to(featurizer_taps_CF.dtype),
        dtaps_GK.to(taps_GK.dtype, copy=True),
        dskip_D,
        dz_past,
        dpast_BPD,
    ]


@fused_gradient.register_fake
def _(
    z_BLC: Tensor,
    featurizer_taps_CF: Tensor,
    taps_GK: Tensor,
    skip_D: Tensor | None,
    z_past_BFC: Tensor | None,
    past_BPD: Tensor | None,
    dy_BLD: Tensor,  # noqa: ARG001
    dpast_after_BPD: Tensor | None,  # noqa: ARG001
) -> list[Tensor]:
    inputs = (z_BLC, featurizer_taps_CF, taps_GK, skip_D, z_past_BFC, past_BPD)
    return [
        z_BLC.new_empty(0)
        if tensor is None
        else torch.empty_like(tensor, memory_format=torch.contiguous_format)
        for tensor in inputs
    ]


def _keep(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]  # noqa: ARG001
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs)


def _backward(ctx, dy_BLD, dpast_after_BPD):  # type: ignore[no-untyped-def]
    inputs = ctx.saved_tensors
    if dy_BLD is None:
        z_BLC = inputs[0]
        dy_BLD = z_BLC.new_zeros(*z_BLC.shape[:2], z_BLC.shape[2] // 3)
    gradients = fused_gradient(*inputs, dy_BLD, dpast_after_BPD)
    return tuple(
        None if tensor is None else gradient
        for tensor, gradient in zip(inputs, gradients, strict=True)
    )


fused.register_autograd(_backward, setup_context=_keep)
