"""Each baseline finds what it can know, and is at chance for what it cannot."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from evo2cli.finetune import baselines
from evo2cli.finetune.baselines import chance_baseline, kmer_baseline, position_baseline
from evo2cli.finetune.examples import Examples
from evo2cli.finetune.metrics import measure
from evo2cli.finetune.tasks import Labels, Task
from tests.evo2cli.finetune.dna import draw, turned

NUM = 300
TRAIN, TEST = np.arange(200), np.arange(200, NUM)
TWO = Labels(Task.CLASSIFY, ("no", "yes"))


def planted(kind: str) -> Examples:
    """Sequences in which a motif at the centre, or the GC content, is the label."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 2, NUM)
    sequences = []
    for label in labels:
        text = draw(generator, 120)
        if kind == "centre" and label:
            text = text[:58] + "GTAAG" + text[63:]
        if kind == "centre" and not label:  # the same word elsewhere: composition is no help
            place = int(generator.choice([5, 30, 100]))
            text = text[:place] + "GTAAG" + text[place + 5 :]
        if kind == "composition" and label:
            text = "".join(
                "G" if letter == "A" and generator.random() < 0.5 else letter for letter in text
            )
        sequences.append(text)
    return Examples([str(row) for row in range(NUM)], sequences, labels=labels)


def accuracy(examples: Examples, predicted: np.ndarray, labels: Labels = TWO) -> float:
    return measure(labels, examples.labels[TEST], predicted, bootstrap=0)["accuracy"].value


def test_positions_find_a_motif_at_the_centre_and_kmers_composition() -> None:
    examples = planted("centre")
    assert accuracy(examples, position_baseline(examples, TWO, TRAIN, TEST)) > 0.9
    assert accuracy(examples, kmer_baseline(examples, TWO, TRAIN, TEST)) < 0.7
    examples = planted("composition")
    assert accuracy(examples, kmer_baseline(examples, TWO, TRAIN, TEST)) > 0.9


def test_chance_predicts_the_shares_of_train() -> None:
    examples = planted("centre")
    found = chance_baseline(examples, TWO, TRAIN, TEST)
    assert found[0].tolist() == pytest.approx(np.bincount(examples.labels[TRAIN]) / len(TRAIN))
    assert measure(TWO, examples.labels[TEST], found, bootstrap=0)["auroc"].value == 0.5


def test_labels_of_test_are_never_read() -> None:
    examples = planted("centre")
    blind = replace(examples, labels=np.where(np.arange(NUM) < 200, examples.labels, 0))
    for baseline in (chance_baseline, kmer_baseline, position_baseline):
        np.testing.assert_array_equal(
            baseline(examples, TWO, TRAIN, TEST), baseline(blind, TWO, TRAIN, TEST)
        )


def test_sequences_of_different_lengths_have_no_common_centre() -> None:
    examples = planted("centre")
    shorter = replace(examples, sequences=[examples.sequences[0][:-1], *examples.sequences[1:]])
    assert position_baseline(shorter, TWO, TRAIN, TEST) is None
    assert kmer_baseline(shorter, TWO, TRAIN, TEST) is not None


def test_pairs_are_told_apart_by_their_difference() -> None:
    generator = np.random.default_rng(1)
    labels = generator.integers(0, 2, NUM)
    sequences = [draw(generator, 60) for _ in range(NUM)]
    pairs = [
        s[:30] + ("GG" if label else "TT") + s[32:]
        for s, label in zip(sequences, labels, strict=True)
    ]
    examples = Examples(sequences, sequences, pairs, labels)
    assert accuracy(examples, position_baseline(examples, TWO, TRAIN, TEST)) > 0.95


def test_numbers_and_flags_are_predicted_too() -> None:
    examples = planted("composition")
    share = np.array(
        [[s.count("G") / len(s), s.count("A")] for s in examples.sequences], np.float32
    )
    numbers = Labels(Task.REGRESS, ("gc", "a"))
    found = kmer_baseline(replace(examples, labels=share), numbers, TRAIN, TEST)
    assert measure(numbers, share[TEST], found, bootstrap=0)["r2"].value > 0.9
    flags = np.stack([examples.labels, np.zeros(NUM)], axis=1).astype(np.float32)
    found = kmer_baseline(
        replace(examples, labels=flags), Labels(Task.MULTILABEL, ("x", "y")), TRAIN, TEST
    )
    assert found.shape == (len(TEST), 2)
    assert found[:, 1].tolist() == [0] * len(TEST)


def test_labels_of_bases_are_predicted_from_their_neighbours() -> None:
    generator = np.random.default_rng(2)
    sequences = [draw(generator, int(generator.integers(60, 90))) for _ in range(NUM)]
    tokens = [
        np.array([int(s[max(0, i - 2) : i] == "AG") for i in range(len(s))]) for s in sequences
    ]
    examples = Examples(sequences, sequences, labels=tokens)
    labels = Labels(Task.TOKENS, ("no", "after AG"))
    truth = [tokens[row] for row in TEST]
    for baseline in (position_baseline, kmer_baseline):
        found = baseline(examples, labels, TRAIN, TEST)
        assert measure(labels, truth, found, bootstrap=0)["auprc"].value > 0.99
    chance = chance_baseline(examples, labels, TRAIN, TEST)
    assert [len(p) for p in chance] == [len(t) for t in truth]


