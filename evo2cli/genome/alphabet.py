"""Nucleotide letters, and the reverse complement."""

from collections.abc import Iterator

from stripedhyena2.dna import ACGT, IUPAC, LETTERS, RNA_LETTERS, reverse_complement, to_dna

__all__ = [
    "ACGT",
    "IUPAC",
    "LETTERS",
    "RNA_LETTERS",
    "canonical_pieces",
    "reverse_complement",
    "to_dna",
    "upper_dna",
]

_COMPARED, _PIECE = 1 << 12, 1 << 18  # bases at a time


def upper_dna(sequence: bytes) -> bytes:
    """The sequence in the letters that the model was trained on: upper case, T for U."""
    return to_dna(sequence.upper())


def canonical_pieces(sequence: bytes) -> Iterator[bytes]:
    """The strand of a sequence that sorts first, in upper case.

    So a sequence and its reverse complement give the same bytes. They come in pieces that fit the
    CPU's cache. Usually a few bases from both ends decide which strand it is.
    """
    pairs = zip(_upper(sequence, _COMPARED), _upper_reverse(sequence, _COMPARED), strict=True)
    is_first = next((forward < reverse for forward, reverse in pairs if forward != reverse), True)
    return (_upper if is_first else _upper_reverse)(sequence, _PIECE)


def _upper(sequence: bytes, size: int) -> Iterator[bytes]:
    for start in range(0, len(sequence), size):
        yield sequence[start : start + size].upper()


def _upper_reverse(sequence: bytes, size: int) -> Iterator[bytes]:
    for end in range(len(sequence), 0, -size):
        yield reverse_complement(sequence[max(0, end - size) : end]).upper()
