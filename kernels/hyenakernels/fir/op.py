"""The public face of the causal FIR."""

from torch import Tensor

from hyenakernels.fir import reference


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
    batch, _, channels = x_BLD.shape
    groups, num_taps = taps_GK.shape
    if channels % groups:
        raise ValueError(
            f"causal_fir: {groups} filter groups do not divide {channels} channels "
            f"(x is {tuple(x_BLD.shape)}, taps are {tuple(taps_GK.shape)})"
        )
    expected = (batch, num_taps - 1, channels)
    if past_BPD is None:
        past_BPD = x_BLD.new_zeros(expected)
    elif past_BPD.shape != expected:
        raise ValueError(
            f"causal_fir: the past is {tuple(past_BPD.shape)}, but {num_taps} taps over "
            f"x {tuple(x_BLD.shape)} need {expected}"
        )
    return reference.causal_fir(x_BLD, taps_GK, past_BPD)
