"""Metrics of each task, with 95 % bootstrap intervals.

Every metric is computed from item weights: all ones for the data, and for a bootstrap resample the
number of times that each item was drawn. Whole sequences are resampled, never single bases, because
the bases of a sequence are not independent.

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
F1 = "f1 "  # prefix of the name of a class
LEVELS = 512  # levels that scores of bases are quantized to, for the intervals

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
    """The default metric to choose the best checkpoint by; higher is better, except for a loss."""
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

    Metrics that are undefined, such as the AUROC of a class without examples, are left out.

    Args:
        labels: Task and classes.
        truth: The labels, as in `Examples`.
        predicted: classify and multilabel: probabilities [N, C]; regress: numbers [N, C]; tokens:
            probabilities [L, C] for each sequence.
        seed: Seed of the resamples, which are stratified by class for classify.
        bootstrap: Number of resamples; with 0, low and high equal the value.

    Returns:
        classify, tokens: accuracy, balanced_accuracy, macro_f1, mcc, auroc, auprc. multilabel:
        macro_f1, auroc, auprc. regress: pearson, spearman, r2. The F1 of each class is `f1 donor`
        and so on. With two classes, auroc and auprc are those of the second. With several classes
        or numbers they are means, followed by those of each, as `auroc donor`.
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
    estimates = {}
    for name, values_1 in measured.items():
        value = float(values_1[0])
        if np.isfinite(value):
            values = np.concatenate([batch[name] for batch in batches] or [values_1])
            low, high = np.percentile(values[np.isfinite(values)], PERCENTILES)
            estimates[name] = Estimate(value, float(low), float(high))
    return estimates


def confusion_matrix(labels: Labels, truth: Any, predicted: Any) -> NDArray[np.int64]:
    """Counts [C, C] of items by true class (row) and predicted class (column)."""
    size = len(labels.classes)
    if labels.task is Task.TOKENS:
        truth, predicted, _ = flatten(truth, predicted)
    cells = truth * size + predicted.argmax(axis=1)
    return np.bincount(cells, minlength=size**2).reshape(size, size)


Measures = Callable[[Floats], Metrics]  # from weights [B, S] of the sequences


def _measures(
    labels: Labels, truth: Any, predicted: Floats, units_N: NDArray[np.int64] | None = None
) -> Measures:
    """A function that computes the metrics of a task from weights.

    Args:
        labels: Task and classes.
        truth: Labels of the items.
        predicted: Predictions of the items.
        units_N: Index of the sequence of each item; None if every item has its own weight.
    """
    if labels.task is Task.MULTILABEL:
        return _of_flags(labels, truth > 0, predicted)
    if labels.task is Task.REGRESS:
        return _of_numbers(labels, truth.astype(np.float64), predicted)
    return _of_classes(labels, truth, predicted, units_N)


def flatten(truth: Any, predicted: Any) -> tuple[Any, Any, NDArray[np.int64]]:
    """Labels and predictions of all labelled bases, and the index of the sequence of each."""
    units_N = np.repeat(np.arange(len(truth)), [len(labels) for labels in truth])
    truth_N, predicted_NC = np.concatenate(truth), np.concatenate(predicted)
    is_labelled = truth_N >= 0
    return truth_N[is_labelled], predicted_NC[is_labelled], units_N[is_labelled]


def _resamples(strata: NDArray[np.int64], seed: int, count: int) -> Iterator[Floats]:
    """Bootstrap weights [B, S]: counts of each sequence in stratified resamples, in batches."""
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
    """Metrics of single-label classification; items are sequences, or bases with `units_N`."""
    size = len(labels.classes)
    owners_N = np.arange(len(truth_N)) if units_N is None else units_N
    cells_N = truth_N * size + predicted_NC.argmax(axis=1)
    # Count the bases of a sequence in each cell of the confusion matrix once for all resamples.
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
    """F1 of each class; NaN if no item has the class and none is predicted to."""
    return {f"{F1}{name}": f1_B for name, f1_B in zip(names, f1_BC.T, strict=True)}


def _of_flags(labels: Labels, truth_NC: NDArray[np.bool_], predicted_NC: Floats) -> Measures:
    """Metrics of multilabel classification."""
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
    """Metrics of regression on one or several numbers."""
    columns = list(zip(labels.classes, truth_NC.T, predicted_NC.T, strict=True))
    ranks = {name: (_Ranks(truth), _Ranks(predicted)) for name, truth, predicted in columns}

    def measures(weights_BS: Floats) -> Metrics:
        metrics: dict[str, Metrics] = {"pearson": {}, "spearman": {}, "r2": {}}
        for name, truth_N, predicted_N in columns:
            rank_true_BN, rank_predicted_BN = (of.weighted(weights_BS) for of in ranks[name])
            metrics["pearson"][name] = _correlation(weights_BS, truth_N, predicted_N)
            metrics["spearman"][name] = _correlation(weights_BS, rank_true_BN, rank_predicted_BN)
            metrics["r2"][name] = _explained(weights_BS, truth_N, predicted_N)
        return _with_means(metrics)

    return measures


def _correlation(weights_BN: Floats, one: Floats, other: Floats) -> Floats:
    """Weighted Pearson correlation [B]; 0 where either side is constant."""
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
    """Weighted R2 [B], the explained fraction of the variance; negative if worse than the mean."""
    mean_B1 = (weights_BN @ truth_N / weights_BN.sum(axis=1))[:, None]
    variance_B = (weights_BN * (truth_N - mean_B1) ** 2).sum(axis=1)
    return np.asarray(1 - _ratio(weights_BN @ (truth_N - predicted_N) ** 2, variance_B))


class _Ranks:
    """Ranks of numbers within bootstrap resamples; ties get their mean rank."""

    def __init__(self, values_N: Floats) -> None:
        self._order = np.argsort(values_N, kind="stable")
        is_new = np.diff(values_N[self._order], prepend=np.nan) != 0
        self._starts = np.flatnonzero(is_new)
        self._level_N = np.empty(len(values_N), np.int64)
        self._level_N[self._order] = is_new.cumsum() - 1

    def weighted(self, weights_BN: Floats) -> Floats:
        """The rank [B, N] of each item in each resample."""
        counts_BU = np.add.reduceat(weights_BN[:, self._order], self._starts, axis=1)
        ranks_BU = counts_BU.cumsum(axis=1) - (counts_BU - 1) / 2
        return np.asarray(ranks_BU[:, self._level_N])


class _Levels:
    """Numbers of positives and negatives at each distinct score, within bootstrap resamples."""

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
        """Positives and negatives [B, U] at each score; scores of bases are quantized."""
        if self._units_N is not None:
            positives_SU, negatives_SU = self._counts
            weights_BS = weights_BS[:, : len(positives_SU)]
            return weights_BS @ positives_SU, weights_BS @ negatives_SU
        sorted_BN = weights_BS[:, self._order]
        is_positive_N = self._is_positive_N[self._order]
        positives_BU = np.add.reduceat(sorted_BN * is_positive_N, self._starts, axis=1)
        return positives_BU, np.add.reduceat(sorted_BN, self._starts, axis=1) - positives_BU


def _ranking(levels: Mapping[str, _Levels], weights_BS: Floats) -> Metrics:
    """One-versus-rest AUROC and average precision of each class."""
    metrics: dict[str, Metrics] = {"auroc": {}, "auprc": {}}
    for name, of in levels.items():
        positives_BU, negatives_BU = of.counts(weights_BS)
        both_B = (positives_BU.sum(axis=1) > 0) & (negatives_BU.sum(axis=1) > 0)
        for metric, function in (("auroc", area_under_roc), ("auprc", average_precision)):
            metrics[metric][name] = np.full(len(weights_BS), np.nan)
            metrics[metric][name][both_B] = function(positives_BU[both_B], negatives_BU[both_B])
    return _with_means(metrics)


def _with_means(metrics: Mapping[str, Metrics]) -> Metrics:
    """The mean of each metric over names; if there are several names, also the metric of each."""
    means = {
        metric: _mean(np.stack(list(values.values()), axis=1)) for metric, values in metrics.items()
    }
    by_name = {
        f"{metric} {name}": values_B
        for metric, values in metrics.items()
        if len(values) > 1
        for name, values_B in values.items()
    }
    return means | by_name


def _ratio(one: Floats, other: Floats) -> Floats:
    """The quotient; NaN where `other` is 0."""
    return np.divide(one, other, out=np.full_like(one, np.nan), where=other > 0)


def _mean(values_BC: Floats) -> Floats:
    """The mean [B] over C of the defined values; NaN where there are none."""
    is_defined_BC = np.isfinite(values_BC)
    return _ratio(
        np.where(is_defined_BC, values_BC, 0.0).sum(axis=1),
        is_defined_BC.sum(axis=1).astype(np.float64),
    )
