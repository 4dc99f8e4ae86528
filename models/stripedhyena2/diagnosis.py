"""Finding the layer where NaN or infinity first appears."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from stripedhyena2.layers import listening


@torch.no_grad()
def first_nonfinite_layer(
    model: nn.Module, ids_BL: Tensor, forward: Callable[[Tensor], Tensor] | None = None
) -> str | None:
    """The first module whose output is NaN or infinite, by name; None if there is none.

    Args:
        model: The model whose layers are checked.
        ids_BL: Token ids.
        forward: Runs the model, e.g. through a training engine; by default the model is called.
    """
    found: list[str] = []

    def watch(name: str, output: object) -> None:
        if not found and isinstance(output, Tensor) and not torch.isfinite(output).all():
            found.append(name)

    with listening((m, partial(watch, name)) for name, m in model.named_modules() if name):
        if not torch.isfinite((forward or model)(ids_BL)).all() and not found:
            found.append("unembed")
    return found[0] if found else None
