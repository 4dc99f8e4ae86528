"""The form in which filters train, put on a model from outside; checkpoints hold the folded form.

Poles train as the logarithm of their rate, which keeps every mode decaying. MR taps train under the
decay window that Savanna multiplies at every step, so that far taps are regularized.

The way back from released weights, which hold the folded form alone, is not the state they were
trained in: the values are the same, but what an optimizer sees of them is chosen here.

D channels, S modes, G filter groups, K taps.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from stripedhyena2.model import StripedHyena2
from stripedhyena2.operators import HyenaLI, HyenaMR


class DecayingPoles(nn.Module):
    """log_poles = -exp(start + shift): negative whatever the optimizer does.

    The shift begins at 0, so that it stays exact where a training engine keeps parameters in bf16.
    """

    start_DS: Tensor

    def __init__(self, log_poles_DS: Tensor) -> None:
        super().__init__()
        self.register_buffer("start_DS", torch.log(-log_poles_DS.detach().float()))

    def forward(self, shift_DS: Tensor) -> Tensor:
        """Fold."""
        return -torch.exp(self.start_DS + shift_DS)

    def right_inverse(self, log_poles_DS: Tensor) -> Tensor:
        """Unfold poles that are negative."""
        return torch.log(-log_poles_DS) - self.start_DS


class PublishedPoles(nn.Module):
    """log_poles = -exp(p) exp(g): two factors for one rate, as Savanna trained Evo 2."""

    def forward(self, p_DS: Tensor, g_DS: Tensor) -> Tensor:
        """Fold."""
        return -torch.exp(p_DS.float()) * torch.exp(g_DS.float())

    def right_inverse(self, log_poles_DS: Tensor) -> tuple[Tensor, Tensor]:
        """Unfold with p = -1, where Savanna starts."""
        p_DS = torch.full_like(log_poles_DS, -1)
        return p_DS, torch.log(-log_poles_DS) - p_DS


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


def trainable(module: nn.Module, context: int, *, published: bool = False) -> None:
    """Let the filters of a model, or of a part of one, train in a form that stays stable.

    Values do not change.

    Args:
        module: Holds operators.
        context: Positions that the decay window of MR spans: those of the first training, whatever
            the context was extended to.
        published: Poles in the redundant form of the published training runs.
    """
    for operator in [*module.modules()]:
        if isinstance(operator, HyenaLI):
            poles = PublishedPoles() if published else DecayingPoles(operator.log_poles_DS)
            parametrize.register_parametrization(operator, "log_poles_DS", poles)
        elif isinstance(operator, HyenaMR):
            groups, taps = operator.taps_GK.shape
            window = DecayWindow(groups, taps, context).to(operator.taps_GK.device)
            parametrize.register_parametrization(operator, "taps_GK", window)


@torch.no_grad()
def folded_state(
    model: StripedHyena2, parameters: Iterable[tuple[str, Tensor]] | None = None
) -> dict[str, Tensor]:
    """The weights under the names and values of inference, whatever form they train in.

    Args:
        model: In either form.
        parameters: Other values of its parameters, by the names they train under.
    """
    state: dict[str, Tensor] = {}
    originals: dict[tuple[str, str], list[Tensor]] = {}
    named = model.named_parameters() if parameters is None else parameters
    for name, tensor in named:
        path, marker, rest = name.partition(".parametrizations.")
        if marker:
            originals.setdefault((path, rest.split(".")[0]), []).append(tensor.detach())
        else:
            state[name] = tensor.detach()
    for (path, last), values in originals.items():
        forms: Any = model.get_submodule(f"{path}.parametrizations.{last}")
        form = forms[0]
        on_device = [value.to(_device(form, value)) for value in values]
        # Not called as a module: hooks of a training engine would take that for a forward pass.
        state[f"{path}.{last}"] = form.forward(*on_device).to(values[0].device)
    for name, buffer in model.named_buffers():
        if ".parametrizations." not in name:
            state[name] = buffer
    return state


def _device(form: nn.Module, value: Tensor) -> torch.device:
    """Where a parametrization computes: where its buffers lie, if it has any."""
    return next((buffer.device for buffer in form.buffers()), value.device)
