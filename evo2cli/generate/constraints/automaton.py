"""Matches many patterns at once, in one pass over a sequence.

Every letter of a pattern is a position of an automaton. After some letters have been read, the
matches under way have reached a set of positions, and the next base moves all of them: this is a
deterministic automaton whose states are sets of positions, held as the bits of an integer. States
are computed when they are first reached.

Source: Glushkov, "The abstract theory of automata", 1961 (positions, first, last, follow).
"""

from collections.abc import Iterable, Iterator
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

UNKNOWN = len(BASES)  # the code of any other letter: it ends a match, but counts for the frame
ANY = 0b11111  # every base, and UNKNOWN
MAX_POSITIONS = 20_000

_CODE = bytes(BASES.index(chr(byte)) if chr(byte) in BASES else UNKNOWN for byte in range(256))


def base_codes(sequence: bytes) -> bytes:
    """Upper-case letters as A 0, C 1, G 2, T 3, and 4 for all others."""
    return sequence.translate(_CODE)


@dataclass(frozen=True)
class _Fragment:
    """Part of a pattern: its first and last positions, and whether it matches no letter at all."""

    is_nullable: bool
    first: int
    last: int


class Automaton:
    """Labelled patterns, and the states of their matches."""

    EMPTY = 0  # state without any match under way
    START = 1  # state at which matches of anchored patterns begin

    def __init__(self) -> None:
        self._follow = [0]  # for each position, the positions after it; the first is that of START
        self._accepting = [0] * (UNKNOWN + 1)  # for each letter, the positions that match it
        self._first = 0  # positions at which a match may begin anywhere
        self._last: dict[str, int] = {}  # positions at which a match ends, by label
        self._transitions: dict[int, tuple[int, ...]] = {}

    def add(self, pattern: Pattern, label: str, *, anchored: bool = False) -> None:
        """Add a pattern, to be matched anywhere, or only from `START` on if it is anchored.

        Raises:
            PatternError: The pattern matches the empty sequence, or has too many positions.
        """
        fragment = self._compile(pattern)
        if fragment.is_nullable:
            raise PatternError("it matches the empty sequence, and so everywhere")
        if anchored:
            self._follow[0] |= fragment.first
        else:
            self._first |= fragment.first
        self._last[label] = self._last.get(label, 0) | fragment.last
        self._transitions.clear()

    def transitions(self, state: int) -> tuple[int, ...]:
        """The states after A, C, G, T and any other letter."""
        found = self._transitions.get(state)
        if found is None:
            reached = self._first
            for position in _bits(state):
                reached |= self._follow[position]
            found = tuple(reached & accepting for accepting in self._accepting)
            self._transitions[state] = found
        return found

    def read(self, state: int, codes: bytes) -> int:
        """The state after the letters of `codes`, which are encoded by `base_codes`."""
        for code in codes:
            state = self.transitions(state)[code]
        return state

    def labels(self, state: int) -> list[str]:
        """Labels of the patterns with a match that ends in this state, in the order of `add`."""
        return [label for label, last in self._last.items() if state & last]

    def reachable(self, states: Iterable[int], limit: int) -> list[int] | None:
        """All states that bases lead to from `states`, which come first; None if over `limit`.

        States in which a match ends are included; the states after them are not, unless they
        were given.
        """
        found = dict.fromkeys(states)
        pending = list(found)
        last = reduce(or_, self._last.values(), 0)
        while pending:
            for state in self.transitions(pending.pop())[:UNKNOWN]:
                if state not in found:
                    found[state] = None
                    if not state & last:
                        pending.append(state)
            if len(found) > limit:
                return None
        return list(found)

    def _compile(self, pattern: Pattern) -> _Fragment:
        if isinstance(pattern, Letter):
            return self._new_position(pattern.bases)
        if isinstance(pattern, Repeat):
            return self._repeat(pattern)
        whole, *others = [self._compile(part) for part in pattern.parts]
        for fragment in others:
            if isinstance(pattern, Choice):
                whole = _Fragment(
                    whole.is_nullable or fragment.is_nullable,
                    whole.first | fragment.first,
                    whole.last | fragment.last,
                )
            else:
                whole = self._concatenate(whole, fragment)
        return whole

    def _new_position(self, letters: int) -> _Fragment:
        if len(self._follow) > MAX_POSITIONS:
            raise PatternError(f"patterns have more than {MAX_POSITIONS:,} letters; give fewer")
        position = 1 << len(self._follow)
        self._follow.append(0)
        for letter in range(UNKNOWN + 1):
            if letters >> letter & 1:
                self._accepting[letter] |= position
        return _Fragment(is_nullable=False, first=position, last=position)

    def _concatenate(self, left: _Fragment, right: _Fragment) -> _Fragment:
        self._connect(left.last, right.first)
        return _Fragment(
            left.is_nullable and right.is_nullable,
            left.first | (right.first if left.is_nullable else 0),
            right.last | (left.last if right.is_nullable else 0),
        )

    def _repeat(self, pattern: Repeat) -> _Fragment:
        """The required copies, then the optional ones; without a limit, one that may repeat."""
        whole = _Fragment(is_nullable=True, first=0, last=0)
        for _ in range(pattern.least):
            whole = self._concatenate(whole, self._compile(pattern.part))
        for _ in range(1 if pattern.most is None else pattern.most - pattern.least):
            copy = self._compile(pattern.part)
            if pattern.most is None:
                self._connect(copy.last, copy.first)
            whole = self._concatenate(whole, _Fragment(True, copy.first, copy.last))
        return whole

    def _connect(self, last: int, first: int) -> None:
        for position in _bits(last):
            self._follow[position] |= first


def _bits(mask: int) -> Iterator[int]:
    """Indices of the bits that are set, the lowest first."""
    while mask:
        lowest = mask & -mask
        yield lowest.bit_length() - 1
        mask ^= lowest
