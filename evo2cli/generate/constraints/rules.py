"""What every sequence of a run must satisfy, and where a sequence may end.

Lengths count generated bases; positions are 0-based from the first generated base. A set of bases
is a mask of four bits, the lowest for A, then C, G and T.
"""

from collections.abc import Mapping
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
class GCRange:
    """Bounds of the GC fraction in every window; a shorter sequence is one window.

    Attributes:
        low: Lowest fraction, in [0, 1].
        high: Highest fraction, in [0, 1].
        window: Bases of a window.
    """

    low: Fraction
    high: Fraction
    window: int

    def counts(self, length: int) -> tuple[int, int]:
        """The lowest and the highest number of G and C in `length` bases."""
        return ceil(self.low * length), floor(self.high * length)


@dataclass(frozen=True, kw_only=True)
class Rules:
    """All rules of a run.

    A pattern is matched where its last base is generated, even if the match began in the prompt.

    Attributes:
        length: Maximum number of bases.
        min_length: Minimum number of bases.
        ends_at_eod: Whether the end-of-document token may be sampled, which ends a sequence.
        automaton: All patterns, under the labels below.
        forbidden: Labels of patterns that must not be matched.
        stops: Labels of patterns whose match ends a sequence.
        fixed: The bases that are allowed at a position.
        gc: Range of the GC fraction.
    """

    length: int
    min_length: int = 1
    ends_at_eod: bool = False
    automaton: Automaton = field(default_factory=Automaton)
    forbidden: frozenset[str] = frozenset()
    stops: frozenset[str] = frozenset()
    fixed: Mapping[int, int] = field(default_factory=dict)
    gc: GCRange | None = None

    @cached_property
    def fixed_positions(self) -> list[int]:
        """The positions of `fixed`, in ascending order."""
        return sorted(self.fixed)

    @property
    def fixed_end(self) -> int:
        """The position after the last fixed one; 0 if there is none."""
        return self.fixed_positions[-1] + 1 if self.fixed else 0

    @cached_property
    def required_gc(self) -> list[int]:
        """For every length, at how many positions before it only G or C is allowed."""
        required = (not self.bases_at(position) & ~GC_BASES for position in range(self.length))
        return list(accumulate(required, initial=0))

    @cached_property
    def optional_gc(self) -> list[int]:
        """For every length, at how many positions before it G or C and A or T are allowed."""
        allowed = (self.bases_at(position) for position in range(self.length))
        optional = (bool(bases & GC_BASES and bases & ~GC_BASES) for bases in allowed)
        return list(accumulate(optional, initial=0))

    def impossible_window(self) -> int | None:
        """Start of the first window whose fixed bases alone violate the GC range, if any."""
        if self.gc is None:
            return None
        low, high = self.gc.counts(self.gc.window)
        for end in range(self.gc.window, self.fixed_end + 1):
            start = end - self.gc.window
            least = self.required_gc[end] - self.required_gc[start]
            most = least + self.optional_gc[end] - self.optional_gc[start]
            if most < low or least > high:
                return start
        return None

    def bases_at(self, position: int) -> int:
        """The bases that `fixed` allows at a position."""
        return self.fixed.get(position, ALL_BASES)

    def final_gc_counts(self, length: int) -> tuple[int, int] | None:
        """The lowest and highest number of G and C in a sequence that ends at `length`.

        None if no sequence may end there.
        """
        if length < max(self.min_length, self.fixed_end):
            return None
        if self.gc is None or length > self.gc.window:
            return 0, length
        return self.gc.counts(length)
