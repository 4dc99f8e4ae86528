"""Operators with a gradient of their own, as autograd and torch.compile take them.

A custom operator cannot return None in a list of tensors, so the gradient of an input that is None
is an empty tensor until autograd gets it.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor


class Fused:
    """An operator with a gradient, from functions that run kernels.

    Autograd calls them directly. torch.compile, and tensors that only stand for others, get the
    same functions as custom operators, whose dispatch costs Python half as much again.

    Attributes:
        traced: The custom operator.
        traced_gradient: The custom operator of its gradient.
    """

    def __init__(
        self,
        name: str,
        forward: Callable[..., Any],
        gradient: Callable[..., Any],
        *,
        fakes: tuple[Callable[..., Any], Callable[..., Any]],
        save: Callable[..., None],
        backward: Callable[..., Any],
    ) -> None:
        """Register both.

        Args:
            name: Name of the custom operator; its gradient gets "_gradient" appended.
            forward: Takes plain tensors, or None, and plain values, with annotations.
            gradient: Likewise, for the backward pass.
            fakes: Both without contents, as `register_fake` takes them.
            save: Fills an autograd context, from it and the inputs and outputs of `forward`.
            backward: The gradients of the inputs: from `gradient` or its custom operator, the
                context, and the gradients of the outputs, None where there is none.
        """
        self.traced = torch.library.custom_op(f"hyenakernels::{name}", forward, mutates_args=())
        self.traced_gradient = torch.library.custom_op(
            f"hyenakernels::{name}_gradient", gradient, mutates_args=()
        )
        self.traced.register_fake(fakes[0])
        self.traced_gradient.register_fake(fakes[1])

        def keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
            ctx.set_materialize_grads(False)
            save(ctx, inputs, output)

        self.traced.register_autograd(partial(backward, self.traced_gradient), setup_context=keep)

        traced_gradient = self.traced_gradient

        class Direct(torch.autograd.Function):
            """The same without the dispatcher; torch.compile cannot look into it."""

            @staticmethod
            def forward(ctx: Any, *inputs: Any) -> Any:
                output = forward(*inputs)
                keep(ctx, inputs, output)
                return output

            @staticmethod
            def backward(ctx: Any, *gradients: Tensor | None) -> Any:
                # With create_graph: a custom operator refuses a second derivative, when wanted.
                run = traced_gradient if torch.is_grad_enabled() else gradient
                return backward(run, ctx, *gradients)

        self._direct: Callable[..., Any] = Direct.apply

    def __call__(self, x: Tensor, *inputs: Any) -> Any:
        """What `forward` returns, with a graph if a gradient is wanted."""
        return self.traced(x, *inputs) if is_traced(x) else self._direct(x, *inputs)


def is_traced(x: Tensor) -> bool:
    """Whether kernels must be hidden in a custom operator: `x` has no memory, or is recorded."""
    return torch.compiler.is_compiling() or type(x) not in (Tensor, torch.nn.Parameter)


def fake_gradients(inputs: Sequence[Tensor | None], like: Tensor) -> list[Tensor]:
    """Contiguous tensors in the shapes of the inputs, empty ones where an input is None."""
    return [
        like.new_empty(0)
        if tensor is None
        else torch.empty_like(tensor, memory_format=torch.contiguous_format)
        for tensor in inputs
    ]


def given_gradients(ctx: Any, gradients: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
    """The gradients as autograd takes them: None where no gradient is wanted."""
    return tuple(
        gradient if wanted else None
        for wanted, gradient in zip(ctx.needs_input_grad, gradients, strict=True)
    )
