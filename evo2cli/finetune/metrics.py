"""How good predictions are: metrics of each task, with 95 % bootstrap intervals.

Every metric is computed from weights of the items: all ones for what was measured, and for a
resample the number of times that each item was drawn. The items that are drawn are sequences, never
single bases of one: bases of the same sequence are not independent.

N items, C classes or numbers, B resamples, S sequences, U distinct scores in ascending order.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evo2cli.errors import UntrustedNumericsError, UserError, counted
from evo2cli.finetune.tasks import Labels, Task
from evo2cli.ranking import (
    PERCENTILES,
    RESAMPLES,
    Estimate,
    area_under_roc,
    average_precision,
)

MAX_WEIGHTS = 1 << 22  # entries of a matrix of resamples, which bounds memory
F1 = "f1 "  # before the name of a class
LEVELS = 512  # levels that scores of bases are rounded to, for the intervals

Floats = NDArray[np.float64]
Metrics = dict[str, Floats]  # [B] by name

_PRIMARY = {
    Task.LM: "loss",
    Task.CLASSIFY: "mcc",
    Task.MULTILABEL: "auprc",
    Task.REGRESS: "pearson",
    Task.TOKENS: "macro_f1",
}


def primary_metric(task: Task) -> str:
    """The metric that the best checkpoint is chosen by: higher is better, save for a loss."""
    return _PRIMARY[task]


def measure(
    labels: Labels,
    truth: Any,
    predicted: Any,
    *,
    seed: int = 0,
    bootstrap: int = RESAMPLES,
) -> dict[str, Estimate]:
    """Metrics of predictions with 95 % bootstrap intervals.

    Metrics that are not defined, such as the AUROC of a class without examples, are left out.

    Args:
        labels: What is predicted.
        truth: The labels, as `Examples` holds them.
        predicted: classify and multilabel: probabilities [N, C]; regress: numbers [N, C]; tokens:
            probabilities [L, C] for each sequence.
        seed: Seed of the resamples, which keep the number of items of each class of a
            classification.
        bootstrap: Number of resamples; 0 leaves the intervals as wide as the value.

    Returns:
        classify, tokens: accuracy, balanced_accuracy, macro_f1, mcc, auroc, auprc. multilabel:
        macro_f1, auroc, auprc. regress: pearson, spearman, r2. The F1 of each class is `f1 donor`
        and so on. Of two classes, auroc and auprc are those of the second. Of several classes or
        numbers they are a mean, and those of each follow, as `auroc donor`.
    """
    num_units = len(truth)
    if len(predicted) != num_units or not num_units:
        raise UserError(
            f"{counted(len(predicted), 'prediction')} for {counted(num_units, 'label')}"
        )
    strata = truth if labels.task is Task.CLASSIFY else np.zeros(num_units, np.int64)
    units_N = None
    if labels.task is Task.TOKENS:
        truth, predicted, units_N = flatten(truth, predicted)
    predicted = np.asarray(predicted, np.float64)
    if not np.isfinite(predicted).all():
        raise UntrustedNumericsError(
            "predictions are NaN or infinite; train again with a lower --lr"
        )
    measured = _measures(labels, truth, predicted)(np.ones((1, len(truth))))
    measures = _measures(labels, truth, predicted, units_N)
    batches = [measures(weights_BS) for weights_BS in _resamples(strata, seed, bootstrap)]
    found = {}
    for name, values_1 in measured.items():
        value = float(values_1[0])
        if np.isfinite(value):
            values = np.concatenate([batch[name] for batch in batches] or [values_1])
            low, high = np.percentile(values[np.isfinite(values)], PERCENTILES)
            found[name] = Estimate(value, float(low), float(high))
    return found


def confusion_matrix(labels: Labels, truth: Any, predicted: Any) -> NDArray[np.int64]:
    """Counts [C, C] of items by their class (row) and by the likeliest class (column)."""
    size = len(labels.classes)
    if labels.task is Task.TOKENS:
        truth, predicted, _ = flatten(truth, predicted)
    cells = truth * size + predicted.argmax(axis=1)
    return np.bincount(cells, minlength=size**2).reshape(size, size)


Measures = Callable[[Floats], Metrics]  # from weights [B, S] of the sequences


def _measures(
    labels: Labels, truth: Any, predicted: Floats, units_N: NDArray[np.int64] | None = None
) -> Measures:
    """What computes the metrics of a task.

    Args:
        labels: What is predicted.
        truth: Labels of items.
        predicted: Predictions of items.
        units_N: The sequence of each item; None if every item has a weight of its own.
    """
    if labels.task is Task.MULTILABEL:
        return _of_flags(labels, truth > 0, predicted)
    if labels.task is Task.REGRESS:
        return _of_numbers(labels, truth.astype(np.float64), predicted)
    return _of_classes(labels, truth, predicted, units_N)


def flatten(truth: Any, predicted: Any) -> tuple[Any, Any, NDArray[np.int64]]:
    """The labelled bases of all sequences, their predictions, and the sequence of each."""
    units_N = np.repeat(np.arange(len(truth)), [len(labels) for labels in truth])
    truth_N, predicted_NC = np.concatenate(truth), np.concatenate(predicted)
    is_labelled = truth_N >= 0
    return truth_N[is_labelled], predicted_NC[is_labelled], units_N[is_labelled]


def _resamples(strata: NDArray[np.int64], seed: int, count: int) -> Iterator[Floats]:
    """Weights [B, S]: how often each sequence was drawn, stratum by stratum, in batches."""
    generator = np.random.default_rng(seed)
    members = [np.flatnonzero(strata == stratum) for stratum in np.unique(strata)]
    batch = max(1, MAX_WEIGHTS // len(strata))
    for start in range(0, count, batch):
        weights_BS = np.zeros((min(batch, count - start), len(strata)))
        for weights_S in weights_BS:
            for rows in members:
                drawn = generator.integers(len(rows), size=len(rows))
                weights_S[rows] = np.bincount(drawn, minlength=len(rows))
        yield weights_BS


def _of_classes(
    labels: Labels,
    truth_N: NDArray[np.int64],
    predicted_NC: Floats,
    units_N: NDArray[np.int64] | None,
) -> Measures:
    """Metrics of one class for each item; items are sequences, or bases with their sequence."""
    size = len(labels.classes)
    owners_N = np.arange(len(truth_N)) if units_N is None else units_N
    cells_N = truth_N * size + predicted_NC.argmax(axis=1)
    # Bases of a sequence in the same cell of the confusion matrix are counted once and for all.
    keys, counts = np.unique(owners_N * size**2 + cells_N, return_counts=True)
    owners, cells = np.divmod(keys, size**2)
    chosen = [1] if size == 2 else range(size)
    levels = {
        labels.classes[index]: _Levels(predicted_NC[:, index], truth_N == index, units_N)
        for index in chosen
    }

    def measures(weights_BS: Floats) -> Metrics:
        confusion_BCC = np.stack(
            [
                np.bincount(cells, weights=weights_S[owners] * counts, minlength=size**2)
                for weights_S in weights_BS
            ]
        ).reshape(-1, size, size)
        of_cells = _of_confusion(confusion_BCC.astype(np.float64), labels.classes)
        return of_cells | _ranking(levels, weights_BS)

    return measures


def _of_confusion(confusion_BCC: Floats, names: Sequence[str]) -> Metrics:
    right_BC = np.diagonal(confusion_BCC, axis1=1, axis2=2)
    true_BC, called_BC = confusion_BCC.sum(axis=2), confusion_BCC.sum(axis=1)
    right_B, total_B = right_BC.sum(axis=1), true_BC.sum(axis=1)
    covariance_B = right_B * total_B - (true_BC * called_BC).sum(axis=1)
    spread_B = (total_B**2 - (true_BC**2).sum(axis=1)) * (total_B**2 - (called_BC**2).sum(axis=1))
    f1_BC = _ratio(2 * right_BC, true_BC + called_BC)
    mcc_B = np.divide(
        covariance_B, np.sqrt(spread_B), out=np.zeros_like(spread_B), where=spread_B > 0
    )
    return {
        "accuracy": right_B / total_B,
        "balanced_accuracy": _mean(_ratio(right_BC, true_BC)),
        "macro_f1": _mean(f1_BC),
        "mcc": mcc_B,
        **_f1_of_each(f1_BC, names),
    }


def _f1_of_each(f1_BC: Floats, names: Sequence[str]) -> Metrics:
    """F1 of each class; NaN where no item has it and none is predicted to."""
    return {f"{F1}{name}": f1_B for name, f1_B in zip(names, f1_BC.T, strict=True)}


def _of_flags(labels: Labels, truth_NC: NDArray[np.bool_], predicted_NC: Floats) -> Measures:
    """Metrics of any number of classes for each item."""
    called_NC = predicted_NC > 0.5
    counted = [
        flags_NC.astype(np.float64) for flags_NC in (truth_NC & called_NC, truth_NC, called_NC)
    ]
    levels = {
        name: _Levels(predicted_NC[:, index], truth_NC[:, index], None)
        for index, name in enumerate(labels.classes)
    }

    def measures(weights_BS: Floats) -> Metrics:
        right_BC, true_BC, called_BC = (weights_BS @ flags_NC for flags_NC in counted)
        f1_BC = _ratio(2 * right_BC, true_BC + called_BC)
        of_cells = {"macro_f1": _mean(f1_BC), **_f1_of_each(f1_BC, labels.classes)}
        return of_cells | _ranking(levels, weights_BS)

    return measures


def _of_numbers(labels: Labels, truth_NC: Floats, predicted_NC: Floats) -> Measures:
    """Metrics of one or several numbers for each item."""
    columns = list(zip(labels.classes, truth_NC.T, predicted_NC.T, strict=True))
    ranks = {name: (_Ranks(truth), _Ranks(predicted)) for name, truth, predicted in columns}

    def measures(weights_BS: Floats) -> Metrics:
        found: dict[str, Metrics] = {"pearson": {}, "spearman": {}, "r2": {}}
        for name, truth_N, predicted_N in columns:
            rank_true_BN, rank_predicted_BN = (of.weighted(weights_BS) for of in ranks[name])
            found["pearson"][name] = _correlation(weights_BS, truth_N, predicted_N)
            found["spearman"][name] = _correlation(weights_BS, rank_true_BN, rank_predicted_BN)
            found["r2"][name] = _explained(weights_BS, truth_N, predicted_N)
        return _with_means(found)

    return measures


def _correlation(weights_BN: Floats, one: Floats, other: Floats) -> Floats:
    """Pearson's correlation [B] of items with weights; 0 where either side is constant."""
    total_B1 = weights_BN.sum(axis=1, keepdims=True)

    def centred(values: Floats) -> Floats:
        return np.asarray(values - (weights_BN * values).sum(axis=1, keepdims=True) / total_B1)

    one_BN, other_BN = centred(one), centred(other)
    product_B = (weights_BN * one_BN * other_BN).sum(axis=1)
    spread_B = np.sqrt(
        (weights_BN * one_BN**2).sum(axis=1) * (weights_BN * other_BN**2).sum(axis=1)
    )
    return np.asarray(
        np.divide(product_B, spread_B, out=np.zeros_like(spread_B), where=spread_B > 1e-12)
    )


