"""Patterns of bases: letters with ambiguity codes, and the operators of regular expressions.

GGTCTC                a motif
CCWGG                 with ambiguity codes: W is A or T; N or . any base
TAA|TAG|TGA           one of several
[AC]T                 a letter out of a set
(CAG){10,}            so many times; also {3}, {2,5}, *, + and ?

text -> tree -> `automaton`. Bases are 0 to 3 for A, C, G, T; a set of them is a mask of four bits,
the lowest for A.
"""

from dataclasses import dataclass

BASES = "ACGT"
_SETS = dict(
    zip(
        "ACGTURYSWKMBDHVN.", (1, 2, 4, 8, 8, 5, 10, 6, 9, 12, 3, 14, 13, 11, 7, 15, 15), strict=True
    )
)
_MOST_TIMES = 1000  # of one repetition


class PatternError(ValueError):
    """A text is no pattern; the message says where, and why."""


@dataclass(frozen=True)
class Letter:
    """One base out of a set."""

    bases: int


@dataclass(frozen=True)
class Sequence:
    """One after the other."""

    parts: tuple["Pattern", ...]


@dataclass(frozen=True)
class Choice:
    """One of several."""

    parts: tuple["Pattern", ...]


@dataclass(frozen=True)
class Repeat:
    """`least` to `most` times; without end where `most` is None."""

    part: "Pattern"
    least: int
    most: int | None


Pattern = Letter | Sequence | Choice | Repeat


def parse_pattern(text: str) -> Pattern:
    """Read a pattern, in either case.

    Raises:
        PatternError: It is none.
    """
    return _Parser(text).pattern()


def base_set(letter: str) -> int:
    """The bases a letter or ambiguity code stands for; 0 where it is none."""
    return _SETS.get(letter.upper(), 0)


def other_strand(pattern: Pattern) -> Pattern:
    """What the pattern is on the reverse complement."""
    if isinstance(pattern, Letter):
        return Letter(int(f"{pattern.bases:04b}"[::-1], 2))  # A and T, C and G change places
    if isinstance(pattern, Repeat):
        return Repeat(other_strand(pattern.part), pattern.least, pattern.most)
    parts = tuple(map(other_strand, pattern.parts))
    return Choice(parts) if isinstance(pattern, Choice) else Sequence(parts[::-1])


class _Parser:
    """Recursive descent; `_at` is the next character."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def pattern(self) -> Pattern:
        pattern = self._choice()
        if self._at < len(self._text):
            raise self._error("nothing was opened that this could close")
        return pattern

    def _choice(self) -> Pattern:
        parts = [self._sequence()]
        while self._take("|"):
            parts.append(self._sequence())
        return parts[0] if len(parts) == 1 else Choice(tuple(parts))

    def _sequence(self) -> Pattern:
        parts = []
        while self._next() not in ("", "|", ")"):
            parts.append(self._repeat())
        if not parts:
            raise self._error("a base is missing here")
        return parts[0] if len(parts) == 1 else Sequence(tuple(parts))

    def _repeat(self) -> Pattern:
        part = self._atom()
        while (operator := self._next()) and operator in "*+?{":
            self._at += 1
            least, most = {"*": (0, None), "+": (1, None), "?": (0, 1)}.get(operator) or (
                self._times()
            )
            part = Repeat(part, least, most)
        return part

    def _times(self) -> tuple[int, int | None]:
        least = self._number()
        most: int | None = least
        if self._take(","):
            most = None if self._next() == "}" else self._number()
        if not self._take("}"):
            raise self._error("a } is missing, as in {3}, {2,5} or {4,}")
        if most is not None and most < max(least, 1):
            raise self._error(f"{{{least},{most}}} is never met")
        return least, most

    def _number(self) -> int:
        start = self._at
        while self._next().isdecimal():
            self._at += 1
        number = int(self._text[start : self._at] or -1)
        if not 0 <= number <= _MOST_TIMES:
            raise self._error(
                f"a number from 0 to {_MOST_TIMES:,} is missing, as in {{3}} or {{4,}}"
            )
        return number

    def _atom(self) -> Pattern:
        if self._take("("):
            inner = self._choice()
            if not self._take(")"):
                raise self._error("a ) is missing")
            return inner
        if not self._take("["):
            return Letter(self._letter())
        bases = self._letter()
        while not self._take("]"):
            bases |= self._letter()
        return Letter(bases)

    def _letter(self) -> int:
        bases = base_set(self._next())
        if not bases:
            raise self._error("a base or an ambiguity code (ACGTRYSWKMBDHVN) should stand here")
        self._at += 1
        return bases

    def _next(self) -> str:
        return self._text[self._at : self._at + 1]

    def _take(self, character: str) -> bool:
        taken = self._next() == character
        self._at += taken
        return taken

    def _error(self, verdict: str) -> PatternError:
        found = repr(self._next()) if self._next() else "the end"
        return PatternError(f"{found} at position {self._at + 1}: {verdict}")
