"""AUROC and average precision with bootstrap intervals, and the mean of values with its interval.

Both ranking metrics depend only on the numbers of positives and negatives at each distinct score,
so they are computed from these counts: one row for the data, and one for each bootstrap resample.

B rows, U distinct scores in ascending order.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 1000
PERCENTILES = (2.5, 97.5)  # of the resamples: a 95 % interval
MAX_COUNTS = 1 << 22  # entries of a matrix of resamples, which bounds memory

Counts = NDArray[Any]  # whole numbers
Values = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """The value of a statistic, and its bootstrap interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Ranking:
    """AUROC and average precision of a set of scores."""

    auroc: Estimate
    auprc: Estimate


def count_levels(scores: Sequence[float], positive: Sequence[bool]) -> tuple[Counts, Counts]:
    """Numbers of positives [U] and of negatives [U] at each distinct score."""
    levels, indices = np.unique(np.asarray(scores, dtype=np.float64), return_inverse=True)
    is_positive = np.asarray(positive, dtype=bool)
    positives_U, negatives_U = (
        np.bincount(indices[chosen], minlength=len(levels)).astype(np.int64)
        for chosen in (is_positive, ~is_positive)
    )
    return positives_U, negatives_U


def area_under_roc(positives_BU: Counts, negatives_BU: Counts) -> Values:
    """Probability [B] that a positive scores above a negative, ties counting half."""
    below_BU = negatives_BU.cumsum(axis=1) - negatives_BU
    wins_BU = positives_BU * (below_BU + negatives_BU / 2)
    pairs_B = positives_BU.sum(axis=1) * negatives_BU.sum(axis=1)
    return np.asarray(wins_BU.sum(axis=1) / pairs_B)


def average_precision(positives_BU: Counts, negatives_BU: Counts) -> Values:
    """Average precision [B]: sum over U of (positives_u / positives) * precision_u.

    precision_u is the share of positives among all scores of at least u; ties enter together.
    """
    positives_BU, negatives_BU = positives_BU[:, ::-1], negatives_BU[:, ::-1]
    true_BU = positives_BU.cumsum(axis=1)
    called_BU = true_BU + negatives_BU.cumsum(axis=1)
    precision_BU = true_BU / np.maximum(called_BU, 1)  # called is 0 only where positives are, too
    # The division comes last: sums of whole numbers are exact, so no result exceeds 1.
    return np.asarray((positives_BU * precision_BU).sum(axis=1) / positives_BU.sum(axis=1))


def rank(
    scores: Sequence[float],
    positive: Sequence[bool],
    *,
    seed: int = 0,
    name: str = "",
    max_counts: int = MAX_COUNTS,
) -> Ranking:
    """AUROC and average precision of scores, with 95 % intervals of a stratified bootstrap.

    Positives and negatives are resampled separately, so every resample has as many of each. The
    order of the scores does not matter.

    Args:
        scores: Higher scores mean more likely positive.
        positive: Whether each is positive; there must be positives and negatives.
        seed: Seed of the resamples.
        name: Different names give different resamples, so that groups are independent.
        max_counts: Entries of a matrix of resamples, which bounds memory.
    """
    positives_U, negatives_U = count_levels(scores, positive)
    areas, precisions = [], []
    generator = _generator(seed, name)
    batch = max(1, max_counts // len(positives_U))
    for start in range(0, RESAMPLES, batch):
        size = min(batch, RESAMPLES - start)
        # To resample items and count them by level is to draw the counts from a multinomial.
        positives_BU, negatives_BU = (
            generator.multinomial(counts_U.sum(), counts_U / counts_U.sum(), size=size)
            for counts_U in (positives_U, negatives_U)
        )
        areas.append(area_under_roc(positives_BU, negatives_BU))
        precisions.append(average_precision(positives_BU, negatives_BU))
    measured = positives_U[None], negatives_U[None]
    return Ranking(
        _estimate(area_under_roc(*measured), areas),
        _estimate(average_precision(*measured), precisions),
    )


def mean_estimate(values: Sequence[float], *, seed: int = 0, name: str = "") -> Estimate:
    """The mean of values, with its 95 % bootstrap interval.

    The order of the values does not matter.

    Args:
        values: At least one finite number.
        seed: Seed of the resamples.
        name: Different names give different resamples.
    """
    levels_U, counts_U = np.unique(np.asarray(values, dtype=np.float64), return_counts=True)
    generator = _generator(seed, name)
    batch = max(1, MAX_COUNTS // len(levels_U))
    means = []
    for start in range(0, RESAMPLES, batch):
        size = min(batch, RESAMPLES - start)
        counts_BU = generator.multinomial(len(values), counts_U / len(values), size=size)
        means.append(counts_BU @ levels_U / len(values))
    return _estimate(np.array([counts_U @ levels_U / len(values)]), means)


def _generator(seed: int, name: str) -> np.random.Generator:
    """A random generator seeded by the seed and the name."""
    return np.random.default_rng([seed, zlib.crc32(name.encode(errors="surrogateescape"))])


def _estimate(measured_B: Values, resampled: Sequence[Values]) -> Estimate:
    low, high = np.percentile(np.concatenate(resampled), PERCENTILES)
    return Estimate(float(measured_B[0]), float(low), float(high))


def roc_curve(
    scores: Sequence[float], positive: Sequence[bool]
) -> tuple[Sequence[float], Sequence[float]]:
    """False and true positive rates at each threshold, from (0, 0) to (1, 1)."""
    true_rates, false_rates = (
        np.concatenate([[0.0], counts_U[::-1].cumsum() / counts_U.sum()])
        for counts_U in count_levels(scores, positive)
    )
    return false_rates.tolist(), true_rates.tolist()