def _explained(weights_BN: Floats, truth_N: Floats, predicted_N: Floats) -> Floats:
    """The share [B] of the variance that is explained, R2; negative if worse than the mean."""
    mean_B1 = (weights_BN @ truth_N / weights_BN.sum(axis=1))[:, None]
    variance_B = (weights_BN * (truth_N - mean_B1) ** 2).sum(axis=1)
    return np.asarray(1 - _ratio(weights_BN @ (truth_N - predicted_N) ** 2, variance_B))


class _Ranks:
    """Ranks of numbers, ties sharing their mean, as the items are drawn again."""

    def __init__(self, values_N: Floats) -> None:
        self._order = np.argsort(values_N, kind="stable")
        is_new = np.diff(values_N[self._order], prepend=np.nan) != 0
        self._starts = np.flatnonzero(is_new)
        self._level_N = np.empty(len(values_N), np.int64)
        self._level_N[self._order] = is_new.cumsum() - 1

    def weighted(self, weights_BN: Floats) -> Floats:
        """The rank [B, N] of each item among all that were drawn."""
        counts_BU = np.add.reduceat(weights_BN[:, self._order], self._starts, axis=1)
        ranks_BU = counts_BU.cumsum(axis=1) - (counts_BU - 1) / 2
        return np.asarray(ranks_BU[:, self._level_N])


