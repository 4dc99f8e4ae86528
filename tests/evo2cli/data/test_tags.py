"""Tags against an oracle that takes a text apart letter by letter."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evo2cli.data.tags import find_tags, read_tag, split_tag
from evo2cli.errors import UserError

LETTERS = "ACGTacgtN|_; d#@\0"


def oracle(text: str) -> list[str]:
    """For each letter: "t" in a tag, "m" a sign of its own, "." neither."""
    found = ["m" if letter in "@#" else "." for letter in text]
    start = 0
    for end in range(len(text) + 1):
        if end < len(text) and text[end] not in "|\0":
            continue
        if any(letter in "_ ;" for letter in text[start:end]):
            for place in range(start - 1, end + 1):
                if 0 <= place < len(text) and text[place] != "\0":
                    found[place] = "t"
        start = end + 1
    return found


@given(st.text(LETTERS, max_size=60))
def test_tags_are_those_of_the_oracle(text: str) -> None:
    found = find_tags(np.frombuffer(text.encode(), np.uint8))
    expected = oracle(text)
    if found is None:
        assert set(expected) <= {"."}
        return
    tags, masked = found
    assert tags.tolist() == [letter == "t" for letter in expected]
    assert masked.tolist() == [
        letter != "." or sign in "@#" for letter, sign in zip(expected, text, strict=True)
    ]


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("|d__Bacteria;p__Bacillota|ACGT\0", "1" * 26 + "00000"),
        ("AC|GT|AC", "00000000"),
        ("AC|s__x y|GT|AC", "001111111100000"),
        ("acgt_ac\0ACGT", "111111100000"),
        ("AC@GT#AC", "00100100"),
        ("\0|k__A|\0", "01111110"),
    ],
)
def test_tags_of_texts_one_can_check(text: str, masked: str) -> None:
    found = find_tags(np.frombuffer(text.encode(), np.uint8))
    shown = "0" * len(text) if found is None else "".join(map(str, found[1].astype(int)))
    assert shown == masked


def test_the_tag_of_a_record_is_the_same_as_the_option() -> None:
    tag = b"|D__BACTERIA;S__E COLI|"
    for text in ("d__Bacteria;s__E coli", "|D__Bacteria;S__E coli|"):
        assert read_tag(text) == tag
        assert split_tag("x", b"acgu", read_tag(text)) == (tag, b"ACGT")
    assert split_tag("x", b"|d__Bacteria;s__E coli|acgu") == (tag, b"ACGT")
    assert split_tag("x", b"acgu") == (b"", b"ACGT")


@pytest.mark.parametrize(
    ("sequence", "tag", "message"),
    [
        (
            b"|D__X|AC",
            b"|D__Y|",
            "x.fa: record 'a' begins with a lineage tag of its own; leave out --tag",
        ),
        (b"|ACGT|AC", b"", "x.fa: record 'a': |ACGT|: not a lineage such as"),
        (
            b"|D__X|AC|D__Y|",
            b"",
            "'|' at position 3: part of a lineage tag; put it all first",
        ),
        (b"|D__X", b"", "'|' at position 1: part of a lineage tag"),
        (b"|\xff__X|AC", b"", "not a lineage such as"),
    ],
)
def test_an_invalid_tag_is_refused(sequence: bytes, tag: bytes, message: str) -> None:
    with pytest.raises(UserError) as caught:
        split_tag("x.fa: record 'a'", sequence, tag)
    assert message in str(caught.value)
