"""Reference of featurizer and gates in plain PyTorch: any float dtype, differentiable.

B batch, L length, D channels, C = 3D channels [x2 | x1 | v], F featurizer taps, P = F - 1.
"""

from collections.abc import Callable

from torch import Tensor

from hyenakernels.filters import FIRFilters, HyenaPast, ModalFilters
from hyenakernels.fir.reference import causal_fir


def gated(
    convolve: Callable[[Tensor], tuple[Tensor, Tensor]],
    z_BLC: Tensor,
    filters: FIRFilters | ModalFilters,
    featurizer_past_BPC: Tensor,
) -> tuple[Tensor, HyenaPast]:
    """Compute y = x2 * (convolve(u) + skip * u), u = x1 * v, with [x2 | x1 | v] = featurizer(z).

    Args:
        convolve: The inner convolution: takes u, returns its output and its new past.
        z_BLC: The projections.
        filters: Only the taps of the featurizer and the skip are used.
        featurizer_past_BPC: The F - 1 rows before `z`.

    Returns:
        y [B, L, D] in the dtype of `z`, and the past for the samples that follow.

    Source: arXiv:2503.01868, section 2.
    """
    features_BLC, following_BPC = causal_fir(z_BLC, filters.featurizer_taps_CF, featurizer_past_BPC)
    x2_BLD, x1_BLD, v_BLD = features_BLC.chunk(3, dim=2)
    u_BLD = x1_BLD * v_BLD
    y_BLD, inner = convolve(u_BLD)
    if filters.skip_D is not None:
        y_BLD = y_BLD + filters.skip_D.to(u_BLD.dtype) * u_BLD
    return x2_BLD * y_BLD, HyenaPast(following_BPC, inner)