class _Levels:
    """How many positives and negatives have each score, as the items are drawn again."""

    def __init__(
        self,
        scores_N: Floats,
        is_positive_N: NDArray[np.bool_],
        units_N: NDArray[np.int64] | None,
    ) -> None:
        self._scores_N, self._is_positive_N, self._units_N = scores_N, is_positive_N, units_N
        if units_N is None:
            self._order = np.argsort(scores_N, kind="stable")
            self._starts = np.flatnonzero(np.diff(scores_N[self._order], prepend=np.nan) != 0)
            return
        levels_N = np.clip(scores_N * LEVELS, 0, LEVELS - 1).astype(np.int64)
        keys_N, size = units_N * LEVELS + levels_N, (int(units_N.max()) + 1) * LEVELS
        self._counts = [
            np.bincount(keys_N[chosen_N], minlength=size).reshape(-1, LEVELS).astype(np.float64)
            for chosen_N in (is_positive_N, ~is_positive_N)
        ]

    def counts(self, weights_BS: Floats) -> tuple[Floats, Floats]:
        """Positives and negatives [B, U] at each score; scores of bases are rounded."""
        if self._units_N is not None:
            positives_SU, negatives_SU = self._counts
            weights_BS = weights_BS[:, : len(positives_SU)]
            return weights_BS @ positives_SU, weights_BS @ negatives_SU
        sorted_BN = weights_BS[:, self._order]
        is_positive_N = self._is_positive_N[self._order]
        positives_BU = np.add.reduceat(sorted_BN * is_positive_N, self._starts, axis=1)
        return positives_BU, np.add.reduceat(sorted_BN, self._starts, axis=1) - positives_BU


