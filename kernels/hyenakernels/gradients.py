"""Operators with hand-written gradients, registered with autograd and torch.compile.

A custom operator cannot return None in a list of tensors, so the gradient of an input that is None
is an empty tensor until it is handed to autograd.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor


class Fused:
    """A differentiable operator, from a forward and a backward function that launch kernels.

    In eager mode an autograd function calls them directly. torch.compile and tensor subclasses,
    such as fake tensors, get the same functions as custom operators, whose dispatch takes Python
    half as long again.

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
            name: Name of the custom operator; that of its gradient has "_gradient" appended.
            forward: The forward function; its annotated arguments are tensors, None and numbers.
            gradient: Likewise, the function that computes the gradients.
            fakes: The fake implementations of both, for `register_fake`.
            save: Called with the autograd context, inputs and outputs of `forward`; saves in the
                context what `backward` needs.
            backward: Called with `gradient` or its custom operator, the context, and the gradients
                of the outputs (None where there is none); returns the gradients of the inputs.
        """
        self.traced = torch.library.custom_op(f"hyenakernels::{name}", forward, mutates_args=())
        self.traced_gradient = torch.library.custom_op(
            f"hyenakernels::{name}_gradient", gradient, mutates_args=()
        )
        self.traced.register_fake(fakes[0])
        self.traced_gradient.register_fake(fakes[1])

        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
            ctx.set_materialize_grads(False)
            save(ctx, inputs, output)

        self.traced.register_autograd(
            partial(backward, self.traced_gradient), setup_context=setup_context
        )

        traced_gradient = self.traced_gradient

        class Direct(torch.autograd.Function):
            """The same without the dispatcher; torch.compile cannot trace through it."""

            @staticmethod
            def forward(ctx: Any, *inputs: Any) -> Any:
                output = forward(*inputs)
                setup_context(ctx, inputs, output)
                return output

            @staticmethod
            def backward(ctx: Any, *gradients: Tensor | None) -> Any:
                # With create_graph=True the custom operator runs: it raises an error only if a
                # second derivative is computed.
                run = traced_gradient if torch.is_grad_enabled() else gradient
                return backward(run, ctx, *gradients)

        self._direct: Callable[..., Any] = Direct.apply

    def __call__(self, x: Tensor, *inputs: Any) -> Any:
        """The result of `forward`, recorded by autograd where a gradient is required."""
        return self.traced(x, *inputs) if is_traced(x) else self._direct(x, *inputs)


def is_traced(x: Tensor) -> bool:
    """Whether kernels must run as custom operators: torch.compile traces, or `x` is a subclass."""
    return torch.compiler.is_compiling() or type(x) not in (Tensor, torch.nn.Parameter)


def fake_gradients(inputs: Sequence[Tensor | None], like: Tensor) -> list[Tensor]:
    """Contiguous tensors with the shapes of the inputs; an empty one where an input is None."""
    return [
        like.new_empty(0)
        if tensor is None
        else torch.empty_like(tensor, memory_format=torch.contiguous_format)
        for tensor in inputs
    ]


def needed_gradients(ctx: Any, gradients: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
    """The gradients as autograd expects them: None where no gradient is needed."""
    return tuple(
        gradient if needed else None
        for needed, gradient in zip(ctx.needs_input_grad, gradients, strict=True)
    )
