"""What featurizer and gates are, in plain PyTorch: any float dtype, differentiable.

B batch, L length, D channels, C = 3D channels [x2 | x1 | v], F featurizer taps.
"""

from collections.abc import Callable

from torch import Tensor

from hyenakernels.fir.reference import causal_fir


def gated(
    convolve: Callable[[Tensor], tuple[Tensor, Tensor]],
    z_BLC: Tensor,
    featurizer_taps_CF: Tensor,
    skip_D: Tensor | None,
    z_past_BFC: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute y = x2 * (convolve(u) + skip * u), u = x1 * v, all after the featurizer FIR.

    Args:
        convolve: The inner convolution: u to its output and its past for what follows.
        z_BLC: The projections.
        featurizer_taps_CF: One filter a channel, tap 0 for the newest sample.
        skip_D: None for no skip.
        z_past_BFC: The F - 1 rows before `z`.

    Returns:
        y [B, L, D] in the dtype of `z`, and the pasts of what follows: of `z`, and of `convolve`.

    Source: arXiv:2503.01868, section 2.
    """
    features_BLC, following_BFC = causal_fir(z_BLC, featurizer_taps_CF, z_past_BFC)
    x2_BLD, x1_BLD, v_BLD = features_BLC.chunk(3, dim=2)
    u_BLD = x1_BLD * v_BLD
    y_BLD, past = convolve(u_BLD)
    if skip_D is not None:
        y_BLD = y_BLD + skip_D.to(u_BLD.dtype) * u_BLD
    return x2_BLD * y_BLD, following_BFC, past
