"""What a generated sequence of DNA has to obey, and where it may end.

Lengths count generated bases; positions are 0-based from the first of them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from math import ceil, floor

from evo2cli.genome.automaton import Automaton

ALL_BASES = 0b1111
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
        return max(self.fixed, default=-1) + 1

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
