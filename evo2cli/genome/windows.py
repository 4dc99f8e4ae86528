"""The two windows of an allele: the genome around it, and the same genome with the allele applied.

A centred window of width W starts W // 2 bases before the variant. An anchored window starts at the
last multiple of W // 4 with at least W // 2 bases before the variant, so that neighbouring variants
share a window. A window may also end a given number of bases after the variant.

Both windows of an allele have the same length by default: the right border moves by as many bases
as an insertion adds or a deletion removes, or the left border if the contig ends on the right.
Otherwise both cover the same bases of the genome, and their lengths differ. At the ends of a contig
windows are shifted, never padded; a contig shorter than W is one window. Intervals are 0-based and
half-open; letters are upper case with T for U.
"""

from collections.abc import Callable
from dataclasses import dataclass

from evo2cli.genome.alphabet import reverse_complement, upper_dna
from evo2cli.genome.interval import Interval
from evo2cli.genome.reference import Reference

# In a VCF, an ambiguous base of the genome is written as the first base of its code in alphabetical
# order; some programs write N.
_FIRST_OF_AMBIGUOUS = dict(zip(b"RYSWKMBDHV", b"ACCAGACAAA", strict=True))
_UNKNOWN = ord("N")


@dataclass(frozen=True)
class Window:
    """An allele with the sequence before and after it."""

    before: bytes
    allele: bytes
    after: bytes

    @property
    def sequence(self) -> bytes:
        """The whole window."""
        return self.before + self.allele + self.after

    def reverse_complement(self) -> "Window":
        """The same window read from the other strand."""
        return Window(
            reverse_complement(self.after),
            reverse_complement(self.allele),
            reverse_complement(self.before),
        )


@dataclass(frozen=True)
class WindowPair:
    """The two windows of an allele.

    Attributes:
        reference: The window of the genome.
        alternate: The window of the genome with the allele applied.
        interval: The interval of the genome that `reference` covers.
        alternate_interval: The interval of the genome that `alternate` covers.
        at_edge: Whether a window was shifted or shortened at an end of the contig.
    """

    reference: Window
    alternate: Window
    interval: Interval
    alternate_interval: Interval
    at_edge: bool

    def with_alternate(self, allele: bytes) -> "WindowPair":
        """The windows of another alternate allele of the same length."""
        window = Window(self.alternate.before, allele, self.alternate.after)
        return WindowPair(
            self.reference, window, self.interval, self.alternate_interval, self.at_edge
        )


def agrees(allele: bytes, genome: bytes) -> bool:
    """Whether a REF allele matches as many bases of the genome; both in letters of `upper_dna`.

    Where the genome has an ambiguity code other than N, REF may also be the first base of the code,
    or N.
    """
    return allele == genome or all(
        letter == base
        or (base in _FIRST_OF_AMBIGUOUS and letter in (_FIRST_OF_AMBIGUOUS[base], _UNKNOWN))
        for letter, base in zip(allele, genome, strict=True)
    )


def centred(start: int, end: int, width: int) -> int:  # noqa: ARG001 - a `Placing`
    """Start of the centred window of a variant from `start` to `end`; may be negative."""
    return start - width // 2


def anchored(start: int, end: int, width: int) -> int:
    """Start of the anchored window of a variant; may be negative."""
    step = anchor_step(width)
    return centred(start, end, width) // step * step


def ending(after: int) -> "Placing":
    """Windows that end `after` bases after the variant; their start may be negative."""
    return lambda _start, end, width: end + after - width


def anchor_step(width: int) -> int:
    """Distance between the starts of anchored windows."""
    return max(width // 4, 1)


Placing = Callable[[int, int, int], int]  # start, end and width -> start of the window


def cut_windows(
    genome: Reference,
    variant: Interval,
    alternate: bytes,
    width: int,
    placing: Placing = centred,
    *,
    from_right: bool = False,
    equally_long: bool = True,
) -> WindowPair | None:
    """Cut both windows of one allele.

    Args:
        genome: The reference.
        variant: The bases of REF; inside its contig.
        alternate: The ALT allele.
        width: Bases in a window, at least 2.
        placing: `centred`, `anchored` or an `ending`.
        from_right: Place windows and move borders as on the other strand, i.e. mirrored.
        equally_long: Keep the length of windows by moving a border.

    Returns:
        The windows, or None if REF or `alternate` is longer than half a window, or not shorter
        than the contig.
    """
    contig = genome.length(variant.name)
    growth = len(alternate) - len(variant) if equally_long else 0  # compensated by a border
    length = min(width, contig, contig + growth)
    if max(len(variant), len(alternate)) > min(width // 2, length - 1):
        return None
    first, last = variant.start, variant.end
    if from_right:
        first, last = contig - variant.end, contig - variant.start
    wanted = placing(first, last, width)
    moved = placing(first, last + growth, width) - wanted  # if the placing depends on the end
    if from_right:
        wanted, moved = contig - wanted - length, growth - moved
    start = _fitted_start(wanted, length, (variant.start, variant.end), contig)
    alternate_wanted = start + moved
    allele = (variant.start, variant.end + growth)
    alternate_start = _fitted_start(alternate_wanted, length, allele, contig + growth)
    end, alternate_end = start + length, alternate_start + length - growth

    first = min(start, alternate_start)
    letters = upper_dna(genome.fetch(Interval(variant.name, first, max(end, alternate_end))))

    def between(left: int, right: int) -> bytes:
        return letters[left - first : right - first]

    before, after = between(start, variant.start), between(variant.end, end)
    return WindowPair(
        reference=Window(before, between(variant.start, variant.end), after),
        alternate=Window(
            before if alternate_start == start else between(alternate_start, variant.start),
            upper_dna(alternate),
            after if alternate_end == end else between(variant.end, alternate_end),
        ),
        interval=Interval(variant.name, start, end),
        alternate_interval=Interval(variant.name, alternate_start, alternate_end),
        at_edge=start != wanted or alternate_start != alternate_wanted or length < width,
    )


def window_pair(sequences: tuple[bytes, bytes]) -> WindowPair:
    """The windows of two sequences; the allele is what differs between their common ends."""
    one, other = map(upper_dna, sequences)
    start = _num_shared(one, other)
    end = _num_shared(one[start:][::-1], other[start:][::-1])
    reference, alternate = (
        Window(s[:start], s[start : len(s) - end], s[len(s) - end :]) for s in (one, other)
    )
    spans = Interval("", 0, len(one)), Interval("", 0, len(other))
    return WindowPair(reference, alternate, *spans, at_edge=False)


def _num_shared(one: bytes, other: bytes) -> int:
    """Length of the common prefix."""
    pairs = zip(one, other, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def _fitted_start(wanted: int, length: int, allele: tuple[int, int], contig: int) -> int:
    """The start nearest to `wanted` of a window that contains the allele and fits the contig."""
    start, end = allele
    return min(max(wanted, end - length, 0), contig - length, start)
