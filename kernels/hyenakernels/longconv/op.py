"""The public function of the long convolution."""

from torch import Tensor

from hyenakernels.longconv import chunked


def long_conv(
    u_BLD: Tensor, filter_GK: Tensor, past_BPD: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Convolution with an explicit long filter; defined by `longconv.reference.long_conv`.

    Args:
        u_BLD: The new samples.
        filter_GK: One filter per group, entry 0 for the newest sample.
        past_BPD: Any number of samples before `u`, oldest first; None for none.

    Returns:
        The filtered samples, and the past for the samples that follow.

    Raises:
        ValueError: The groups do not divide the channels, or the shape of the past does not match.
    """
    batch, _, channels = u_BLD.shape
    if channels % filter_GK.shape[0]:
        raise ValueError(
            f"long_conv: {filter_GK.shape[0]} filter groups do not divide {channels} channels "
            f"(u is {tuple(u_BLD.shape)}, the filter is {tuple(filter_GK.shape)})"
        )
    if past_BPD is None:
        past_BPD = u_BLD.new_zeros(batch, 0, channels)
    elif past_BPD.shape[0::2] != (batch, channels):
        raise ValueError(
            f"long_conv: the past {tuple(past_BPD.shape)} does not match u {tuple(u_BLD.shape)}"
        )
    return chunked.long_conv(u_BLD, filter_GK, past_BPD)
