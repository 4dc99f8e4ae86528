"""The two windows of an allele: the genome around it, and the same genome with the allele applied.

A centred window of width W starts W // 2 bases before the variant. An anchored one starts at the
last multiple of W // 4 that leaves as much before the variant, so that neighbours share it: the
genome's place alone decides. Both windows are equally long: what an insertion adds or a deletion
takes away moves the right border, or the left one where the contig ends at the right. Or else both
end at the same bases of the genome, and their lengths differ by so much. At a contig's ends windows
are shifted, never padded; a contig shorter than W is its own window. Positions are 0-based and
half-open, letters upper-case with T for U.
"""

from collections.abc import Callable
from dataclasses import dataclass

from evo2cli.genome.alphabet import reverse_complement, to_dna
from evo2cli.genome.interval import Interval
from evo2cli.genome.reference import Reference

# VCF writes an ambiguous base of the genome as the alphabetically first it may stand for.
_FIRST_OF_AMBIGUOUS = bytes.maketrans(b"RYSWKMBDHV", b"ACCAGACAAA")


@dataclass(frozen=True)
class Window:
    """An allele and what stands around it."""

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
    """What one allele is scored by.

    Attributes:
        reference: Letters of the genome.
        alternate: Letters of the genome with the allele applied.
        interval: Where `reference` lies.
        alternate_interval: Where `alternate` begins and ends in the genome.
        at_edge: A contig's end moved or shortened a window.
    """

    reference: Window
    alternate: Window
    interval: Interval
    alternate_interval: Interval
    at_edge: bool


def upper_dna(sequence: bytes) -> bytes:
    """The letters the model was trained on: upper case, T for U."""
    return to_dna(sequence.upper())


def agrees(allele: bytes, genome: bytes) -> bool:
    """Whether a REF allele is what the genome says there; both as `upper_dna` spells them."""
    return allele == genome or allele == genome.translate(_FIRST_OF_AMBIGUOUS)


def centred(start: int, width: int) -> int:
    """Where a window would begin that has the variant at `start` in its middle."""
    return start - width // 2


def anchored(start: int, width: int) -> int:
    """Where a window would begin that has its neighbours as well: at least W // 2 before them."""
    step = anchor_step(width)
    return centred(start, width) // step * step


def anchor_step(width: int) -> int:
    """Distance of anchored windows."""
    return max(width // 4, 1)


Placing = Callable[[int, int], int]


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
        genome: Where the letters come from.
        variant: The bases that REF spells; inside its contig.
        alternate: What stands there instead.
        width: Bases in a window, at least 2.
        placing: `centred` or `anchored`.
        from_right: Place and move borders as on the other strand: all is mirrored.
        equally_long: Move a border by what the allele adds or takes away.

    Returns:
        The windows, or None where REF or `alternate` is longer than half a window, or than what
        the contig leaves of it.
    """
    contig = genome.length(variant.name)
    growth = len(alternate) - len(variant) if equally_long else 0  # that borders make good
    length = min(width, contig, contig + growth)
    if max(len(variant), len(alternate)) > min(width // 2, length - 1):
        return None
    if from_right:
        wish = contig - placing(contig - variant.end, width) - length
        start = _place(wish, length, (variant.start, variant.end), contig)
        alternate_wish = start + growth
    else:
        wish = placing(variant.start, width)
        start = _place(wish, length, (variant.start, variant.end), contig)
        alternate_wish = start
    allele = (variant.start, variant.end + growth)
    alternate_start = _place(alternate_wish, length, allele, contig + growth)
    end, alternate_end = start + length, alternate_start + length - growth

    first = min(start, alternate_start)
    letters = upper_dna(genome.fetch(Interval(variant.name, first, max(end, alternate_end))))

    def between(left: int, right: int) -> bytes:
        return letters[left - first : right - first]

    return WindowPair(
        reference=Window(
            between(start, variant.start),
            between(variant.start, variant.end),
            between(variant.end, end),
        ),
        alternate=Window(
            between(alternate_start, variant.start),
            upper_dna(alternate),
            between(variant.end, alternate_end),
        ),
        interval=Interval(variant.name, start, end),
        alternate_interval=Interval(variant.name, alternate_start, alternate_end),
        at_edge=start != wish or alternate_start != alternate_wish or length < width,
    )


def _place(wish: int, length: int, allele: tuple[int, int], contig: int) -> int:
    """The start nearest to `wish` of a window that holds the allele and lies in the contig."""
    start, end = allele
    return min(max(wish, end - length, 0), contig - length, start)
