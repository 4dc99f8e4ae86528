"""Kinds of variants whose scores are comparable, and random variants of a kind.

SNVs are of the same kind if they make the same change between the same neighbouring bases, on
either strand: 96 kinds, written for the strand of the pyrimidine, e.g. A[C>T]G. Insertions,
deletions and MNVs are of the same kind if their lengths are similar: 1, 2-3, 4-7, 8-15, ...
"""

import zlib
from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate

import numpy as np

from evo2cli.genome.alphabet import ACGT, reverse_complement, upper_dna
from evo2cli.genome.interval import Interval
from evo2cli.genome.reference import Reference
from evo2cli.genome.vcf import Kind, VariantRecord, is_bases, kind_of

_PYRIMIDINES = b"CT"
_MAX_TRIES = 50_000  # random positions for a kind; the rarest, of a CpG, is found at hundreds


def stratum(genome: Reference, record: VariantRecord, alternate: bytes) -> str | None:
    """The kind of an allele; None if it or its neighbours hold letters other than A, C, G, T."""
    reference, alternate = upper_dna(record.reference), upper_dna(alternate)
    if not (is_bases(alternate) and _is_plain(reference + alternate)) or reference == alternate:
        return None
    kind = kind_of(reference, alternate)
    if kind is not Kind.SNV:
        return f"{kind} {_size(abs(len(alternate) - len(reference)) or len(reference))}"
    contig = genome.find(record.contig)
    if contig is None or not 0 < record.start < genome.length(contig) - 1:
        return None
    around = upper_dna(genome.fetch(Interval(contig, record.start - 1, record.start + 2)))
    if around[1:2] != reference or not _is_plain(around):
        return None
    return _change(around, alternate)


def random_variants(genome: Reference, kind: str) -> Iterator[VariantRecord]:
    """Random variants of a kind, uniform over the genome, until `_MAX_TRIES` positions are drawn.

    The same genome and kind give the same variants. Inserted bases, and those that replace several
    bases, are copied from another random position of the genome.
    """
    draw = np.random.default_rng(zlib.crc32(kind.encode()))
    ends = list(accumulate(genome.length(name) for name in genome.names))
    for _ in range(_MAX_TRIES):
        record = (
            _snv(genome, ends, draw, kind) if "[" in kind else _longer(genome, ends, draw, kind)
        )
        if record is not None:
            yield record


def random_snvs(genome: Reference, count: int) -> Iterator[VariantRecord]:
    """Random SNVs of any kind, uniform over the genome; fewer where it has too few of A, C, G, T.

    The same genome gives the same variants.
    """
    draw = np.random.default_rng(0)
    ends = list(accumulate(genome.length(name) for name in genome.names))
    for _ in range(_MAX_TRIES):
        if count == 0:
            return
        interval, base = _random_bases(genome, ends, draw, 1)
        if interval is not None:
            others = [chr(other) for other in ACGT if other != base[0]]
            yield VariantRecord.from_columns(
                interval.name, interval.start + 1, base.decode(), str(draw.choice(others))
            )
            count -= 1


def _snv(
    genome: Reference, ends: list[int], draw: np.random.Generator, kind: str
) -> VariantRecord | None:
    """An SNV of a kind at a random position, or None if the bases there do not allow it."""
    alternates = draw.permutation(list(ACGT))
    interval, around = _random_bases(genome, ends, draw, 3)
    if interval is None:
        return None
    for alternate in map(chr, alternates):
        if ord(alternate) != around[1] and _change(around, alternate.encode()) == kind:
            return VariantRecord.from_columns(
                interval.name, interval.start + 2, chr(around[1]), alternate
            )
    return None


def _longer(
    genome: Reference, ends: list[int], draw: np.random.Generator, kind: str
) -> VariantRecord | None:
    """An insertion, deletion or MNV of a kind at a random position, or None."""
    name, _, size = kind.partition(" ")
    shortest = int(size.partition("-")[0])
    length = int(draw.integers(shortest, 2 * shortest))
    interval, here = _random_bases(genome, ends, draw, 1 + length)
    elsewhere, other = _random_bases(genome, ends, draw, length)
    if interval is None or elsewhere is None:
        return None
    contig, position = interval.name, interval.start + 1
    first, bases, others = chr(here[0]), here[1:].decode(), other.decode()
    if name == Kind.DELETION:
        return VariantRecord.from_columns(contig, position, first + bases, first)
    if name == Kind.INSERTION:
        return VariantRecord.from_columns(contig, position, first, first + others)
    if bases == others:
        return None
    return VariantRecord.from_columns(contig, position + 1, bases, others)


def _random_bases(
    genome: Reference, ends: list[int], draw: np.random.Generator, length: int
) -> tuple[Interval | None, bytes]:
    """`length` bases at a random position; None if they hold other letters or leave the contig."""
    at = int(draw.integers(ends[-1]))
    index = bisect_right(ends, at)
    name = genome.names[index]
    start = at - (ends[index] - genome.length(name))
    if start + length > genome.length(name):
        return None, b""
    interval = Interval(name, start, start + length)
    letters = upper_dna(genome.fetch(interval))
    return (interval, letters) if _is_plain(letters) else (None, b"")


def _change(around: bytes, alternate: bytes) -> str:
    """The kind of an SNV by its base and both neighbours."""
    if around[1] not in _PYRIMIDINES:
        around, alternate = reverse_complement(around), reverse_complement(alternate)
    letters = around.decode()
    return f"{letters[0]}[{letters[1]}>{alternate.decode()}]{letters[2]}"


def _size(length: int) -> str:
    """The range of lengths of the same kind: 1, 2-3, 4-7, 8-15, ..."""
    shortest = 1 << (length.bit_length() - 1)
    return "1" if shortest == 1 else f"{shortest}-{2 * shortest - 1}"


def _is_plain(letters: bytes) -> bool:
    return not letters.translate(None, ACGT)
