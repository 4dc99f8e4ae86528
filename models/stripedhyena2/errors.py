"""Errors that a caller can act on; every other exception is a defect of this package."""

from collections.abc import Iterable
from numbers import Integral, Real


class InputError(ValueError):
    """An argument or a file cannot be used; the message names it, its value and the way out."""


class InsufficientMemoryError(InputError):
    """A sequence does not fit into the free memory; the message says what would help."""


class NonFiniteError(FloatingPointError):
    """A result is NaN or infinite; the message names the first layer affected, if there is one."""


def reason_of(error: BaseException) -> str:
    """The message of an error of a library or of the system, as one short line."""
    message = getattr(error, "strerror", None) or str(error).strip() or type(error).__name__
    return str(message).partition("\n")[0][:200]


def check_whole(name: str, value: int) -> None:
    """Refuse the value of an argument that is not a whole number.

    Raises:
        InputError: Names the argument and its value.
    """
    if not isinstance(value, Integral):
        raise InputError(f"{name}={value!r}: must be a whole number")


def check_count(name: str, value: int, *, least: int = 1) -> None:
    """Refuse the value of an argument that is not a whole number, or too small.

    Raises:
        InputError: Names the argument, its value and the smallest possible one.
    """
    check_whole(name, value)
    if value < least:
        raise InputError(f"{name}={value}: must be at least {least}")


def check_positive(name: str, value: float) -> None:
    """Refuse the value of an argument that is not a number above 0.

    Raises:
        InputError: Names the argument and its value.
    """
    if not isinstance(value, Real) or not value > 0:
        raise InputError(f"{name}={value!r}: must be a number above 0")


def check_choice(name: str, value: str, choices: Iterable[str]) -> None:
    """Refuse the value of an argument that is not one of its choices.

    Raises:
        InputError: Names the argument, its value and the choices.
    """
    if value not in list(choices):
        raise InputError(f"{name}={value!r}: must be one of {', '.join(choices)}")
