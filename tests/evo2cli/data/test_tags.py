"""Tags against an oracle that takes a text apart letter by letter."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evo2cli.data.tags import find_tags

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
