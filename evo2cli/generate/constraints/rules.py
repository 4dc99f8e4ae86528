"""What a generated sequence of DNA has to obey, and where it may end.

Lengths count generated bases; positions are 0-based from the first of them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from itertools import accumulate
from math import ceil, floor

from evo2cli.generate.constraints.automaton import Automaton

ALL_BASES = 0b1111
GC_BASES = 0b0110
IS_GC = (0, 1, 1, 0)  # of A, C, G, T


@dataclass(frozen=True)
class Corridor:
    """The share of G and C in every window; a sequence shorter than a window is one itself.

    Attributes:
        low: At least so much, in [0, 1].
        high: At most so much.
        window: Bases.
    """

    low: Fraction
    high: Fraction
    window: int

    def counts(self, length: int) -> tuple[int, int]:
        """How many of `length` bases may be G or C: from, to."""
        return ceil(self.low * length), floor(self.high * length)


@dataclass(frozen=True, kw_only=True)
class Rules:
    """The laws of one run.

    A pattern is met where its last base is generated, even if it began in the prompt.

    Attributes:
        length: Bases after which a sequence ends at the latest.
        min_length: Bases before which it does not end.
        ends_at_eod: Whether the end-of-document token may be drawn, and ends it.
        automaton: All patterns, under the labels below.
        forbidden: Labels of patterns that are never met.
        stops: Labels of patterns that end a sequence.
        fixed: Bases that may stand at a position, as masks.
        corridor: Of G and C.
    """

    length: int
    min_length: int = 1
    ends_at_eod: bool = False
    automaton: Automaton = field(default_factory=Automaton)
    forbidden: frozenset[str] = frozenset()
    stops: frozenset[str] = frozenset()
    fixed: Mapping[int, int] = field(default_factory=dict)
    corridor: Corridor | None = None

    @property
    def settled(self) -> int:
        """The length from which no position differs from another."""
        return self.fixed_places[-1] + 1 if self.fixed else 0

    @cached_property
    def fixed_places(self) -> list[int]:
        """The positions of `fixed`, in their order."""
        return sorted(self.fixed)

    @cached_property
    def fixed_gc(self) -> list[int]:
        """How many positions before each one have to be G or C, for all lengths."""
        return self._counted(lambda bases: not bases & ~GC_BASES)

    @cached_property
    def free(self) -> list[int]:
        """How many positions before each one may be G or C or not, for all lengths."""
        return self._counted(lambda bases: bool(bases & GC_BASES and bases & ~GC_BASES))

    def crowded_window(self) -> int | None:
        """Where the first window starts whose fixed bases alone break the corridor."""
        if self.corridor is None:
            return None
        low, high = self.corridor.counts(self.corridor.window)
        for end in range(self.corridor.window, self.settled + 1):
            start = end - self.corridor.window
            fixed = self.fixed_gc[end] - self.fixed_gc[start]
            if not low - (self.free[end] - self.free[start]) <= fixed <= high:
                return start
        return None

    def _counted(self, counts: Callable[[int], bool]) -> list[int]:
        positions = range(self.length)
        return list(accumulate((counts(self.bases_at(p)) for p in positions), initial=0))

    def bases_at(self, position: int) -> int:
        """Which bases may stand there, apart from all else."""
        return self.fixed.get(position, ALL_BASES)

    def ending(self, length: int) -> tuple[int, int] | None:
        """How many G and C a sequence may have that ends at `length`; None if it may not."""
        if length < max(self.min_length, self.settled):
            return None
        if self.corridor is None or length > self.corridor.window:
            return 0, length
        return self.corridor.counts(length)
