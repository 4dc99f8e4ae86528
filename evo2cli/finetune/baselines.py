"""Simple baselines on the same split, to put the metrics of a large model into perspective.

A linear model on k-mer frequencies uses composition but no positions. A linear model on the one-hot
bases around the centre is a position weight matrix: it uses positions but no interactions. For
labels of bases, the latter reads the bases around each base, and the former also the k-mers in a
wider window. Chance predicts class frequencies. All are fitted on the training set alone.
Classifiers are logistic regressions (L2) on standardized features, regressions are ridge.

N sequences, L bases, F features, C classes or numbers.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evo2cli.embed.probe import import_sklearn, linear_model
from evo2cli.finetune.examples import Examples
from evo2cli.finetune.similarity import BASE_CODES
from evo2cli.finetune.splits import class_counts
from evo2cli.finetune.tasks import Labels, Task

MAX_ROWS = 20_000  # a baseline is fitted on a random sample of this size if there are more rows
KMER = 4
KMER_C = 0.01  # C of the logistic regression: k-mers overlap, so they need strong regularization
CENTRE = 80  # bases around the centre that `position_baseline` reads
AROUND = 10  # bases on each side of the one whose label is predicted
AROUND_KMERS = 50  # bases on each side whose k-mers are counted for that label
MAX_BASES = 4_096  # bases whose features are in memory at once

Indices = NDArray[np.int64]
Features = NDArray[np.float32]

_ONE_HOT = np.eye(5, 4, dtype=np.float32)  # letters other than A, C, G and T are all zeros


def chance_baseline(examples: Examples, labels: Labels, train: Indices, rows: Indices) -> Any:
    """Constant predictions for `rows`: class frequencies, or means, of the training set."""
    if labels.task is Task.REGRESS or labels.task is Task.MULTILABEL:
        constant_C = np.asarray(examples.labels)[train].mean(axis=0)
    else:
        counts = np.array(list(class_counts(examples, labels, train).values()), np.float64)
        constant_C = counts / counts.sum()
    if labels.task is Task.TOKENS:
        return [np.tile(constant_C, (len(examples.sequences[row]), 1)) for row in rows]
    return np.tile(constant_C, (len(rows), 1))


def kmer_baseline(
    examples: Examples,
    labels: Labels,
    train: Indices,
    rows: Indices,
    *,
    seed: int = 0,
) -> Any:
    """Predictions for `rows` by a linear model on k-mer frequencies.

    For labels of bases, these are the k-mers within `AROUND_KMERS` bases of each base, and the
    model also reads the features of `position_baseline`.

    Returns:
        Predictions in the form that `measure` takes.

    Raises:
        UserError: scikit-learn is not installed.
    """
    if labels.task is Task.TOKENS:

        def around(sequence: str, positions: Indices) -> Features:
            near = _neighbours(sequence, positions)
            return np.concatenate([near, _kmers_around(sequence, KMER, positions)], axis=1)

        return _token_baseline(examples, labels, train, rows, seed, around, KMER_C)
    train = _draw(train, seed)

    def features(chosen: Indices) -> Features:
        sides = [
            np.stack([_kmer_frequencies(side[row], KMER) for row in chosen])
            for side in _sides(examples)
        ]
        return _joined(sides)

    values = np.asarray(examples.labels)[train]
    return fit_and_predict(labels, features(train), values, features(rows), KMER_C)


def position_baseline(
    examples: Examples, labels: Labels, train: Indices, rows: Indices, *, seed: int = 0
) -> Any:
    """Predictions by a linear model on one-hot bases around the centre, or around each base.

    Returns:
        Predictions for `rows` in the form that `measure` takes; None if the sequences differ in
        length, because then they have no common centre.

    Raises:
        UserError: scikit-learn is not installed.
    """
    if labels.task is Task.TOKENS:
        return _token_baseline(examples, labels, train, rows, seed, _neighbours)
    sides = _sides(examples)
    if any(len({len(sequence) for sequence in side}) > 1 for side in sides):
        return None
    train = _draw(train, seed)

    def features(chosen: Indices) -> Features:
        return _joined([np.stack([_centre(side[row]) for row in chosen]) for side in sides])

    values = np.asarray(examples.labels)[train]
    return fit_and_predict(labels, features(train), values, features(rows))


def _token_baseline(
    examples: Examples,
    labels: Labels,
    train: Indices,
    rows: Indices,
    seed: int,
    features: Callable[[str, Indices], Features],
    c: float = 1.0,
) -> list[NDArray[np.float64]]:
    """Predictions for each base, by a model fitted on a sample of the training bases.

    Args:
        examples: The examples.
        labels: Task and classes.
        train: Rows of the training set.
        rows: Rows to predict.
        seed: Seed of the sample.
        features: Computes the features of given positions of a sequence.
        c: As for `linear_model`.
    """
    assert isinstance(examples.labels, list)
    generator = np.random.default_rng(seed)
    fraction = MAX_ROWS / max(1, sum(int((examples.labels[row] >= 0).sum()) for row in train))
    sampled, values = [], []
    for row in train:
        tokens = examples.labels[row]
        positions = np.flatnonzero((tokens >= 0) & (generator.random(len(tokens)) < fraction))
        sampled.append(features(examples.sequences[row], positions))
        values.append(tokens[positions])
    values_N = np.concatenate(values)
    model = linear_model("a baseline", is_numeric=False, c=c)
    if (values_N == values_N[0]).all():  # no base of a rare class was sampled
        model = import_sklearn("a baseline").dummy.DummyClassifier()
    model.fit(np.concatenate(sampled), values_N)

    def predicted(sequence: str) -> Iterator[NDArray[np.float64]]:
        for start in range(0, len(sequence), MAX_BASES):
            end = min(start + MAX_BASES, len(sequence))
            first = max(0, start - AROUND_KMERS)
            part = sequence[first : end + AROUND_KMERS]
            yield _probabilities(model, labels, features(part, np.arange(start, end) - first))

    return [np.concatenate(list(predicted(examples.sequences[row]))) for row in rows]


def _sides(examples: Examples) -> list[list[str]]:
    return [examples.sequences] if examples.pairs is None else [examples.sequences, examples.pairs]


def _joined(sides: Sequence[Features]) -> Features:
    """Features of single sequences; for pairs, those of the first and the difference."""
    return sides[0] if len(sides) == 1 else np.concatenate([sides[0], sides[1] - sides[0]], axis=1)


def _draw(train: Indices, seed: int) -> Indices:
    if len(train) <= MAX_ROWS:
        return train
    return np.sort(np.random.default_rng(seed).choice(train, MAX_ROWS, replace=False))


def _codes(sequence: str) -> NDArray[np.uint8]:
    return BASE_CODES[np.frombuffer(sequence.encode(), np.uint8)]


def _kmers(codes: NDArray[np.uint8], k: int) -> Indices:
    """Index of the k-mer at each base; 4**k if it contains a letter other than A, C, G and T."""
    count = max(0, len(codes) - k + 1)
    letters_NK = np.stack([codes[i : i + count] for i in range(k)], axis=1).astype(np.int64)
    kmers = letters_NK @ 4 ** np.arange(k - 1, -1, -1)
    return np.where((letters_NK < 4).all(axis=1), kmers, 4**k)


def _kmer_frequencies(sequence: str, k: int) -> Features:
    """The frequency of each of the 4**k k-mers in a sequence."""
    kmers = _kmers(_codes(sequence), k)
    counts = np.bincount(kmers, minlength=4**k + 1)[:-1]
    return (counts / max(1, len(kmers))).astype(np.float32)


def _kmers_around(sequence: str, k: int, positions: Indices) -> Features:
    """The frequency of each k-mer [N, 4**k] around each position; none beyond the ends."""
    padded = np.pad(_codes(sequence), AROUND_KMERS, constant_values=4)
    count = 2 * AROUND_KMERS + 2 - k
    windows_NW = np.lib.stride_tricks.sliding_window_view(_kmers(padded, k), count)[positions]
    size = 4**k + 1
    cells_NW = windows_NW + size * np.arange(len(positions))[:, None]
    counts_NF = np.bincount(cells_NW.ravel(), minlength=len(positions) * size).reshape(-1, size)
    return (counts_NF[:, :-1] / count).astype(np.float32)


def _centre(sequence: str) -> Features:
    start = max(0, (len(sequence) - CENTRE) // 2)
    return _ONE_HOT[_codes(sequence)[start : start + CENTRE]].reshape(-1)


def _neighbours(sequence: str, positions: Indices) -> Features:
    """One-hot bases [N, F] around each position; zeros beyond the ends."""
    padded = np.pad(_codes(sequence), AROUND, constant_values=4)
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * AROUND + 1)[positions]
    return _ONE_HOT[windows].reshape(len(positions), 4 * (2 * AROUND + 1))


def fit_and_predict(
    labels: Labels, train_NF: Any, values: NDArray[Any], rows_NF: Any, c: float = 1.0
) -> NDArray[np.float64]:
    """Fit a linear model, and return its predictions: probabilities or numbers [N, C].

    Args:
        labels: Task and classes. For multilabel tasks, each label gets its own model.
        train_NF: Training features.
        values: Training labels, as in `Examples`; for labels of bases, one class per row.
        rows_NF: Features to predict from.
        c: As for `linear_model`.
    """
    model = linear_model("a baseline", is_numeric=labels.task is Task.REGRESS, c=c)
    if labels.task is Task.REGRESS:
        return np.asarray(model.fit(train_NF, values).predict(rows_NF)).reshape(len(rows_NF), -1)
    if labels.task is not Task.MULTILABEL:
        return _probabilities(model.fit(train_NF, values), labels, rows_NF)
    columns = []
    for values_N in values.T:
        if (values_N == values_N[0]).all():
            columns.append(np.full(len(rows_NF), float(values_N[0])))
        else:
            columns.append(model.fit(train_NF, values_N > 0).predict_proba(rows_NF)[:, 1])
    return np.stack(columns, axis=1)


def _probabilities(model: Any, labels: Labels, features_NF: Features) -> NDArray[np.float64]:
    """Probabilities [N, C]; 0 for classes that were absent from the training rows."""
    probabilities = np.zeros((len(features_NF), len(labels.classes)))
    probabilities[:, model.classes_] = model.predict_proba(features_NF)
    return probabilities
