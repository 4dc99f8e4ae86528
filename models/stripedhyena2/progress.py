"""Progress callbacks of long computations.

A function that takes `progress` calls it with the number of bases done since the last call. The
number may be a fraction, since a base counts fully only when it has passed all layers, and it is
negative when work is repeated after an out-of-memory error.
"""

from collections.abc import Callable

Progress = Callable[[float], None]


def ignore_progress(_: float) -> None:
    """The default `progress`, which does nothing."""
