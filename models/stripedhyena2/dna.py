"""The letters of DNA, the reverse complement, and sequences as the model reads them. No torch."""

import re
from collections.abc import Iterable, Mapping, Sequence, Set

from stripedhyena2.errors import InputError, check_choice

ACGT = b"ACGT"
IUPAC = b"ACGTRYSWKMBDHVN"  # bases, ambiguity codes and N, upper case
LETTERS = IUPAC + IUPAC.lower()
RNA_LETTERS = b"Uu"
STRANDS = {"fwd": ("fwd",), "rc": ("rc",), "both": ("fwd", "rc")}  # a choice: the strands read

_COMPLEMENT = bytes.maketrans(
    LETTERS + RNA_LETTERS, b"TGCAYRSWMKVHDBN" + b"tgcayrswmkvhdbn" + b"Aa"
)
_RNA_TO_DNA = bytes.maketrans(RNA_LETTERS, b"Tt")
_TAG = re.compile(rb"(\|[^|]*\|)")


def reverse_complement(sequence: bytes) -> bytes:
    """The other strand, 5' to 3'; keeps case, and bytes that are not letters of DNA."""
    return sequence.translate(_COMPLEMENT)[::-1]


def strands_of(choice: str) -> tuple[str, ...]:
    """The strands, "fwd" or "rc", that are read for a choice of `STRANDS`.

    Raises:
        InputError: It is not one of the choices.
    """
    check_choice("strand", choice, STRANDS)
    return STRANDS[choice]


def strand_of(sequence: bytes, strand: str) -> bytes:
    """One strand of a sequence, 5' to 3': the sequence itself or its reverse complement."""
    return sequence if strand == "fwd" else reverse_complement(sequence)


def to_dna(sequence: bytes) -> bytes:
    """The sequence with U replaced by T; keeps case."""
    return sequence.translate(_RNA_TO_DNA)


def as_read(sequence: bytes) -> bytes:
    """The sequence in the form that the model was trained on: upper case, T instead of U.

    The text of a lineage tag such as `|D__BACTERIA;P__PSEUDOMONADOTA|` keeps its U.
    """
    parts = _TAG.split(sequence.upper())
    return b"".join(part if part.startswith(b"|") else to_dna(part) for part in parts)


def check_sequences(
    sequences: Sequence[str | bytes],
    *,
    what: str = "sequence",
    min_length: int = 1,
    strands: Sequence[str] = ("fwd",),
) -> list[bytes]:
    """Validate the sequences of a user, and return them as bytes.

    Args:
        sequences: Text or bytes.
        what: What the error message calls a sequence.
        min_length: The minimum number of letters of a sequence.
        strands: The strands that are read.

    Raises:
        InputError: A single string was given instead of a list; or a sequence is neither text nor
            bytes, too short, not ASCII, has spaces, or has a lineage tag and its reverse strand is
            read; the message names its index.
    """
    if isinstance(sequences, str | bytes):
        raise InputError(f"expected a list of {what}s and got one; put it into a list: [{what}]")
    if isinstance(sequences, Mapping | Set) or not isinstance(sequences, Iterable):
        raise InputError(f"expected a list of {what}s and got {type(sequences).__name__}")
    found = []
    for index, sequence in enumerate(sequences):
        if not isinstance(sequence, str | bytes | bytearray):
            raise InputError(
                f"{what} {index}: is {type(sequence).__name__}, neither text nor bytes; give text, "
                "e.g. str(seq) of a Seq"
            )
        if not sequence.isascii():
            letter = next(c for c in sequence if (ord(c) if isinstance(c, str) else c) > 127)
            raise InputError(f"{what} {index}: {letter!r} is not ASCII; write N for unknown bases")
        text = sequence if isinstance(sequence, str) else bytes(sequence).decode()
        if not text.isprintable() or (" " in text and "|" not in text):  # tags may have spaces
            raise InputError(f"{what} {index}: has spaces or control characters; give letters only")
        if "|" in text and "rc" in strands:
            raise InputError(
                f"{what} {index}: a lineage tag has no reverse complement; give the DNA alone, or "
                "strand='fwd'"
            )
        if len(sequence) < min_length:
            problem, least = f"has only {len(sequence)} base", str(min_length)
            if not sequence:
                problem, least = "is empty", "one base" if min_length == 1 else f"{least} bases"
            raise InputError(f"{what} {index} {problem}; give at least {least}, or leave it out")
        found.append(sequence.encode() if isinstance(sequence, str) else bytes(sequence))
    return found
