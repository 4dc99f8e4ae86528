"""Laws of the other strand."""

from hypothesis import given
from hypothesis import strategies as st

from evo2cli.genome.alphabet import LETTERS, canonical_pieces, reverse_complement, to_dna


def canonical(sequence: bytes) -> bytes:
    return b"".join(canonical_pieces(sequence))


sequences = st.lists(st.sampled_from(list(LETTERS)), max_size=300).map(bytes)


@given(sequences)
def test_twice_is_once(sequence: bytes) -> None:
    assert reverse_complement(reverse_complement(sequence)) == sequence


@given(sequences)
def test_both_strands_have_one_canonical_form(sequence: bytes) -> None:
    form = canonical(sequence)
    assert form == canonical(reverse_complement(sequence)) == canonical(sequence.lower())
    assert form in (sequence.upper(), reverse_complement(sequence).upper())


def test_palindromes_longer_than_one_look() -> None:
    half = b"ACGGT" * 80_000  # more than one piece too
    palindrome = half + reverse_complement(half)
    assert canonical(palindrome) == palindrome
    assert canonical(palindrome + b"A") == canonical(b"T" + palindrome)


def test_known_letters() -> None:
    assert reverse_complement(b"ACGTNacgtn") == b"nacgtNACGT"
    assert reverse_complement(b"RYSWKMBDHV") == b"BDHVKMWSRY"
    assert reverse_complement(b"AU-") == b"-AT"
    assert to_dna(b"UuTt-") == b"TtTt-"