def islands(num: int) -> tuple[Examples, Labels]:
    """Sequences of which a stretch, whose bases are labelled, has more C and G."""
    generator = np.random.default_rng(4)
    sequences, tokens = [], []
    for _ in range(num):
        start = int(generator.integers(50, 350))
        text = [*draw(generator, 500)]
        text[start : start + 100] = generator.choice([*"ACGT"], 100, p=[0.2, 0.3, 0.3, 0.2])
        sequences.append("".join(text))
        tokens.append(np.array([int(start <= i < start + 100) for i in range(500)]))
    return Examples(sequences, sequences, labels=tokens), Labels(Task.TOKENS, ("sea", "island"))


def test_kmers_around_a_base_tell_more_than_its_neighbours() -> None:
    examples, labels = islands(300)
    train, test = np.arange(200), np.arange(200, 300)
    found = {}
    for baseline in (position_baseline, kmer_baseline):
        predicted = baseline(examples, labels, train, test)
        metrics = measure(labels, [examples.labels[r] for r in test], predicted, bootstrap=0)
        found[baseline] = metrics["auroc"].value
    assert found[kmer_baseline] > found[position_baseline] + 0.05


@pytest.mark.parametrize("baseline", [position_baseline, kmer_baseline])
def test_long_sequences_are_predicted_in_pieces(
    baseline: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    examples, labels = islands(12)
    train, test = np.arange(8), np.arange(8, 12)
    whole = baseline(examples, labels, train, test)
    monkeypatch.setattr(baselines, "MAX_BASES", 37)
    for one, other in zip(whole, baseline(examples, labels, train, test), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7)


def test_a_class_that_is_too_rare_to_be_drawn_has_probability_zero(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    examples, labels = islands(6)
    rare = [np.where(np.arange(500) == 7, row == 0, 0).astype(np.int64) for row in range(6)]
    monkeypatch.setattr(baselines, "MAX_ROWS", 20)
    for predicted in kmer_baseline(replace(examples, labels=rare), labels, np.arange(3), [3, 5]):
        assert predicted.tolist() == [[1, 0]] * 500


@pytest.mark.parametrize("baseline", [position_baseline, kmer_baseline])
def test_a_sequence_of_which_no_base_is_drawn_is_left_out(
    baseline: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    examples, labels = islands(100)
    monkeypatch.setattr(baselines, "MAX_ROWS", 100)  # one of each, on the average
    for predicted in baseline(examples, labels, np.arange(98), [98, 99]):
        assert predicted.shape == (500, 2)


def test_bases_without_a_label_are_not_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """So few labels give the same model whatever stands around them without a label."""
    examples, labels = islands(6)
    hidden = [np.where(np.arange(500) % 10 == 0, own, -100) for own in examples.labels]
    monkeypatch.setattr(baselines, "MAX_ROWS", 6 * 50)
    found = position_baseline(replace(examples, labels=hidden), labels, np.arange(6), [0])
    monkeypatch.setattr(baselines, "MAX_ROWS", 20_000)
    again = position_baseline(replace(examples, labels=hidden), labels, np.arange(6), [0])
    np.testing.assert_array_equal(found, again)


@pytest.mark.parametrize("k", [1, 3])
def test_kmers_around_a_place_are_those_of_its_window(k: int) -> None:
    generator = np.random.default_rng(6)
    text = draw(generator, 230)
    text = text[:100] + "N" + text[101:]
    places = np.array([0, 1, 60, 100, 103, 229])
    found = baselines._kmers_around(text, k, places)
    side = baselines.AROUND_KMERS
    for place, own in zip(places, found, strict=True):
        window = text[max(0, place - side) : place + side + 1]
        wanted = np.zeros(4**k)
        for start in range(len(window) - k + 1):
            word = window[start : start + k]
            if "N" not in word:
                wanted[int("".join(str("ACGT".index(base)) for base in word), 4)] += 1
        np.testing.assert_allclose(own, wanted / (2 * side + 2 - k), rtol=1e-6)


def test_kmers_are_counted_as_they_are_read() -> None:
    found = baselines._kmer_frequencies("ACGNACGT", 2)
    words = ["AC", "CG", "AC", "CG", "GT"]
    wanted = np.zeros(16)
    for word in words:
        wanted["ACGT".index(word[0]) * 4 + "ACGT".index(word[1])] += 1 / 7
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
    assert baselines._kmer_frequencies("A", 2).sum() == 0
    assert turned("AC") == "GT"  # so that the two strands of a word count apart above


def test_large_sets_are_drawn_from_by_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baselines, "MAX_ROWS", 150)
    examples = planted("centre")
    first, same, other = (
        position_baseline(examples, TWO, TRAIN, TEST, seed=seed) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, same)
    assert (first != other).any()
    assert accuracy(examples, first) > 0.85
