"""Distributions that fresh parameters are drawn from, in place and from one generator."""

from collections.abc import Callable

from torch import Generator, Tensor

Draw = Callable[[Tensor, Generator], object]


def constant(value: float) -> Draw:
    """The same value everywhere; nothing is drawn."""
    return lambda x, _: x.fill_(value)


def normal(deviation: float) -> Draw:
    """N(0, deviation^2)."""
    return lambda x, generator: x.normal_(0, deviation, generator=generator)


def uniform(low: float, high: float) -> Draw:
    """U(low, high)."""
    return lambda x, generator: x.uniform_(low, high, generator=generator)
