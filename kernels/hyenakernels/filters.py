"""The parameters of a Hyena operator and its past, as one record each.

`hyena_fir`, `hyena_modal`, their steps and all their parallel forms take these records. They are
unpacked where PyTorch needs plain tensors: in custom operators and autograd functions.

B batch, D channels, C = 3D channels [x2 | x1 | v], F featurizer taps, G filter groups, K taps,
S modes, P past samples.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class FIRFilters(NamedTuple):
    """The filters of Hyena-SE and Hyena-MR.

    Attributes:
        featurizer_taps_CF: One filter for each of the 3D channels, tap 0 for the newest sample.
        taps_GK: One filter per group of D / G neighbouring channels, tap 0 for the newest sample.
        skip_D: Weight per channel of the skip connection, conv(u) + skip * u; None for no skip.
    """

    featurizer_taps_CF: Tensor
    taps_GK: Tensor
    skip_D: Tensor | None = None

    def contiguous(self) -> "FIRFilters":
        """The same filters as contiguous tensors, as the kernels need them."""
        featurizer_taps_CF, taps_GK, skip_D = self
        return FIRFilters(
            featurizer_taps_CF.contiguous(),
            taps_GK.contiguous(),
            None if skip_D is None else skip_D.contiguous(),
        )

    def launch_arguments(self) -> tuple[Tensor, Tensor, Tensor]:
        """The tensors in the order of the kernels' arguments; the taps, not read, for no skip."""
        return (*self[:2], self.taps_GK if self.skip_D is None else self.skip_D)

    def of_channels(self, start: int, end: int) -> "FIRFilters":
        """The filters of the channels [start, end), which must be whole filter groups."""
        featurizer_taps_CF, taps_GK, skip_D = self
        group_size = featurizer_taps_CF.shape[0] // 3 // taps_GK.shape[0]
        return FIRFilters(
            _featurizer_of_channels(featurizer_taps_CF, start, end),
            taps_GK[start // group_size : end // group_size],
            None if skip_D is None else skip_D[start:end],
        )


class ModalFilters(NamedTuple):
    """The filters of Hyena-LI.

    Attributes:
        featurizer_taps_CF: One filter for each of the 3D channels, tap 0 for the newest sample.
        log_poles_DS: Logarithms of the poles, real; negative for a decaying filter.
        residues_DS: The weight of each mode.
        skip_D: Weight per channel of the skip connection, conv(u) + skip * u; None for no skip.
    """

    featurizer_taps_CF: Tensor
    log_poles_DS: Tensor
    residues_DS: Tensor
    skip_D: Tensor | None = None

    def contiguous(self) -> "ModalFilters":
        """The same filters as contiguous tensors, as the kernels need them."""
        featurizer_taps_CF, log_poles_DS, residues_DS, skip_D = self
        return ModalFilters(
            featurizer_taps_CF.contiguous(),
            log_poles_DS.contiguous(),
            residues_DS.contiguous(),
            None if skip_D is None else skip_D.contiguous(),
        )

    def launch_arguments(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The tensors in the order of the kernels' arguments; the poles, not read, for no skip."""
        return (*self[:3], self.log_poles_DS if self.skip_D is None else self.skip_D)

    def of_channels(self, start: int, end: int) -> "ModalFilters":
        """The filters of the channels [start, end)."""
        featurizer_taps_CF, log_poles_DS, residues_DS, skip_D = self
        return ModalFilters(
            _featurizer_of_channels(featurizer_taps_CF, start, end),
            log_poles_DS[start:end],
            residues_DS[start:end],
            None if skip_D is None else skip_D[start:end],
        )


@dataclass(frozen=True)
class HyenaPast:
    """The state of a Hyena operator: all that later outputs depend on from earlier samples.

    Attributes:
        featurizer_BPC: The last F - 1 rows of the projections.
        inner: The past of the inner convolution: the last K - 1 rows of u, [B, P, D], or the modal
            state after the last row, [B, D, S].
    """

    featurizer_BPC: Tensor
    inner: Tensor


def _featurizer_of_channels(featurizer_taps_CF: Tensor, start: int, end: int) -> Tensor:
    """The taps of the channels [start, end) in each of the three parts x2, x1 and v."""
    return torch.unflatten(featurizer_taps_CF, 0, (3, -1))[:, start:end].flatten(0, 1)
