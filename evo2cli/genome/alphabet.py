"""The letters of DNA, and the other strand."""

ACGT = b"ACGT"
IUPAC = b"ACGTRYSWKMBDHVN"  # bases, ambiguity codes and N, upper case
LETTERS = IUPAC + IUPAC.lower()
RNA_LETTERS = b"Uu"

_COMPLEMENT = bytes.maketrans(
    LETTERS + RNA_LETTERS, b"TGCAYRSWMKVHDBN" + b"tgcayrswmkvhdbn" + b"Aa"
)
_RNA_TO_DNA = bytes.maketrans(RNA_LETTERS, b"Tt")


def reverse_complement(sequence: bytes) -> bytes:
    """The other strand, read in its own direction; case and bytes that are no letter stay."""
    return sequence.translate(_COMPLEMENT)[::-1]


def to_dna(sequence: bytes) -> bytes:
    """The same with T for U, case kept."""
    return sequence.translate(_RNA_TO_DNA)


def canonical(sequence: bytes) -> bytes:
    """The same upper-case bytes for a DNA sequence and for its reverse complement.

    It is the strand that sorts first; a few bases from both ends decide that, so the other strand
    is made only when it is the answer.
    """
    upper = sequence.upper()
    step = 64
    for start in range(0, len(upper), step):
        end = len(upper) - start
        head, tail = (
            upper[start : start + step],
            reverse_complement(upper[max(0, end - step) : end]),
        )
        if head != tail:
            return upper if head < tail else reverse_complement(upper)
    return upper
