"""Kinds of variants that are comparable by chance alone, and random ones of a kind.

An SNV is of a kind with those of the same change between the same neighbours, on either strand (96
kinds, written from the pyrimidine: A[C>T]G). Insertions and deletions are of a kind by length, MNVs
too; lengths share a kind from a power of two to below the next.
"""

import zlib
from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate

import numpy as np

from evo2cli.genome.alphabet import ACGT, reverse_complement
from evo2cli.genome.interval import Interval
from evo2cli.genome.reference import Reference
from evo2cli.genome.vcf import VariantRecord, find_contig, is_bases
from evo2cli.genome.windows import upper_dna

_PYRIMIDINES = b"CT"
_TRIES = 50_000  # places looked at for a kind; the rarest, a CpG's, is met hundreds of times


def stratum(genome: Reference, record: VariantRecord, alternate: bytes) -> str | None:
    """The kind of an allele; None where its letters, or its neighbours, are not A, C, G and T."""
    reference, alternate = upper_dna(record.reference), upper_dna(alternate)
    if not (is_bases(alternate) and _is_plain(reference + alternate)) or reference == alternate:
        return None
    growth = len(alternate) - len(reference)
    if growth:
        return f"{'insertion' if growth > 0 else 'deletion'} {_size(abs(growth))}"
    if len(reference) > 1:
        return f"MNV {_size(len(reference))}"
    contig = find_contig(record.contig, genome.names)
    if contig is None or not 0 < record.start < genome.length(contig) - 1:
        return None
    around = upper_dna(genome.fetch(Interval(contig, record.start - 1, record.start + 2)))
    if around[1:2] != reference or not _is_plain(around):
        return None
    return _change(around, alternate)


def random_variants(genome: Reference, kind: str) -> Iterator[VariantRecord]:
    """Random variants of a kind, everywhere in the genome alike, until a limit of tries.

    The same genome and kind give the same ones. What is inserted, or put in place of several
    bases, stands elsewhere in the genome.
    """
    draw = np.random.default_rng(zlib.crc32(kind.encode()))
    ends = list(accumulate(genome.length(name) for name in genome.names))
    for _ in range(_TRIES):
        record = (
            _snv(genome, ends, draw, kind) if "[" in kind else _longer(genome, ends, draw, kind)
        )
        if record is not None:
            yield record


def _snv(
    genome: Reference, ends: list[int], draw: np.random.Generator, kind: str
) -> VariantRecord | None:
    """The SNV of a kind at a random place, if there can be one."""
    alternates = draw.permutation(list(ACGT))
    place, around = _piece(genome, ends, draw, 3)
    if place is None:
        return None
    for alternate in map(chr, alternates):
        if ord(alternate) != around[1] and _change(around, alternate.encode()) == kind:
            return VariantRecord.from_columns(
                place.name, place.start + 2, chr(around[1]), alternate
            )
    return None


def _longer(
    genome: Reference, ends: list[int], draw: np.random.Generator, kind: str
) -> VariantRecord | None:
    """An insertion, deletion or MNV of a kind at a random place."""
    name, _, size = kind.partition(" ")
    least = int(size.partition("-")[0])
    length = int(draw.integers(least, 2 * least))
    place, here = _piece(genome, ends, draw, 1 + length)
    elsewhere, other = _piece(genome, ends, draw, length)
    if place is None or elsewhere is None:
        return None
    first, bases, others = chr(here[0]), here[1:].decode(), other.decode()
    start = place.start + 1
    if name == "deletion":
        return VariantRecord.from_columns(place.name, start, first + bases, first)
    if name == "insertion":
        return VariantRecord.from_columns(place.name, start, first, first + others)
    if bases == others:
        return None
    return VariantRecord.from_columns(place.name, start + 1, bases, others)


def _piece(
    genome: Reference, ends: list[int], draw: np.random.Generator, length: int
) -> tuple[Interval | None, bytes]:
    """So many bases at a random place; None for one that holds other letters or leaves a contig."""
    at = int(draw.integers(ends[-1]))
    index = bisect_right(ends, at)
    name = genome.names[index]
    start = at - (ends[index] - genome.length(name))
    if start + length > genome.length(name):
        return None, b""
    place = Interval(name, start, start + length)
    letters = upper_dna(genome.fetch(place))
    return (place, letters) if _is_plain(letters) else (None, b"")


def _change(around: bytes, alternate: bytes) -> str:
    """The kind of an SNV by its base and both neighbours."""
    if around[1] not in _PYRIMIDINES:
        around, alternate = reverse_complement(around), reverse_complement(alternate)
    letters = around.decode()
    return f"{letters[0]}[{letters[1]}>{alternate.decode()}]{letters[2]}"


def _size(length: int) -> str:
    """A length with those that share its kind: 1, 2-3, 4-7, 8-15, ..."""
    least = 1 << (length.bit_length() - 1)
    return "1" if least == 1 else f"{least}-{2 * least - 1}"


def _is_plain(letters: bytes) -> bool:
    return not letters.translate(None, ACGT)
