"""The form in which filters train, put on a model from outside; checkpoints hold the folded form.

Poles train as log(-log_poles), which keeps every mode decaying (Savanna's exp-exp form with its two
redundant factors in one). MR taps train under the decay window that Savanna multiplies at every
step, so that far taps are regularized.
"""

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from stripedhyena2.model import StripedHyena2
from stripedhyena2.operators import HyenaLI, HyenaMR


class DecayingPoles(nn.Module):
    """log_poles = -exp(log_rate): negative whatever the optimizer does."""

    def forward(self, log_rate_DS: Tensor) -> Tensor:
        """Fold."""
        return -torch.exp(log_rate_DS)

    def right_inverse(self, log_poles_DS: Tensor) -> Tensor:
        """Unfold poles that are negative."""
        return torch.log(-log_poles_DS)


SMALLEST_WINDOW = 1e-6  # short contexts would underflow, and taps under a zero could not be found


class DecayWindow(nn.Module):
    """taps = free taps * exp(-rate_g * n / (context - 1)), rates log-spaced in [0.01, 100]."""

    window_GK: Tensor

    def __init__(self, num_groups: int, num_taps: int, context: int) -> None:
        super().__init__()
        rate_G1 = torch.logspace(-2, 2, num_groups)[:, None]
        window_GK = torch.exp(-rate_G1 * torch.arange(num_taps) / (context - 1))
        self.register_buffer("window_GK", window_GK.clamp_min(SMALLEST_WINDOW))

    def forward(self, free_taps_GK: Tensor) -> Tensor:
        """Fold."""
        return free_taps_GK * self.window_GK

    def right_inverse(self, taps_GK: Tensor) -> Tensor:
        """Unfold."""
        return taps_GK / self.window_GK


def trainable(model: StripedHyena2) -> None:
    """Let the filters of `model` train in a form that stays stable. Values do not change."""
    for module in model.modules():
        if isinstance(module, HyenaLI):
            parametrize.register_parametrization(module, "log_poles_DS", DecayingPoles())
        elif isinstance(module, HyenaMR):
            groups, taps = module.taps_GK.shape
            window = DecayWindow(groups, taps, model.config.context).to(module.taps_GK.device)
            parametrize.register_parametrization(module, "taps_GK", window)


def folded_state(model: StripedHyena2) -> dict[str, Tensor]:
    """The weights under the names and values of inference, whatever form they train in."""
    state = {}
    for name, tensor in model.state_dict().items():
        path, marker, rest = name.partition(".parametrizations.")
        if not marker:
            state[name] = tensor
        elif rest.endswith(".original"):
            last = rest.removesuffix(".original")
            state[f"{path}.{last}"] = getattr(model.get_submodule(path), last).detach()
    return state
