"""The public functions of the norms: RMS norm, and residual addition with RMS norm."""

import torch
from torch import Tensor

from hyenakernels.dispatch import kernels_support
from hyenakernels.gradients import Fused
from hyenakernels.norm import reference


def rms_norm(x_BLD: Tensor, scale_D: Tensor, eps: float) -> Tensor:
    """Compute scale * x / (rms(x) + eps) of each row; see `norm.reference.rms_norm`.

    Args:
        x_BLD: The rows.
        scale_D: A factor for each channel.
        eps: Added to the RMS, outside the square root.

    Returns:
        The normalized rows in the dtype of `x`. Under autocast the kernel writes them in the dtype
        of autocast's matrix products; the reference leaves the cast to the product.

    Raises:
        ValueError: The shapes do not match.
    """
    _check("rms_norm", x_BLD, scale_D)
    if kernels_support(x_BLD, width=x_BLD.shape[2]):
        normed_BLD: Tensor = fused(x_BLD, None, scale_D, eps, _matmul_dtype(x_BLD))[0]
        return normed_BLD
    return reference.rms_norm(x_BLD, scale_D, eps)


def add_rms_norm(
    x_BLD: Tensor, y_BLD: Tensor, scale_D: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """rms_norm(x + y) and x + y, as a block needs them between its mixer and its MLP.

    Args:
        x_BLD: The residual stream.
        y_BLD: The output of a mixer, which is added to it.
        scale_D: A factor for each channel.
        eps: Added to the RMS, outside the square root.

    Returns:
        rms_norm(x + y), in the dtype that `rms_norm` returns; and x + y, in the dtype of `x` unless
        `y` is wider.

    Raises:
        ValueError: The shapes do not match.
    """
    _check("add_rms_norm", x_BLD, scale_D)
    if y_BLD.shape != x_BLD.shape:
        raise ValueError(f"add_rms_norm: x is {tuple(x_BLD.shape)}, but y is {tuple(y_BLD.shape)}")
    if torch.promote_types(x_BLD.dtype, y_BLD.dtype) != x_BLD.dtype:
        total_BLD = x_BLD + y_BLD
        return rms_norm(total_BLD, scale_D, eps), total_BLD
    if kernels_support(x_BLD, width=x_BLD.shape[2]):
        normed_BLD, total_BLD, _ = fused(x_BLD, y_BLD, scale_D, eps, _matmul_dtype(x_BLD))
        return normed_BLD, total_BLD
    return reference.add_rms_norm(x_BLD, y_BLD, scale_D, eps)


def _check(op: str, x_BLD: Tensor, scale_D: Tensor) -> None:
    if scale_D.shape != x_BLD.shape[2:]:
        raise ValueError(
            f"{op}: x {tuple(x_BLD.shape)} needs a scale of {x_BLD.shape[-1]} channels, "
            f"got {tuple(scale_D.shape)}"
        )


def _matmul_dtype(x: Tensor) -> torch.dtype:
    """The dtype to which autocast casts `x` for a matrix product; that of `x` without autocast."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def _forward(
    x_BLD: Tensor, y_BLD: Tensor | None, scale_D: Tensor, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """By the kernel: normalized rows in `dtype`, the sum (empty without y), the RMS of each row."""
    from hyenakernels.norm import kernel

    with torch.cuda.device_of(x_BLD):
        normed_BLD, total_BLD, rms_BL = kernel.forward(x_BLD, y_BLD, scale_D, eps, dtype)
    return normed_BLD, total_BLD, rms_BL


def _fake(
    x_BLD: Tensor,
    y_BLD: Tensor | None,
    scale_D: Tensor,  # noqa: ARG001 - the fake has the operator's signature
    eps: float,  # noqa: ARG001
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    total_BLD = x_BLD.new_empty(0 if y_BLD is None else x_BLD.shape)
    rms_BL = x_BLD.new_empty(x_BLD.shape[:-1], dtype=torch.float32)
    return x_BLD.new_empty(x_BLD.shape, dtype=dtype), total_BLD, rms_BL


def _gradient(
    x_BLD: Tensor,
    scale_D: Tensor,
    rms_BL: Tensor,
    dnormed_BLD: Tensor,
    dtotal_BLD: Tensor | None,
    eps: float,
    dy_dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the sum x, of y if its dtype differs (else empty), and of the scale."""
    from hyenakernels.norm import gradient

    with torch.cuda.device_of(x_BLD):
        dx_BLD, dy_BLD, dscale_D = gradient.gradients(
            x_BLD, scale_D, rms_BL, dnormed_BLD, dtotal_BLD, eps, dy_dtype
        )
    return dx_BLD, dy_BLD, dscale_D.to(scale_D.dtype)


def _fake_gradient(
    x_BLD: Tensor,
    scale_D: Tensor,
    rms_BL: Tensor,  # noqa: ARG001
    dnormed_BLD: Tensor,  # noqa: ARG001
    dtotal_BLD: Tensor | None,  # noqa: ARG001
    eps: float,  # noqa: ARG001
    dy_dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor, Tensor]:
    shape = 0 if dy_dtype is None else x_BLD.shape
    dscale_D = scale_D.new_empty(scale_D.shape)
    return x_BLD.new_empty(x_BLD.shape), x_BLD.new_empty(shape, dtype=dy_dtype), dscale_D


def _save(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    x_BLD, y_BLD, scale_D, eps, _ = inputs
    _, total_BLD, rms_BL = output
    ctx.save_for_backward(x_BLD if y_BLD is None else total_BLD, scale_D, rms_BL)
    ctx.eps, ctx.y_dtype = eps, None if y_BLD is None else y_BLD.dtype


def _backward(gradient, ctx, dnormed_BLD, dtotal_BLD, _):  # type: ignore[no-untyped-def]
    x_BLD, scale_D, rms_BL = ctx.saved_tensors
    if dnormed_BLD is None:
        dnormed_BLD = x_BLD.new_zeros(x_BLD.shape)
    has_y, is_same = ctx.y_dtype is not None, ctx.y_dtype == x_BLD.dtype
    dx_BLD, dy_BLD, dscale_D = gradient(
        x_BLD,
        scale_D,
        rms_BL,
        dnormed_BLD,
        dtotal_BLD if has_y else None,
        ctx.eps,
        None if is_same else ctx.y_dtype,
    )
    dy_BLD = dx_BLD if is_same else dy_BLD if has_y else None
    return dx_BLD, dy_BLD, dscale_D, None, None


fused = Fused(
    "norm",
    _forward,
    _gradient,
    fakes=(_fake, _fake_gradient),
    save=_save,
    backward=_backward,
)
