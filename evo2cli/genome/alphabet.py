"""The letters of DNA, and the other strand."""

from collections.abc import Iterator

ACGT = b"ACGT"
IUPAC = b"ACGTRYSWKMBDHVN"  # bases, ambiguity codes and N, upper case
LETTERS = IUPAC + IUPAC.lower()
RNA_LETTERS = b"Uu"

_COMPLEMENT = bytes.maketrans(
    LETTERS + RNA_LETTERS, b"TGCAYRSWMKVHDBN" + b"tgcayrswmkvhdbn" + b"Aa"
)
_LOOK, _PIECE = 1 << 12, 1 << 18  # bases
_RNA_TO_DNA = bytes.maketrans(RNA_LETTERS, b"Tt")


def reverse_complement(sequence: bytes) -> bytes:
    """The other strand, read in its own direction; case and bytes that are no letter stay."""
    return sequence.translate(_COMPLEMENT)[::-1]


def to_dna(sequence: bytes) -> bytes:
    """The same with T for U, case kept."""
    return sequence.translate(_RNA_TO_DNA)


def canonical_pieces(sequence: bytes) -> Iterator[bytes]:
    """The same upper-case bytes for a DNA sequence and for its reverse complement.

    It is the strand that sorts first, given piece by piece to stay in the cache; a few bases from
    both ends decide which strand that is.
    """
    looks = zip(_upper(sequence, _LOOK), _upper_reverse(sequence, _LOOK), strict=True)
    is_first = next((ahead < back for ahead, back in looks if ahead != back), True)
    return (_upper if is_first else _upper_reverse)(sequence, _PIECE)


def _upper(sequence: bytes, size: int) -> Iterator[bytes]:
    for start in range(0, len(sequence), size):
        yield sequence[start : start + size].upper()


def _upper_reverse(sequence: bytes, size: int) -> Iterator[bytes]:
    for end in range(len(sequence), 0, -size):
        yield reverse_complement(sequence[max(0, end - size) : end]).upper()