def _ranking(levels: Mapping[str, _Levels], weights_BS: Floats) -> Metrics:
    """AUROC and average precision of each class against all others."""
    found: dict[str, Metrics] = {"auroc": {}, "auprc": {}}
    for name, of in levels.items():
        positives_BU, negatives_BU = of.counts(weights_BS)
        both_B = (positives_BU.sum(axis=1) > 0) & (negatives_BU.sum(axis=1) > 0)
        for metric, function in (("auroc", area_under_roc), ("auprc", average_precision)):
            found[metric][name] = np.full(len(weights_BS), np.nan)
            found[metric][name][both_B] = function(positives_BU[both_B], negatives_BU[both_B])
    return _with_means(found)


def _with_means(found: Mapping[str, Metrics]) -> Metrics:
    """The mean of each metric over names, then, if there are several, the metric of each name."""
    means = {
        metric: _mean(np.stack(list(values.values()), axis=1)) for metric, values in found.items()
    }
    each = {
        f"{metric} {name}": values_B
        for metric, values in found.items()
        if len(values) > 1
        for name, values_B in values.items()
    }
    return means | each


def _ratio(one: Floats, other: Floats) -> Floats:
    """The quotient; NaN where `other` is 0."""
    return np.divide(one, other, out=np.full_like(one, np.nan), where=other > 0)


def _mean(values_BC: Floats) -> Floats:
    """The mean [B] over C of what is defined; NaN where nothing is."""
    is_defined_BC = np.isfinite(values_BC)
    return _ratio(
        np.where(is_defined_BC, values_BC, 0.0).sum(axis=1),
        is_defined_BC.sum(axis=1).astype(np.float64),
    )
