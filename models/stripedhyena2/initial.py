"""Initial distributions of parameters, drawn in place from a single generator."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from torch import Generator, Tensor
from torch.overrides import TorchFunctionMode

from stripedhyena2.twister import jump

Draw = Callable[[Tensor, Generator], object]

PIECE = 2**23  # numbers that a thread draws at a time


def constant(value: float) -> Draw:
    """A constant, which takes no random numbers."""
    return lambda x, _: x.fill_(value)


def normal(deviation: float) -> Draw:
    """N(0, deviation^2)."""
    return _in_pieces(lambda x, generator: x.normal_(0, deviation, generator=generator))


def uniform(low: float, high: float) -> Draw:
    """U(low, high)."""
    return _in_pieces(lambda x, generator: x.uniform_(low, high, generator=generator))


def _in_pieces(draw: Draw) -> Draw:
    """Draw in pieces by several threads; the numbers are those of a single thread.

    Args:
        draw: Consumes one 32-bit number of the generator per element, as torch does for fp32
            tensors of 16 elements or more.
    """

    def fill(x: Tensor, generator: Generator) -> None:
        flat = x.view(-1)
        last = max(x.numel() // PIECE - 1, 0) * PIECE
        with ThreadPoolExecutor() as threads:
            drawn = []
            for start in range(0, last, PIECE):
                piece = flat[start : start + PIECE]
                drawn.append(threads.submit(draw, piece, generator.clone_state()))
                jump(generator, PIECE)
            draw(flat[last:], generator)
            for future in drawn:
                future.result()

    return fill


class Uninitialized(TorchFunctionMode):
    """A context in which layers leave their parameters uninitialized."""

    def __torch_function__(
        self, function: Any, _types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Skip the functions of torch.nn.init."""
        kwargs = kwargs or {}
        if getattr(function, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return function(*args, **kwargs)
