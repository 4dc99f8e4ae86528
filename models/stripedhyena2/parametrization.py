"""Reparametrization of the filters of a model for training; checkpoints hold the folded form.

Poles train as the logarithm of their decay rate, which keeps every mode decaying. MR taps train
under the decay window that Savanna multiplies at every step, which regularizes distant taps.
`Mixer.training_forms` defines which parameters of an operator are reparametrized, and how.

Released weights have only the folded form (the one for inference). Unfolding them restores the
values, but not the state of the optimizer that trained them.

D channels, S modes, G filter groups, K taps.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from stripedhyena2.mixer import Mixer, folded_name


class DecayingPoles(nn.Module):
    """log_poles = -exp(start + shift), which is negative whatever the optimizer does.

    The shift starts at 0, so it is exact even if a training engine keeps parameters in bf16. A log
    pole of exactly 0 stays there: its start is -inf and its gradient 0.
    """

    start_DS: Tensor

    def __init__(self, log_poles_DS: Tensor) -> None:
        super().__init__()
        self.register_buffer("start_DS", torch.log(-log_poles_DS.detach().float()))

    def forward(self, shift_DS: Tensor) -> Tensor:
        """Fold."""
        return -torch.exp(self.start_DS + shift_DS)

    def right_inverse(self, log_poles_DS: Tensor) -> Tensor:
        """Unfold log poles that are not positive."""
        log_rates_DS = torch.log(-log_poles_DS)
        # For a log pole of 0 both are -inf, and their difference would be NaN.
        return (log_rates_DS - self.start_DS).masked_fill(log_rates_DS == self.start_DS, 0)


class PublishedPoles(nn.Module):
    """log_poles = -exp(p) exp(g): two factors for one decay rate, as Savanna trained Evo 2.

    Attributes:
        parts: The names of the factors in `Checkpoint.training_form`.
    """

    parts = ("p", "gamma")

    def forward(self, p_DS: Tensor, g_DS: Tensor) -> Tensor:
        """Fold."""
        return -torch.exp(p_DS.float()) * torch.exp(g_DS.float())

    def right_inverse(self, log_poles_DS: Tensor) -> tuple[Tensor, Tensor]:
        """Unfold with p = -1, the initial value in Savanna."""
        p_DS = torch.full_like(log_poles_DS, -1)
        return p_DS, torch.log(-log_poles_DS) - p_DS


MIN_WINDOW = 1e-6  # the window must not underflow to 0, where taps could not be unfolded


class DecayWindow(nn.Module):
    """taps = free taps * exp(-rate_g * n / (context - 1)), with rates log-spaced in [0.01, 100].

    A context of 1, in which only tap 0 has a sample, has the window of a context of 2.
    """

    window_GK: Tensor

    def __init__(self, num_groups: int, num_taps: int, context: int) -> None:
        super().__init__()
        rate_G1 = torch.logspace(-2, 2, num_groups)[:, None]
        window_GK = torch.exp(-rate_G1 * torch.arange(num_taps) / max(context - 1, 1))
        self.register_buffer("window_GK", window_GK.clamp_min(MIN_WINDOW))

    def forward(self, free_taps_GK: Tensor) -> Tensor:
        """Fold."""
        return free_taps_GK * self.window_GK

    def right_inverse(self, taps_GK: Tensor) -> Tensor:
        """Unfold."""
        return taps_GK / self.window_GK


def trainable(module: nn.Module, context: int, *, published: bool = False) -> None:
    """Reparametrize the filters of a model, or of a part of one, for stable training.

    The values of the filters do not change.

    Args:
        module: A module that contains mixers.
        context: The context length that the decay window of MR spans: that of the first training,
            even if the context was extended since.
        published: Use the redundant parametrization of poles of the published training runs.
    """
    for mixer in [*module.modules()]:
        if isinstance(mixer, Mixer):
            for name, form in mixer.training_forms(context, published=published).items():
                path, _, last = name.rpartition(".")
                parametrize.register_parametrization(mixer.get_submodule(path), last, form)


@torch.no_grad()
def restore_form(module: nn.Module, path: str, weights: Mapping[str, Tensor]) -> None:
    """Restore the factors that parametrized weights had in an earlier training, if stored.

    Args:
        module: A part of a model, in training form.
        path: Path of that part in the model.
        weights: Factors by the name of the weight in the model and of the factor, e.g.
            "blocks.2.mixer.operator.log_poles_DS.gamma".
    """
    for owner_path, owner in module.named_modules():
        forms_of: Any = getattr(owner, "parametrizations", {})
        for weight, forms in forms_of.items():
            parts = getattr(forms[0], "parts", ())
            stored = [f"{path}.{owner_path}.{weight}.{part}" for part in parts]
            if stored and all(name in weights for name in stored):
                for number, name in enumerate(stored):
                    getattr(forms, f"original{number}").copy_(weights[name])


@torch.no_grad()
def folded_state(
    model: nn.Module, parameters: Iterable[tuple[str, Tensor]] | None = None
) -> dict[str, Tensor]:
    """The weights of a model by name, in the folded form for inference.

    Args:
        model: A model in either form.
        parameters: Values to use instead of its own parameters, by their names in training form.
    """
    state: dict[str, Tensor] = {}
    originals: dict[str, list[Tensor]] = {}
    named = model.named_parameters() if parameters is None else parameters
    for name, tensor in named:
        folded = folded_name(name)
        if folded == name:
            state[name] = tensor.detach()
        else:
            originals.setdefault(folded, []).append(tensor.detach())
    for name, values in originals.items():
        path, _, last = name.rpartition(".")
        forms: Any = model.get_submodule(f"{path}.parametrizations.{last}")
        form = forms[0]
        on_device = [value.to(_device(form, value)) for value in values]
        # Not called as a module: hooks of a training engine would treat that as a forward pass.
        state[name] = form.forward(*on_device).to(values[0].device)
    for name, buffer in model.named_buffers():
        if ".parametrizations." not in name:
            state[name] = buffer
    return state


def _device(form: nn.Module, value: Tensor) -> torch.device:
    """The device that a parametrization computes on: that of its buffers, if it has any."""
    return next((buffer.device for buffer in form.buffers()), value.device)
