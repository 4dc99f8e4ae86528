"""Errors of commands and their exit codes: 2 bad input, 3 too many skipped records, 4 numerics."""

import inspect
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")
_OPTION = re.compile(r"(?<![\w-])--([a-z]+(?:-[a-z]+)*)")


class UserError(ValueError):
    """An error that the user can fix; the command line prints it in one line, without a traceback.

    The message names the thing, its value and how to fix it.
    """

    exit_code = 2


class TooManySkippedError(UserError):
    """The command finished, but skipped more records than the threshold allows."""

    exit_code = 3


class UntrustedNumericsError(UserError):
    """A result is NaN or infinite, so no number of this run can be trusted."""

    exit_code = 4


def listed(names: Iterable[object], most: int = 5) -> str:
    """Join names for a message: the first `most`, then "..."; "none" if there are none."""
    texts = [*map(str, names)]
    return ", ".join([*texts[:most], *(["..."] if len(texts) > most else [])]) or "none"


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """Format a count for a message: "1 record", "1,200 records".

    Args:
        number: The count.
        noun: Singular; may include a verb, e.g. "record is".
        plural: Plural; default: `noun` + s.
    """
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def without_dashes(message: str, names: Collection[str]) -> str:
    """Write options in a message as fields or arguments, of these names: --top-k as top_k."""

    def name_of(option: re.Match[str]) -> str:
        name = option[1].replace("-", "_")
        return name if name in names else option[0]

    return _OPTION.sub(name_of, message)


def names_arguments(function: Callable[P, Iterator[T]]) -> Callable[P, Iterator[T]]:
    """Decorate an iterator function of the Python interface.

    A `UserError`, from the call or while the iterator is read, then names its arguments and not the
    options of a command: window for --window.
    """
    names = inspect.signature(function).parameters

    @contextmanager
    def naming() -> Iterator[None]:
        try:
            yield
        except UserError as error:
            error.args = (without_dashes(str(error), names),)
            raise

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> Iterator[T]:
        with naming():
            items = function(*args, **kwargs)

        def iterate() -> Iterator[T]:
            with naming():
                yield from items

        return iterate()

    return call


def explain(error: BaseException) -> tuple[str, int] | None:
    """The line to print and the exit code for an error that the user can act on.

    None for any other error, which is a bug of ours and deserves its traceback.
    """
    if isinstance(error, UserError):
        return str(error), error.exit_code
    # Imported late, because the model floor imports torch.
    from stripedhyena2.errors import InputError, NonFiniteError
    from stripedhyena2.memory import is_out_of_memory, out_of_memory

    if isinstance(error, InputError):
        return str(error), UserError.exit_code
    if isinstance(error, NonFiniteError):
        return str(error), UntrustedNumericsError.exit_code
    if is_out_of_memory(error):
        return (
            f"{out_of_memory(error)}; use smaller inputs, or --device cpu",
            UserError.exit_code,
        )
    return None
