"""The gradients of a fused operator: one for each of its inputs, where None stands for no input.

A custom operator cannot return None in a list of tensors, so it returns an empty tensor there.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def fake_gradients(inputs: Sequence[Tensor | None], like: Tensor) -> list[Tensor]:
    """Contiguous tensors in the shapes of the inputs, empty ones where an input is None."""
    return [
        like.new_empty(0)
        if tensor is None
        else torch.empty_like(tensor, memory_format=torch.contiguous_format)
        for tensor in inputs
    ]


def given_gradients(
    inputs: Sequence[Tensor | None], gradients: Sequence[Tensor]
) -> tuple[Tensor | None, ...]:
    """The gradients as autograd takes them: None where an input is None."""
    return tuple(
        None if tensor is None else gradient
        for tensor, gradient in zip(inputs, gradients, strict=True)
    )
