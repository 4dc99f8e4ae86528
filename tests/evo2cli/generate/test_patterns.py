"""Patterns against Python's `re`: the same matches end at the same places."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evo2cli.generate.constraints.automaton import Automaton, base_codes
from evo2cli.generate.constraints.patterns import (
    PatternError,
    parse_pattern,
    reverse_complemented,
)
from evo2cli.genome.alphabet import reverse_complement

CODES = {"A": "A", "C": "C", "G": "G", "T": "T", "u": "T", "R": "[AG]", "s": "[CG]", "W": "[AT]"}
CODES |= {"N": "[ACGT]", ".": "[ACGT]", "B": "[CGT]", "[CA]": "[CA]", "[GW]": "[GAT]"}

Both = tuple[str, str]  # a pattern, and the same for `re`


def joined(separator: str) -> st.SearchStrategy[Both]:
    return st.lists(patterns(), min_size=1, max_size=3).map(
        lambda parts: tuple(
            separator.join(f"({part[side]})" if separator else part[side] for part in parts)
            for side in (0, 1)
        )
    )


def repeated() -> st.SearchStrategy[Both]:
    operators = st.sampled_from(["*", "+", "?", "{2}", "{1,2}", "{2,}", "{0,1}"])
    return st.tuples(patterns(), operators).map(
        lambda found: (f"({found[0][0]}){found[1]}", f"({found[0][1]}){found[1]}")
    )


@st.composite
def patterns(draw: st.DrawFn) -> Both:
    kind = draw(st.sampled_from(["letter"] * 6 + ["sequence", "choice", "repeat"]))
    if kind == "letter":
        return draw(st.sampled_from(sorted(CODES.items())))
    if kind == "repeat":
        return draw(repeated())
    return draw(joined("" if kind == "sequence" else "|"))


def as_part(pattern: Both) -> Both:
    return f"({pattern[0]})", f"({pattern[1]})"


def ends(found: str, text: str) -> set[int]:
    """Where a match of one base or more ends, by `re`."""
    return {
        end
        for end in range(1, len(text) + 1)
        for start in range(end)
        if re.fullmatch(found, text[start:end])
    }


def ends_by_automaton(pattern: str, text: str, *, other: bool = False) -> set[int]:
    automaton = Automaton()
    tree = parse_pattern(pattern)
    automaton.add(reverse_complemented(tree) if other else tree, "it")
    state, found = automaton.EMPTY, set()
    for end in range(1, len(text) + 1):
        state = automaton.read(state, base_codes(text[end - 1 : end].encode()))
        if automaton.labels(state):
            found.add(end)
    return found


@given(st.lists(patterns().map(as_part), min_size=1, max_size=3), st.text("ACGT", max_size=9))
def test_matches_are_those_of_re(parts: list[Both], text: str) -> None:
    ours, theirs = ("".join(part[side] for part in parts) for side in (0, 1))
    if re.fullmatch(theirs, ""):
        with pytest.raises(PatternError, match="empty sequence"):
            ends_by_automaton(ours, text)
        return
    assert ends_by_automaton(ours, text) == ends(theirs, text)


@given(st.lists(patterns().map(as_part), min_size=1, max_size=3), st.text("ACGT", max_size=8))
def test_the_other_strand_matches_the_reverse_complement(parts: list[Both], text: str) -> None:
    ours, theirs = ("".join(part[side] for part in parts) for side in (0, 1))
    turned = reverse_complement(text.encode()).decode()
    matches = {
        (start, end)
        for end in range(1, len(text) + 1)
        for start in range(end)
        if re.fullmatch(theirs, text[start:end])
    }
    if not re.fullmatch(theirs, ""):
        starts = {len(text) - start for start, _ in matches}
        assert ends_by_automaton(ours, turned, other=True) == starts


def test_an_unknown_letter_ends_a_match() -> None:
    automaton = Automaton()
    automaton.add(parse_pattern("GNTC"), "motif")
    assert not automaton.labels(automaton.read(automaton.EMPTY, base_codes(b"GNTC")))
    assert automaton.labels(automaton.read(automaton.EMPTY, base_codes(b"NGATC"))) == ["motif"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the end at position 1: expected a base"),
        ("GAX", "'X' at position 3: expected a base or an IUPAC code"),
        ("A|", "the end at position 3: expected a base"),
        ("(AC", "expected )"),
        ("AC)", "')' at position 3: unmatched )"),
        ("[AC", "the end at position 4: expected a base"),
        ("A{3", "expected }"),
        ("A{}", "expected a number from 0 to 1,000"),
        ("A{5,2}", "{5,2} matches nothing"),
        ("A{0}", "{0,0} matches nothing"),
        ("*A", "'*' at position 1"),
        ("^A", "'^' at position 1"),
        ("(" * 21 + "A" + ")" * 21, "position 22: parentheses are more than 20 deep"),
        ("(" * 10**5, "parentheses are more than 20 deep"),
        ("A" + "?" * 21, "position 22: more than 20 operators on one part"),
    ],
)
def test_a_text_that_is_not_a_pattern_is_refused_with_the_position(text: str, message: str) -> None:
    with pytest.raises(PatternError, match=re.escape(message)):
        parse_pattern(text)


def test_the_size_of_a_pattern_is_limited() -> None:
    with pytest.raises(PatternError, match="more than 20,000 letters"):
        Automaton().add(parse_pattern("(A{1000}){1000}"), "long")


def test_the_deepest_patterns_are_read() -> None:
    deepest = parse_pattern("(" * 20 + "AC" + (")" + "{1}" * 20) * 20)
    automaton = Automaton()
    automaton.add(deepest, "deep")
    automaton.add(reverse_complemented(deepest), "reverse")
    assert automaton.labels(automaton.read(automaton.EMPTY, base_codes(b"AC"))) == ["deep"]
    assert automaton.labels(automaton.read(automaton.EMPTY, base_codes(b"GT"))) == ["reverse"]
    assert parse_pattern("(A)" * 30)  # side by side is not deep


def test_the_number_of_states_is_limited() -> None:
    automaton = Automaton()
    automaton.add(parse_pattern("AN{30}A"), "gap")
    assert automaton.reachable([automaton.EMPTY], 1000) is None
