"""Copies across splits are found on both strands, and refused; near copies are reported."""

from dataclasses import replace

import numpy as np
import pytest

from evo2cli.errors import UserError
from evo2cli.finetune.examples import Examples
from evo2cli.finetune.leaks import find_leaks
from evo2cli.finetune.splits import Split
from tests.evo2cli.finetune.dna import draw, mutated, turned

NUM = 30
SPLIT = Split(np.arange(10), np.arange(10, 20), np.arange(20, 30))


@pytest.fixture
def examples() -> Examples:
    generator = np.random.default_rng(0)
    return Examples([f"s{row}" for row in range(NUM)], [draw(generator, 200) for _ in range(NUM)])


def planted(examples: Examples, places: dict[int, str]) -> Examples:
    return replace(
        examples, sequences=[places.get(row, s) for row, s in enumerate(examples.sequences)]
    )


def test_unrelated_sequences_do_not_leak(examples: Examples) -> None:
    found = find_leaks(examples, SPLIT)
    found.refuse()
    for leak in found.found:
        assert (leak.size, leak.identical, leak.reverse, leak.near) == (10, 0, 0, 0)
    assert len(found.report) == 2


def test_copies_reverse_complements_and_near_copies_are_counted(examples: Examples) -> None:
    sequences = examples.sequences
    generator = np.random.default_rng(1)
    found = find_leaks(
        planted(
            examples,
            {
                12: mutated(generator, sequences[3], 2),
                21: sequences[0],
                22: turned(sequences[1]),
                23: turned(mutated(generator, sequences[11], 2)),
                24: sequences[20],  # within test
                5: sequences[4],  # within train
            },
        ),
        SPLIT,
    )
    valid, test = found.found
    assert (valid.identical, valid.reverse, valid.near) == (0, 0, 1)
    assert (test.identical, test.reverse, test.near) == (1, 1, 1)
    assert test.first == "s21 of test and s0 of train"
    assert test.first_near == "s23 of test and s11 of valid"
    assert "1 near copy " in found.report[0]
    with pytest.raises(UserError, match=r"test: 1 copy and 1 reverse complement .* among 10") as e:
        found.refuse()
    assert "s21 of test and s0 of train" in str(e.value)
    assert "\n" not in str(e.value)


def test_a_reverse_complement_alone_is_refused(examples: Examples) -> None:
    leaky = planted(examples, {10: turned(examples.sequences[9])})
    with pytest.raises(UserError, match=r"valid: 0 copies and 1 reverse .* among 10"):
        find_leaks(leaky, SPLIT).refuse()


def test_a_pair_leaks_only_as_a_pair(examples: Examples) -> None:
    first = examples.sequences
    pairs = [turned(s) for s in first]
    other = draw(np.random.default_rng(5), 200)
    apart = replace(planted(examples, {20: first[0]}), pairs=[*pairs[:20], other, *pairs[21:]])
    find_leaks(apart, SPLIT).refuse()
    whole = replace(
        planted(examples, {20: turned(first[0])}), pairs=[*pairs[:20], first[0], *pairs[21:]]
    )
    with pytest.raises(UserError, match="1 reverse"):
        find_leaks(whole, SPLIT).refuse()


def test_copies_of_another_class_are_counted(examples: Examples) -> None:
    copied = planted(examples, {1: turned(examples.sequences[0]), 3: examples.sequences[2]})
    labels = np.zeros(NUM, np.int64)
    assert find_leaks(replace(copied, labels=labels), SPLIT).contradictions == 0
    labels[1] = 1
    found = find_leaks(replace(copied, labels=labels), SPLIT)
    assert found.contradictions == 2
    assert "2 sequences have copies" in found.report[0]
