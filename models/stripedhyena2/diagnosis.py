"""Finding the layer where NaN or infinity first appears."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


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

    def watch(name: str) -> Any:
        def hook(_module: nn.Module, _inputs: object, output: object) -> None:
            first = output[0] if isinstance(output, tuple) else output
            if not found and isinstance(first, Tensor) and not torch.isfinite(first).all():
                found.append(name)

        return hook

    hooks = [m.register_forward_hook(watch(name)) for name, m in model.named_modules() if name]
    try:
        if not torch.isfinite((forward or model)(ids_BL)).all() and not found:
            found.append("unembed")
    finally:
        for hook in hooks:
            hook.remove()
    return found[0] if found else None
