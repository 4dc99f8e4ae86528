"""Splits: each row once, units whole, fractions met, the same for the same seed."""

from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest

from evo2cli.errors import UserError
from evo2cli.finetune.examples import Examples
from evo2cli.finetune.similarity import cluster, similarities, sketch
from evo2cli.finetune.splits import Split, split
from evo2cli.finetune.tasks import Labels, SplitBy, Task
from tests.evo2cli.finetune.dna import draw, mutated, turned

NUM = 300
BINARY = Labels(Task.CLASSIFY, ("no", "yes"))


@pytest.fixture(scope="module")
def examples() -> Examples:
    """Families of three near copies, on 10 chromosomes and in 60 groups."""
    generator = np.random.default_rng(0)
    parents = [draw(generator, 100) for _ in range(NUM // 3)]
    sequences = [mutated(generator, parents[row % len(parents)], 1) for row in range(NUM)]
    return Examples(
        names=[str(row) for row in range(NUM)],
        sequences=[turned(s) if row % 2 else s for row, s in enumerate(sequences)],
        labels=generator.integers(0, 2, NUM),
        chromosomes=[f"{('chr', '')[row % 3 > 0]}{row % 10}" for row in range(NUM)],
        groups=[f"g{generator.integers(60)}" for row in range(NUM)],
    )


def check_whole(found: Split, num: int) -> None:
    """Each row is in one part."""
    rows = np.concatenate(list(found.parts.values()))
    assert sorted(rows.tolist()) == list(range(num))


@pytest.mark.parametrize("by", [b for b in SplitBy if b is not SplitBy.COLUMN])
@pytest.mark.parametrize("seed", range(3))
def test_units_are_whole_and_fractions_are_met(examples: Examples, by: SplitBy, seed: int) -> None:
    found = split(examples, BINARY, by=by, seed=seed, fractions=(0.6, 0.2, 0.2))
    check_whole(found, NUM)
    for name, fraction in zip(found.parts, (0.6, 0.2, 0.2), strict=True):
        assert len(found.parts[name]) == pytest.approx(fraction * NUM, abs=NUM // 10)
    plain = [name.removeprefix("chr") for name in examples.chromosomes]
    names = {SplitBy.CHROMOSOME: plain, SplitBy.GROUP: examples.groups}.get(by)
    if names is not None:
        parts = defaultdict(set)
        for part, rows in found.parts.items():
            for row in rows:
                parts[names[row]].add(part)
        assert all(len(owners) == 1 for owners in parts.values())
    assert by in found.explanation


def test_a_cluster_split_never_separates_similar_sequences(examples: Examples) -> None:
    found = split(examples, BINARY, by=SplitBy.CLUSTER)
    sketches = sketch(examples.sequences)
    test = set(found.test.tolist())
    pairs = np.array([(a, b) for a in test for b in range(NUM) if b not in test])
    assert similarities(sketches, pairs).max() < 0.5
    random = split(examples, BINARY, by=SplitBy.RANDOM)
    test = set(random.test.tolist())
    pairs = np.array([(a, b) for a in test for b in range(NUM) if b not in test])
    assert similarities(sketches, pairs).max() > 0.5


def test_a_random_split_is_stratified_and_keeps_copies_together(examples: Examples) -> None:
    copied = replace(
        examples,
        sequences=[turned(s) for s in examples.sequences[:150]] + examples.sequences[:150],
        labels=np.array(([0] * 9 + [1]) * 30),
    )
    found = split(copied, BINARY, by=SplitBy.RANDOM)
    for rows in found.parts.values():
        assert copied.labels[rows].mean() == pytest.approx(0.1, abs=0.04)
        assert {row % 150 for row in rows.tolist()} == {row % 150 for row in [*rows, *(rows + 150)]}


def test_the_seed_decides(examples: Examples) -> None:
    first, same, other = (split(examples, BINARY, by=SplitBy.GROUP, seed=s) for s in (1, 1, 2))
    assert first.test.tolist() == same.test.tolist() != other.test.tolist()


def test_a_column_is_followed_and_a_missing_valid_is_taken_from_train(examples: Examples) -> None:
    names = (["train"] * 8 + ["valid", "test"]) * 30
    found = split(replace(examples, split=names), BINARY)
    assert [names[row] for part in found.parts.values() for row in part] == (
        ["train"] * 240 + ["valid"] * 30 + ["test"] * 30
    )
    names = ["train"] * 240 + ["test"] * 60
    found = split(replace(examples, split=names, groups=None), BINARY)
    check_whole(found, NUM)
    assert found.test.tolist() == list(range(240, 300))
    assert 15 <= len(found.valid) <= 40
    clusters = cluster(examples.entries)
    assert not set(clusters[found.train]) & set(clusters[found.valid])
    assert "has no validation split" in found.explanation


def test_the_usual_split_is_the_safest_that_the_data_has(examples: Examples) -> None:
    assert "by group" in split(examples, BINARY).explanation
    without = replace(examples, groups=None)
    assert "by chromosome" in split(without, BINARY).explanation
    few = replace(without, chromosomes=["1", "2"] * 150)
    assert "by cluster" in split(few, BINARY).explanation


def test_contigs_are_divided_as_they_are_named(examples: Examples) -> None:
    """Under any of their names, and whatever a column says."""
    named = replace(examples, split=["test"] * NUM)
    found = split(named, BINARY, contigs={"valid": ["chr3", "5"], "test": ["4"]})
    parts = {"3": "valid", "5": "valid", "4": "test"}
    wanted = [parts.get(name.removeprefix("chr"), "train") for name in examples.chromosomes]
    for part, own in found.parts.items():
        assert own.tolist() == [row for row in range(NUM) if wanted[row] == part]
    assert found.explanation == "split by contig: chr3,5 for valid, 4 for test"
    alone = split(examples, BINARY, contigs={"valid": ["1"], "test": []})
    assert (len(alone.valid), len(alone.test)) == (30, 0)


def test_without_valid_contigs_groups_of_train_are_for_validation(examples: Examples) -> None:
    found = split(examples, BINARY, contigs={"valid": [], "test": ["chr2"]})
    check_whole(found, NUM)
    assert found.test.tolist() == list(range(2, NUM, 10))
    sides = [{examples.groups[row] for row in rows} for rows in (found.train, found.valid)]
    assert not sides[0] & sides[1]
    assert (
        "it has no validation split, so 11% of the training split are used, by group"
        in found.explanation
    )


@pytest.mark.parametrize(
    ("changes", "contigs", "message"),
    [
        ({"chromosomes": None}, {"test": ["1"]}, "--test-contigs 1: .* no column 'chrom'"),
        ({"chromosomes": ["", "1"] * 150}, {"test": ["1"]}, "or it has empty cells"),
        (
            {},
            {"valid": ["chr11"]},
            "--valid-contigs chr11: no sequence .* chr0, 1, 2, chr3, 4, ",
        ),
        ({}, {"valid": ["1"], "test": ["chr1"]}, "--test-contigs chr1: is already used for valid"),
        (
            {},
            {"valid": ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"]},
            "the train split is empt",
        ),
    ],
)
def test_contigs_that_cannot_be_divided_are_refused(
    examples: Examples, changes: dict, contigs: dict, message: str
) -> None:
    with pytest.raises(UserError, match=message) as raised:
        split(replace(examples, **changes), BINARY, contigs=contigs)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("changes", "by", "message"),
    [
        ({"split": None}, SplitBy.COLUMN, "no column 'split'"),
        ({"groups": None}, SplitBy.GROUP, "no column 'group'"),
        ({"groups": ["", "b"] * 150}, SplitBy.GROUP, "no column 'group', or it has empty cells"),
        ({"chromosomes": None}, SplitBy.CHROMOSOME, "no column 'chrom'"),
        ({"groups": ["a", "b"] * 150}, SplitBy.GROUP, "2 groups .a, b. are too few for a"),
        ({"split": ["test"] * NUM}, SplitBy.COLUMN, "the train split is empty"),
        (
            {"split": ["train"] * 299 + ["valid"]},
            SplitBy.COLUMN,
            "the valid split has only examples of",
        ),
        ({"labels": np.zeros(NUM, int)}, SplitBy.GROUP, "the training split has no example of yes"),
    ],
)
def test_a_split_that_teaches_nothing_is_refused(
    examples: Examples, changes: dict, by: SplitBy, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        split(replace(examples, **changes), BINARY, by=by)


def test_other_tasks_are_checked_too(examples: Examples) -> None:
    constant = replace(examples, labels=np.ones((NUM, 1), np.float32))
    with pytest.raises(UserError, match="score is 1 in all training examples"):
        split(constant, Labels(Task.REGRESS, ("score",)))
    with pytest.raises(UserError, match="the training split has no example of b"):
        split(replace(examples, labels=np.eye(1, 2).repeat(NUM, 0)), Labels(Task.MULTILABEL, "ab"))
    tokens = replace(examples, labels=[np.array([0, -100])] * NUM)
    with pytest.raises(UserError, match="the training split has no example of exon"):
        split(tokens, Labels(Task.TOKENS, ("none", "exon")))


def test_as_many_units_as_parts_fill_each_part(examples: Examples) -> None:
    three = replace(examples, groups=["a", "b", "c"] * 100)
    found = split(three, BINARY, by=SplitBy.GROUP)
    assert [len(rows) for rows in found.parts.values()] == [100, 100, 100]
