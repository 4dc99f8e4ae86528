"""Following the progress of long computations.

A function that takes `progress` calls it with the number of bases done since the last call. The
number may be a fraction, as one base counts fully once it has passed all layers, and it is negative
when work is repeated because memory did not suffice.
"""

from collections.abc import Callable

Progress = Callable[[float], None]


def ignore_progress(_: float) -> None:
    """The `progress` of a caller who does not follow it."""
