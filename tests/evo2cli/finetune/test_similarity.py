"""Copies and near copies, on both strands."""

from itertools import combinations

import numpy as np
import pytest

from evo2cli.finetune.similarity import (
    NEAR,
    SKETCH,
    K,
    canonical,
    cluster,
    number_copies,
    similarities,
    sketch,
)
from tests.evo2cli.finetune.dna import draw, mutated, turned


def slow_sketch(sequence: str) -> set[int]:
    """The smallest hashes of all k-mers, one sequence at a time."""
    kmers = {
        min(word, turned(word))
        for word in (sequence[i : i + K] for i in range(len(sequence) - K + 1))
        if set(word) <= set("ACGT")
    }
    hashes = sketch(sorted(kmers))[:, 0]  # each k-mer as a sequence of its own
    return set(np.sort(np.unique(hashes))[:SKETCH].tolist())


@pytest.mark.parametrize("length", [5, 16, 17, 60, 300, 2000])
def test_a_sketch_is_the_smallest_hashes_of_the_kmers_of_both_strands(length: int) -> None:
    generator = np.random.default_rng(length)
    sequences = [draw(generator, length), "ACGT" * (length // 4), draw(generator, length)]
    sequences[2] = sequences[2][: length // 2] + "N" + sequences[2][length // 2 + 1 :]
    found = sketch(sequences)
    for row, sequence in zip(found, sequences, strict=True):
        hashes = row[row != 0xFFFFFFFF].tolist()
        assert hashes == sorted(slow_sketch(sequence))
    np.testing.assert_array_equal(found, sketch([turned(sequence) for sequence in sequences]))
    for index in range(3):  # alone or among others
        np.testing.assert_array_equal(found[index], sketch(sequences[index : index + 1])[0])


def family(generator: np.random.Generator) -> list[str]:
    """Unrelated sequences, copies of each with more and more mutations, and parts of them."""
    found = []
    for _ in range(6):
        parent = draw(generator, int(generator.integers(40, 400)))
        found.append(parent)
        for count in (1, 2, 4, 8, 16):
            child = mutated(generator, parent, min(count, len(parent)))
            found.append(turned(child) if generator.random() < 0.5 else child)
        found.append(parent[: len(parent) // 2] + draw(generator, len(parent) // 2))
    repeat = draw(generator, 60)  # in otherwise unrelated sequences, more than are compared at once
    return found + [draw(generator, 50) + repeat + draw(generator, 50) for _ in range(40)]


@pytest.mark.parametrize("similarity", [0.2, NEAR, 0.9])
def test_clusters_are_the_linked_groups_of_all_similar_pairs(similarity: float) -> None:
    """Against a comparison of each with each: none above the similarity are apart."""
    sequences = family(np.random.default_rng(0))
    found = cluster([(sequence,) for sequence in sequences], similarity)
    pairs = np.array(list(combinations(range(len(sequences)), 2)))
    near = pairs[similarities(sketch(sequences), pairs) >= similarity]
    wanted = list(range(len(sequences)))
    for one, other in near.tolist():
        old, new = wanted[other], wanted[one]
        wanted = [new if label == old else label for label in wanted]
    numbers: dict[int, int] = {}
    assert found.tolist() == [numbers.setdefault(label, len(numbers)) for label in wanted]
    assert 6 < len(set(found)) < len(sequences)


def test_clusters_do_not_depend_on_order_or_strand() -> None:
    generator = np.random.default_rng(1)
    sequences = family(generator)
    order = generator.permutation(len(sequences))
    first = cluster([(sequence,) for sequence in sequences])
    second = cluster([(turned(sequences[row]),) for row in order])
    assert len({*zip(first[order].tolist(), second.tolist(), strict=True)}) == len(set(first))


def test_sequences_too_short_for_a_kmer_are_near_their_copies_only() -> None:
    found = cluster([("ACG",), ("CGT",), ("ACC",), ("A" * 40,), ("T" * 40,), ("N" * 40,)])
    assert found.tolist() == [0, 0, 1, 2, 2, 3]


def test_many_variants_of_one_sequence_are_one_cluster() -> None:
    generator = np.random.default_rng(2)
    parents = [draw(generator, 200) for _ in range(2)]
    entries = [(mutated(generator, parents[i % 2], 1),) for i in range(600)]
    assert cluster(entries).tolist() == [0, 1] * 300


def test_a_pair_is_turned_as_a_whole() -> None:
    assert canonical(("AC", "GG")) == canonical(("GT", "CC"))
    assert canonical(("AC", "GG")) != canonical(("CC", "GT"))
    numbers, entries = number_copies([("AC", "GG"), ("CC", "GT"), ("GT", "CC")])
    assert numbers.tolist() == [0, 1, 0]
    assert len(entries) == 2
