"""Patterns of bases: IUPAC codes with the operators of regular expressions.

GGTCTC                a motif
CCWGG                 IUPAC codes: W is A or T; N or . is any base
TAA|TAG|TGA           alternatives
[AC]T                 one base of a set
(CAG){10,}            repetition; also {3}, {2,5}, *, + and ?

`parse_pattern` turns text into a tree, `automaton` compiles trees. Bases are 0 to 3 for A, C, G, T;
a set of bases is a mask of four bits, the lowest for A.
"""

from dataclasses import dataclass

BASES = "ACGT"
_SETS = dict(
    zip(
        "ACGTURYSWKMBDHVN.", (1, 2, 4, 8, 8, 5, 10, 6, 9, 12, 3, 14, 13, 11, 7, 15, 15), strict=True
    )
)
_REPEATS: dict[str, tuple[int, int | None]] = {"*": (0, None), "+": (1, None), "?": (0, 1)}
_MAX_REPEATS = 1000  # of one {} operator
_MAX_DEPTH = 20  # of parentheses, and of operators on one part: patterns are read recursively


class PatternError(ValueError):
    """A text is not a pattern; the message says where and why."""


@dataclass(frozen=True)
class Letter:
    """One base of a set."""

    bases: int


@dataclass(frozen=True)
class Concatenation:
    """Parts that follow each other."""

    parts: tuple["Pattern", ...]


@dataclass(frozen=True)
class Choice:
    """One of several parts."""

    parts: tuple["Pattern", ...]


@dataclass(frozen=True)
class Repeat:
    """A part repeated `least` to `most` times; None is no limit."""

    part: "Pattern"
    least: int
    most: int | None


Pattern = Letter | Concatenation | Choice | Repeat


def parse_pattern(text: str) -> Pattern:
    """Parse a pattern; upper and lower case are equal.

    Raises:
        PatternError: The text is not a pattern.
    """
    return _Parser(text).pattern()


def base_set(letter: str) -> int:
    """The bases that an IUPAC code stands for; 0 for any other character."""
    return _SETS.get(letter.upper(), 0)


def reverse_complemented(pattern: Pattern) -> Pattern:
    """The pattern that matches the reverse complement of what `pattern` matches."""
    if isinstance(pattern, Letter):
        return Letter(int(f"{pattern.bases:04b}"[::-1], 2))  # exchanges A and T, C and G
    if isinstance(pattern, Repeat):
        return Repeat(reverse_complemented(pattern.part), pattern.least, pattern.most)
    parts = tuple(map(reverse_complemented, pattern.parts))
    return Choice(parts) if isinstance(pattern, Choice) else Concatenation(parts[::-1])


class _Parser:
    """Recursive descent; `_at` is the index of the next character, `_depth` of parentheses."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._depth = 0

    def pattern(self) -> Pattern:
        pattern = self._choice()
        if self._at < len(self._text):
            raise self._error("unmatched )")
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
            raise self._error("expected a base")
        return parts[0] if len(parts) == 1 else Concatenation(tuple(parts))

    def _repeat(self) -> Pattern:
        part = self._atom()
        num_operators = 0
        while (operator := self._next()) and operator in "*+?{":
            num_operators += 1
            if num_operators > _MAX_DEPTH:
                raise self._error(f"more than {_MAX_DEPTH} operators on one part")
            self._at += 1
            least, most = _REPEATS[operator] if operator in _REPEATS else self._count()
            part = Repeat(part, least, most)
        return part

    def _count(self) -> tuple[int, int | None]:
        """The rest of {3}, {2,5} or {4,}."""
        least = self._number()
        most: int | None = least
        if self._take(","):
            most = None if self._next() == "}" else self._number()
        if not self._take("}"):
            raise self._error("expected }, as in {3}, {2,5} or {4,}")
        if most is not None and most < max(least, 1):
            raise self._error(f"{{{least},{most}}} matches nothing")
        return least, most

    def _number(self) -> int:
        start = self._at
        while self._next().isdecimal():
            self._at += 1
        number = int(self._text[start : self._at] or -1)
        if not 0 <= number <= _MAX_REPEATS:
            raise self._error(
                f"expected a number from 0 to {_MAX_REPEATS:,}, as in {{3}} or {{4,}}"
            )
        return number

    def _atom(self) -> Pattern:
        if self._take("("):
            self._depth += 1
            if self._depth > _MAX_DEPTH:
                raise self._error(f"parentheses are more than {_MAX_DEPTH} deep")
            inner = self._choice()
            if not self._take(")"):
                raise self._error("expected )")
            self._depth -= 1
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
            raise self._error("expected a base or an IUPAC code (ACGTRYSWKMBDHVN)")
        self._at += 1
        return bases

    def _next(self) -> str:
        return self._text[self._at : self._at + 1]

    def _take(self, character: str) -> bool:
        taken = self._next() == character
        self._at += taken
        return taken

    def _error(self, reason: str) -> PatternError:
        found = repr(self._next()) if self._next() else "the end"
        return PatternError(f"{found} at position {self._at + 1}: {reason}")
