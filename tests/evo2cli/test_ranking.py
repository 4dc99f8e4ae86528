"""AUROC and average precision are their definitions, and intervals what theory says."""

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evo2cli import ranking
from evo2cli.ranking import (
    MAX_COUNTS,
    Counts,
    Estimate,
    Values,
    area_under_roc,
    mean_estimate,
    rank,
    roc_curve,
)

SCORES = st.lists(st.tuples(st.integers(-5, 5), st.booleans()), min_size=2, max_size=40).filter(
    lambda pairs: len({label for _, label in pairs}) == 2
)


def wins(scores: list[float], positive: list[bool]) -> float:
    """Mann-Whitney by its definition: every positive against every negative."""
    highs = [score for score, label in zip(scores, positive, strict=True) if label]
    lows = [score for score, label in zip(scores, positive, strict=True) if not label]
    points = sum(1.0 if h > low else 0.5 if h == low else 0.0 for h in highs for low in lows)
    return points / (len(highs) * len(lows))


def slow_average_precision(scores: list[float], positive: list[bool]) -> float:
    """The threshold falls past each score in turn; precision by the recall it adds."""
    total, recall = 0.0, 0.0
    for threshold in sorted(set(scores), reverse=True):
        called = [label for s, label in zip(scores, positive, strict=True) if s >= threshold]
        reached = sum(called) / sum(positive)
        total += (reached - recall) * sum(called) / len(called)
        recall = reached
    return total


@given(SCORES)
def test_auroc_is_mann_whitney_and_auprc_the_slow_one(pairs: list[tuple[int, bool]]) -> None:
    scores, positive = [float(s) for s, _ in pairs], [label for _, label in pairs]
    found = rank(scores, positive)
    assert found.auroc.value == pytest.approx(wins(scores, positive))
    assert found.auprc.value == pytest.approx(slow_average_precision(scores, positive))
    for estimate in (found.auroc, found.auprc):
        assert 0 <= estimate.low <= estimate.high <= 1


@given(SCORES)
def test_swapped_labels_and_turned_scores_give_the_rest(pairs: list[tuple[int, bool]]) -> None:
    scores, positive = [float(s) for s, _ in pairs], [label for _, label in pairs]
    area = rank(scores, positive).auroc.value
    assert rank(scores, [not label for label in positive]).auroc.value == pytest.approx(1 - area)
    assert rank([-s for s in scores], positive).auroc.value == pytest.approx(1 - area)


@given(SCORES)
def test_the_roc_curve_has_that_area(pairs: list[tuple[int, bool]]) -> None:
    scores, positive = [float(s) for s, _ in pairs], [label for _, label in pairs]
    false, true = roc_curve(scores, positive)
    assert (false[0], true[0], false[-1], true[-1]) == (0, 0, 1, 1)
    assert np.trapezoid(true, false) == pytest.approx(rank(scores, positive).auroc.value)


@given(SCORES, st.randoms())
def test_the_order_does_not_matter(pairs: list[tuple[int, bool]], draw: random.Random) -> None:
    shuffled = draw.sample(pairs, len(pairs))
    assert rank(*zip(*pairs, strict=True)) == rank(*zip(*shuffled, strict=True))


@pytest.mark.parametrize("seed", range(10))
def test_random_scores_are_a_coin_and_intervals_hold_the_value(seed: int) -> None:
    draw = np.random.default_rng(seed)
    positive = (draw.random(2000) < 0.3).tolist()
    found = rank(draw.normal(size=2000).tolist(), positive, seed=seed)
    assert found.auroc.value == pytest.approx(0.5, abs=0.05)
    assert found.auprc.value == pytest.approx(np.mean(positive), abs=0.05)
    for estimate in (found.auroc, found.auprc):
        assert estimate.low < estimate.value < estimate.high
        assert estimate.high - estimate.low < 0.1


def test_intervals_are_as_wide_as_theory_says() -> None:
    """The variance of AUROC under no difference is (m + n + 1) / 12mn."""
    draw = np.random.default_rng(0)
    positive = [True] * 300 + [False] * 500
    found = rank(draw.normal(size=800).tolist(), positive).auroc
    expected = 2 * 1.96 * (801 / (12 * 300 * 500)) ** 0.5
    assert found.high - found.low == pytest.approx(expected, rel=0.1)


def test_intervals_come_in_pieces_as_in_one() -> None:
    """Memory is bounded; what little it changes is the order of draws."""
    draw = np.random.default_rng(0)
    scores, positive = draw.normal(size=200).tolist(), (draw.random(200) < 0.5).tolist()
    whole = rank(scores, positive)
    pieces = rank(scores, positive, max_counts=200 * 7)
    assert pieces.auroc.value == whole.auroc.value
    assert pieces.auroc.low == pytest.approx(whole.auroc.low, abs=0.01)


@pytest.mark.parametrize(("max_counts", "rows"), [(MAX_COUNTS, 1000), (200 * 7, 7), (50, 1)])
def test_a_thousand_resamples_come_in_pieces_that_fit(
    monkeypatch: pytest.MonkeyPatch, max_counts: int, rows: int
) -> None:
    sizes: list[tuple[int, int]] = []

    def watch(positives_BU: Counts, negatives_BU: Counts) -> Values:
        sizes.append(positives_BU.shape)
        return area_under_roc(positives_BU, negatives_BU)

    monkeypatch.setattr(ranking, "area_under_roc", watch)
    scores = np.random.default_rng(0).normal(size=200).tolist()
    rank(scores, [True, False] * 100, max_counts=max_counts)
    *pieces, measured = sizes
    assert measured == (1, 200)
    assert max(pieces) == (rows, 200)
    assert sum(count for count, _ in pieces) == 1000


@pytest.mark.parametrize("shares", [(1, 1, 2), (5, 1, 1)])
def test_the_interval_of_a_mean_is_that_of_the_normal_distribution(shares) -> None:
    draw = np.random.default_rng(0)
    values = draw.choice([0.0, 0.25, 1.0], size=900, p=np.array(shares) / sum(shares))
    found = mean_estimate(values.tolist())
    assert found.value == pytest.approx(values.mean())
    error = 1.96 * values.std() / 30
    assert found.low == pytest.approx(found.value - error, abs=0.1 * error)
    assert found.high == pytest.approx(found.value + error, abs=0.1 * error)
    assert mean_estimate(draw.permutation(values).tolist()) == found
    assert mean_estimate(values.tolist(), name="other") != found


def test_the_mean_of_equal_values_is_certain() -> None:
    assert mean_estimate([0.7]) == mean_estimate([0.7] * 5) == Estimate(0.7, 0.7, 0.7)
