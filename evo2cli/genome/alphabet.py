"""Nucleotide letters, and the reverse complement."""

from collections.abc import Iterator

ACGT = b"ACGT"
IUPAC = b"ACGTRYSWKMBDHVN"  # bases, ambiguity codes and N, upper case
LETTERS = IUPAC + IUPAC.lower()
RNA_LETTERS = b"Uu"

_COMPLEMENT = bytes.maketrans(
    LETTERS + RNA_LETTERS, b"TGCAYRSWMKVHDBN" + b"tgcayrswmkvhdbn" + b"Aa"
)
_COMPARED, _PIECE = 1 << 12, 1 << 18  # bases
_RNA_TO_DNA = bytes.maketrans(RNA_LETTERS, b"Tt")


def reverse_complement(sequence: bytes) -> bytes:
    """The other strand, 5' to 3'; case is kept, and bytes that are not letters stay."""
    return sequence.translate(_COMPLEMENT)[::-1]


def to_dna(sequence: bytes) -> bytes:
    """The sequence with T for U, case kept."""
    return sequence.translate(_RNA_TO_DNA)


def canonical_pieces(sequence: bytes) -> Iterator[bytes]:
    """The same upper-case bytes for a DNA sequence and for its reverse complement.

    They are those of the strand that sorts first, in pieces that fit the CPU's cache; usually a few
    bases from both ends decide which strand that is.
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
