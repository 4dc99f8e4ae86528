"""How well numbers tell positives from negatives: AUROC and average precision, with intervals.

Both depend on nothing but how many positives and negatives stand at each distinct number, so that
is what they are computed from: one row for what was measured, and one for each resample.

B rows, U distinct numbers from the lowest to the highest.
"""

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 1000
PERCENTILES = (2.5, 97.5)  # of the resamples: 95 % lie between
_ENTRIES = 1 << 22  # of a matrix of resamples: bounds memory

Counts = NDArray[np.int64]
Values = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A statistic of what was measured, and the bootstrap interval around it."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Ranking:
    """Both statistics of one set of numbers."""

    auroc: Estimate
    auprc: Estimate


@dataclass(frozen=True)
class Allele:
    """A scored and labelled allele, and the groups (kind, name) that it belongs to."""

    delta: float
    positive: bool
    groups: tuple[tuple[str, str], ...]


def count_levels(scores: Sequence[float], positive: Sequence[bool]) -> tuple[Counts, Counts]:
    """How many positives, and how many negatives, stand at each distinct score: [U] each."""
    levels, places = np.unique(np.asarray(scores, dtype=np.float64), return_inverse=True)
    chosen = np.asarray(positive, dtype=bool)
    positives, negatives = (
        np.bincount(places[which], minlength=len(levels)).astype(np.int64)
        for which in (chosen, ~chosen)
    )
    return positives, negatives


def area_under_roc(positives_BU: Counts, negatives_BU: Counts) -> Values:
    """The chance [B] that a positive stands above a negative, ties counting half."""
    below_BU = negatives_BU.cumsum(axis=1) - negatives_BU
    wins_BU = positives_BU * (below_BU + negatives_BU / 2)
    pairs_B = positives_BU.sum(axis=1) * negatives_BU.sum(axis=1)
    return np.asarray(wins_BU.sum(axis=1) / pairs_B)


def average_precision(positives_BU: Counts, negatives_BU: Counts) -> Values:
    """Precision [B] at each distinct score, weighed by the recall that is gained there.

    Equal scores are let in together: sum over U of (positives_u / positives) * precision_u.
    """
    positives_BU, negatives_BU = positives_BU[:, ::-1], negatives_BU[:, ::-1]
    true_BU = positives_BU.cumsum(axis=1)
    called_BU = true_BU + negatives_BU.cumsum(axis=1)
    precision_BU = true_BU / np.maximum(called_BU, 1)  # a level without resamples weighs nothing
    # Divided last: sums of whole numbers are exact, so that no result is above 1.
    return np.asarray((positives_BU * precision_BU).sum(axis=1) / positives_BU.sum(axis=1))


def rank(
    scores: Sequence[float], positive: Sequence[bool], *, seed: int = 0, name: str = ""
) -> Ranking:
    """AUROC and average precision of scores, with 95 % intervals of a stratified bootstrap.

    Positives and negatives are drawn again apart, so every resample has as many of each. The order
    of the scores does not matter.

    Args:
        scores: The higher, the more likely positive.
        positive: Which of them are; at least one is, and one is not.
        seed: Of the resamples.
        name: Another name, other resamples: groups do not depend on one another.
    """
    counts = count_levels(scores, positive)
    areas, precisions = [], []
    for drawn in _resamples(*counts, seed=[seed, zlib.crc32(name.encode())]):
        areas.append(area_under_roc(*drawn))
        precisions.append(average_precision(*drawn))
    measured = counts[0][None], counts[1][None]
    return Ranking(
        _estimate(area_under_roc(*measured), areas),
        _estimate(average_precision(*measured), precisions),
    )


def _resamples(
    positives_U: Counts, negatives_U: Counts, seed: Sequence[int]
) -> Iterator[tuple[Counts, Counts]]:
    """Counts [B, U] of positives and negatives drawn again, some resamples at a time."""
    # To draw items and count them by level is to draw the counts from a multinomial.
    generator = np.random.default_rng(seed)
    size = max(1, _ENTRIES // len(positives_U))
    for start in range(0, RESAMPLES, size):
        rows = min(size, RESAMPLES - start)
        positives_BU, negatives_BU = (
            generator.multinomial(counts.sum(), counts / counts.sum(), size=rows)
            for counts in (positives_U, negatives_U)
        )
        yield positives_BU, negatives_BU


def _estimate(measured_B: Values, resampled: Sequence[Values]) -> Estimate:
    low, high = np.percentile(np.concatenate(resampled), PERCENTILES)
    return Estimate(float(measured_B[0]), float(low), float(high))


def roc_curve(
    scores: Sequence[float], positive: Sequence[bool]
) -> tuple[Sequence[float], Sequence[float]]:
    """False and true positive rates from (0, 0) on, as the threshold falls past each score."""
    rates = [
        np.concatenate([[0.0], counts[::-1].cumsum() / counts.sum()])
        for counts in count_levels(scores, positive)
    ]
    return rates[1].tolist(), rates[0].tolist()
