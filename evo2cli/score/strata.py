"""Strata: kinds of variants with comparable scores, and random variants of a kind.

SNVs of a kind have the same trinucleotide context and change on either strand: 96 kinds, written
for the strand of the pyrimidine, e.g. A[C>T]G. Insertions, deletions and MNVs of a kind have
similar lengths: 1, 2-3, 4-7, 8-15, ...
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
_MAX_TRIES = 50_000  # random positions per kind; the rarest ones, of CpG, need some hundreds each


def stratum(genome: Reference, record: VariantRecord, alternate: bytes) -> str | None:
    """The kind of an allele; None if it or its context has letters other than A, C, G and T."""
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
    """Yield random variants of a kind, uniform over the genome, from `_MAX_TRIES` positions.

    The same genome and kind give the same variants. The bases of insertions and MNVs are copied
    from another random position of the genome.
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
    """Yield `count` random SNVs of any kind, uniform over the genome.

    They are fewer if hardly any base is A, C, G or T. The same genome gives the same variants.
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
    """An SNV of a kind at a random position; None if the bases there do not allow it."""
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
    """An insertion, deletion or MNV of a kind at a random position; None if it is not possible."""
    name, _, size = kind.partition(" ")
    shortest = int(size.partition("-")[0])
    length = int(draw.integers(shortest, 2 * shortest))
    interval, letters = _random_bases(genome, ends, draw, 1 + length)
    source, copied = _random_bases(genome, ends, draw, length)
    if interval is None or source is None:
        return None
    contig, position = interval.name, interval.start + 1
    anchor, old, new = chr(letters[0]), letters[1:].decode(), copied.decode()
    if name == Kind.DELETION:
        return VariantRecord.from_columns(contig, position, anchor + old, anchor)
    if name == Kind.INSERTION:
        return VariantRecord.from_columns(contig, position, anchor, anchor + new)
    if old == new:
        return None
    return VariantRecord.from_columns(contig, position + 1, old, new)


def _random_bases(
    genome: Reference, ends: list[int], draw: np.random.Generator, length: int
) -> tuple[Interval | None, bytes]:
    """`length` bases at a random position; None if they are not ACGT, or not in one contig."""
    position = int(draw.integers(ends[-1]))
    index = bisect_right(ends, position)
    name = genome.names[index]
    start = position - (ends[index] - genome.length(name))
    if start + length > genome.length(name):
        return None, b""
    interval = Interval(name, start, start + length)
    letters = upper_dna(genome.fetch(interval))
    return (interval, letters) if _is_plain(letters) else (None, b"")


def _change(around: bytes, alternate: bytes) -> str:
    """The kind of an SNV, from its trinucleotide context [3] and the alternate base."""
    if around[1] not in _PYRIMIDINES:
        around, alternate = reverse_complement(around), reverse_complement(alternate)
    letters = around.decode()
    return f"{letters[0]}[{letters[1]}>{alternate.decode()}]{letters[2]}"


def _size(length: int) -> str:
    """The range of lengths of a kind: 1, 2-3, 4-7, 8-15, ..."""
    shortest = 1 << (length.bit_length() - 1)
    return "1" if shortest == 1 else f"{shortest}-{2 * shortest - 1}"


def _is_plain(letters: bytes) -> bool:
    return not letters.translate(None, ACGT)
