"""Many patterns watched at once: places in patterns -> sets of places -> a table of states.

Every letter of a pattern is a place. What has been read so far leaves a set of places a match may
have got to, and the next base moves all of them on: a deterministic automaton whose state is that
set, kept as the bits of an integer. States are made when they are met.

Source: Glushkov, "The abstract theory of automata", 1961 (places, first, last, follow).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce
from operator import or_

from evo2cli.generate.constraints.patterns import (
    BASES,
    Choice,
    Letter,
    Pattern,
    PatternError,
    Repeat,
)

UNKNOWN = len(BASES)  # a letter that is no base: matches stop there, frames go on
ANY = 0b11111
MOST_PLACES = 20_000

_CODE = bytes(BASES.index(chr(byte)) if chr(byte) in BASES else UNKNOWN for byte in range(256))


def base_codes(sequence: bytes) -> bytes:
    """Upper-case letters as A 0, C 1, G 2, T 3, and 4 for all others."""
    return sequence.translate(_CODE)


@dataclass(frozen=True)
class _Fragment:
    """Part of a pattern: where it begins and ends, and whether it matches the empty sequence."""

    is_nullable: bool
    first: int
    last: int


class Automaton:
    """Patterns under labels, and where in a text they are met."""

    START = 1  # state before the first letter, where anchored patterns begin there
    NOWHERE = 0  # state in which nothing has begun

    def __init__(self) -> None:
        self._follow = [0]  # of each place; the first is where an anchored pattern begins
        self._takes = [0] * (UNKNOWN + 1)  # of each letter, the places that take it
        self._anywhere = 0
        self._ends: dict[str, int] = {}
        self._moves: dict[int, tuple[int, ...]] = {}

    def watch(self, pattern: Pattern, label: str, *, anchored: bool = False) -> None:
        """Look for a pattern from now on, anywhere or only from `START`.

        Raises:
            PatternError: It matches the empty sequence, or takes too many places.
        """
        fragment = self._add(pattern)
        if fragment.is_nullable:
            raise PatternError("it matches the empty sequence, and so everywhere")
        if anchored:
            self._follow[0] |= fragment.first
        else:
            self._anywhere |= fragment.first
        self._ends[label] = self._ends.get(label, 0) | fragment.last
        self._moves.clear()

    def moves(self, state: int) -> tuple[int, ...]:
        """The states after A, C, G, T and any other letter."""
        found = self._moves.get(state)
        if found is None:
            reach, places = self._anywhere, state
            while places:
                lowest = places & -places
                reach |= self._follow[lowest.bit_length() - 1]
                places ^= lowest
            found = self._moves[state] = tuple(reach & takes for takes in self._takes)
        return found

    def read(self, state: int, codes: bytes) -> int:
        """The state after letters, as `base_codes` spells them."""
        for code in codes:
            state = self.moves(state)[code]
        return state

    def labels(self, state: int) -> list[str]:
        """Of the patterns that a match of ends here, in the order they were added."""
        return [label for label, ends in self._ends.items() if state & ends]

    def reachable(self, states: Iterable[int], most: int) -> list[int] | None:
        """All states that bases lead to from `states`, these first; None if over `most`.

        States where a match ends are listed, but not gone on from unless they were given.
        """
        found = dict.fromkeys(states)
        waiting = list(found)
        ends = reduce(or_, self._ends.values(), 0)
        while waiting:
            for state in self.moves(waiting.pop())[:UNKNOWN]:
                if state not in found:
                    found[state] = None
                    if not state & ends:
                        waiting.append(state)
            if len(found) > most:
                return None
        return list(found)

    def _add(self, pattern: Pattern) -> _Fragment:
        if isinstance(pattern, Letter):
            return self._place(pattern.bases)
        if isinstance(pattern, Repeat):
            return self._repeated(pattern)
        fragments = [self._add(part) for part in pattern.parts]
        whole = fragments[0]
        for fragment in fragments[1:]:
            if isinstance(pattern, Choice):
                whole = _Fragment(
                    whole.is_nullable or fragment.is_nullable,
                    whole.first | fragment.first,
                    whole.last | fragment.last,
                )
            else:
                whole = self._joined(whole, fragment)
        return whole

    def _place(self, letters: int) -> _Fragment:
        place = 1 << len(self._follow)
        if len(self._follow) > MOST_PLACES:
            raise PatternError(f"patterns come to more than {MOST_PLACES:,} letters; give fewer")
        self._follow.append(0)
        for letter in range(UNKNOWN + 1):
            if letters >> letter & 1:
                self._takes[letter] |= place
        return _Fragment(is_nullable=False, first=place, last=place)

    def _joined(self, left: _Fragment, right: _Fragment) -> _Fragment:
        self._follow_on(left.last, right.first)
        return _Fragment(
            left.is_nullable and right.is_nullable,
            left.first | (right.first if left.is_nullable else 0),
            right.last | (left.last if right.is_nullable else 0),
        )

    def _repeated(self, pattern: Repeat) -> _Fragment:
        """As many copies as there must be, then those there may be, each of them optional."""
        whole = _Fragment(is_nullable=True, first=0, last=0)
        for _ in range(pattern.least):
            whole = self._joined(whole, self._add(pattern.part))
        optional = 1 if pattern.most is None else pattern.most - pattern.least
        for _ in range(optional):
            copy = self._add(pattern.part)
            if pattern.most is None:
                self._follow_on(copy.last, copy.first)
            whole = self._joined(whole, _Fragment(True, copy.first, copy.last))
        return whole

    def _follow_on(self, last: int, first: int) -> None:
        while last:
            lowest = last & -last
            self._follow[lowest.bit_length() - 1] |= first
            last ^= lowest
