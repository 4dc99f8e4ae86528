"""The public face of the modal convolution."""

from torch import Tensor

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
    batch, _, channels = u_BLD.shape
    if log_poles_DS.shape != residues_DS.shape or log_poles_DS.shape[0] != channels:
        raise ValueError(
            f"modal_conv: u {tuple(u_BLD.shape)} needs poles and residues of {channels} channels, "
            f"got {tuple(log_poles_DS.shape)} and {tuple(residues_DS.shape)}"
        )
    expected = (batch, *log_poles_DS.shape)
    if state_BDS is None:
        state_BDS = u_BLD.new_zeros(expected, dtype=accumulation_dtype(u_BLD))
    elif state_BDS.shape != expected:
        raise ValueError(f"modal_conv: the state is {tuple(state_BDS.shape)}, needed {expected}")
    return reference.modal_conv(u_BLD, log_poles_DS, residues_DS, state_BDS)
