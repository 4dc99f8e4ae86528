"""Metrics are scikit-learn's, and their intervals those of a slow bootstrap."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as reference

from evo2cli.errors import UntrustedNumericsError, UserError
from evo2cli.finetune import metrics
from evo2cli.finetune.metrics import confusion_matrix, measure, primary_metric
from evo2cli.finetune.plots import draw_predictions
from evo2cli.finetune.tasks import Labels, Task

NUM = 120
THREE = Labels(Task.CLASSIFY, ("a", "b", "c"))
TWO = Labels(Task.CLASSIFY, ("no", "yes"))
FLAGS = Labels(Task.MULTILABEL, ("x", "y"))
NUMBERS = Labels(Task.REGRESS, ("u", "v"))
EXONS = Labels(Task.TOKENS, ("none", "exon"))


def draw(labels: Labels, seed: int, num: int = NUM) -> tuple[Any, Any]:
    """Labels and predictions that know something of them; scores have ties."""
    generator = np.random.default_rng(seed)
    size = len(labels.classes)
    if labels.task is Task.REGRESS:
        truth = generator.normal(size=(num, size)).astype(np.float32)
        return truth, np.round(truth + generator.normal(size=(num, size)), 1)
    if labels.task is Task.MULTILABEL:
        truth = (generator.random((num, size)) < 0.4).astype(np.float32)
        return truth, np.round(0.3 * truth + 0.7 * generator.random((num, size)), 2)
    if labels.task is Task.TOKENS:
        pairs = [draw(TWO, seed * 100 + row, 20 + row) for row in range(num // 4)]
        truth = [np.where(np.arange(len(t)) % 7 == 0, -100, t) for t, _ in pairs]
        return truth, [predicted for _, predicted in pairs]
    truth = generator.integers(0, size, num)
    scores = np.round(generator.random((num, size)) + 0.5 * np.eye(size)[truth], 1)
    return truth, scores / scores.sum(axis=1, keepdims=True)


def values(labels: Labels, truth: Any, predicted: Any) -> dict[str, float]:
    return {k: v.value for k, v in measure(labels, truth, predicted, bootstrap=0).items()}


def of_classes(truth: Any, scores: Any, names: tuple[str, ...]) -> dict[str, float]:
    called = scores.argmax(axis=1)
    size = scores.shape[1]
    f1 = reference.f1_score(truth, called, average=None)
    found = {
        "accuracy": reference.accuracy_score(truth, called),
        "balanced_accuracy": reference.balanced_accuracy_score(truth, called),
        "macro_f1": reference.f1_score(truth, called, average="macro"),
        "mcc": reference.matthews_corrcoef(truth, called),
        **{f"f1 {name}": value for name, value in zip(names, f1, strict=True)},
    }
    if size == 2:
        return found | {
            "auroc": reference.roc_auc_score(truth, scores[:, 1]),
            "auprc": reference.average_precision_score(truth, scores[:, 1]),
        }
    return found | of_flags(np.eye(size)[truth], scores, names)


def of_flags(truth: Any, scores: Any, names: tuple[str, ...]) -> dict[str, float]:
    found = {
        "auroc": reference.roc_auc_score(truth, scores, average="macro"),
        "auprc": reference.average_precision_score(truth, scores, average="macro"),
    }
    for index, name in enumerate(names):
        column = truth[:, index], scores[:, index]
        found[f"auroc {name}"] = reference.roc_auc_score(*column)
        found[f"auprc {name}"] = reference.average_precision_score(*column)
    return found


def of_numbers(truth: Any, predicted: Any) -> dict[str, float]:
    found = {}
    columns = list(zip(NUMBERS.classes, truth.T, predicted.T, strict=True))
    functions: dict[str, Callable[[Any, Any], Any]] = {
        "pearson": lambda t, p: stats.pearsonr(t, p).statistic,
        "spearman": lambda t, p: stats.spearmanr(t, p).statistic,
        "r2": reference.r2_score,
    }
    for metric, function in functions.items():
        each = {f"{metric} {name}": function(t, p) for name, t, p in columns}
        found |= {metric: np.mean(list(each.values()))} | each
    return found


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("labels", [TWO, THREE, FLAGS, NUMBERS, EXONS], ids=lambda x: x.classes[0])
def test_metrics_are_those_of_scikit_learn(labels: Labels, seed: int) -> None:
    truth, predicted = draw(labels, seed)
    names = labels.classes
    if labels.task is Task.TOKENS:
        bases = np.concatenate(truth)
        wanted = of_classes(bases[bases >= 0], np.concatenate(predicted)[bases >= 0], names)
    elif labels.task is Task.CLASSIFY:
        wanted = of_classes(truth, predicted, names)
    elif labels.task is Task.REGRESS:
        wanted = of_numbers(truth.astype(float), predicted)
    else:
        f1 = reference.f1_score(truth, predicted > 0.5, average=None)
        each = {f"f1 {name}": value for name, value in zip(names, f1, strict=True)}
        wanted = {"macro_f1": f1.mean()} | each | of_flags(truth, predicted, names)
    assert values(labels, truth, predicted) == pytest.approx(wanted, abs=1e-9)
    assert primary_metric(labels.task) in wanted


@pytest.mark.parametrize("labels", [TWO, FLAGS, NUMBERS], ids=lambda x: x.classes[0])
def test_weights_of_a_resample_are_copies_of_items(labels: Labels) -> None:
    """Each metric of weighted items is that of the items repeated: what the intervals rest on."""
    truth, predicted = draw(labels, 9)
    counts = np.random.default_rng(0).integers(0, 4, NUM)
    weighted = metrics._measures(labels, truth, predicted)(counts[None].astype(float))
    repeated = values(labels, truth.repeat(counts, axis=0), predicted.repeat(counts, axis=0))
    assert {k: float(v[0]) for k, v in weighted.items()} == pytest.approx(repeated, abs=1e-9)


def test_bases_are_drawn_with_their_sequences() -> None:
    """Copies of each sequence's bases narrow no interval, since sequences are what is drawn."""
    truth, predicted = draw(EXONS, 3)
    once = measure(EXONS, truth, predicted)
    ten = measure(EXONS, [t.repeat(10) for t in truth], [p.repeat(10, axis=0) for p in predicted])
    for name in ("accuracy", "mcc", "auroc"):
        assert ten[name].high - ten[name].low == pytest.approx(once[name].high - once[name].low)
    counts = np.random.default_rng(0).integers(0, 4, len(truth))
    flat = metrics.flatten(truth, predicted)
    weighted = metrics._measures(EXONS, *flat)(counts[None].astype(float))
    chosen = [row for row, count in enumerate(counts) for _ in range(count)]
    repeated = values(EXONS, [truth[r] for r in chosen], [predicted[r] for r in chosen])
    # The scores of bases are rounded for the intervals, so areas agree to some decimals only.
    assert {k: float(v[0]) for k, v in weighted.items()} == pytest.approx(repeated, abs=3e-3)


@pytest.mark.parametrize("labels", [THREE, FLAGS, NUMBERS, EXONS], ids=lambda x: x.classes[0])
def test_intervals_hold_the_value_and_depend_on_the_seed_alone(labels: Labels) -> None:
    truth, predicted = draw(labels, 5)
    first, same, other = (
        measure(labels, truth, predicted, seed=s, bootstrap=200) for s in (0, 0, 1)
    )
    assert first == same != other
    for estimate in first.values():
        assert estimate.low < estimate.value < estimate.high


def test_an_interval_covers_as_often_as_it_says() -> None:
    """Accuracy of 0.7 of 200 coins: 95 % of intervals hold it, give or take."""
    held = 0
    for seed in range(60):
        generator = np.random.default_rng(seed)
        truth = generator.integers(0, 2, 200)
        called = np.where(generator.random(200) < 0.7, truth, 1 - truth)
        found = measure(TWO, truth, np.eye(2)[called], seed=seed, bootstrap=300)["accuracy"]
        held += found.low <= 0.7 <= found.high
    assert held >= 52


def test_batches_do_not_change_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    truth, predicted = draw(THREE, 6)
    whole = measure(THREE, truth, predicted, bootstrap=50)
    monkeypatch.setattr(metrics, "MAX_WEIGHTS", 7 * NUM)
    assert measure(THREE, truth, predicted, bootstrap=50) == whole


def test_what_is_not_defined_is_left_out() -> None:
    _, predicted = draw(TWO, 0)
    found = measure(TWO, np.zeros(NUM, np.int64), predicted, bootstrap=20)
    assert "auroc" not in found
    assert found["mcc"].value == 0
    constant = np.zeros((NUM, 2))
    truth, _ = draw(NUMBERS, 0)
    assert measure(NUMBERS, truth, constant, bootstrap=20)["pearson"].value == 0


def test_bad_predictions_are_refused() -> None:
    truth, predicted = draw(TWO, 0)
    with pytest.raises(UserError, match="3 predictions for 120 labels"):
        measure(TWO, truth, predicted[:3])
    predicted[5] = np.nan
    with pytest.raises(UntrustedNumericsError):
        measure(TWO, truth, predicted)


def test_the_confusion_matrix_is_that_of_scikit_learn() -> None:
    truth, predicted = draw(THREE, 1)
    wanted = reference.confusion_matrix(truth, predicted.argmax(axis=1))
    assert confusion_matrix(THREE, truth, predicted).tolist() == wanted.tolist()
    truth, predicted = draw(EXONS, 1)
    assert confusion_matrix(EXONS, truth, predicted).sum() == sum((t >= 0).sum() for t in truth)


@pytest.mark.parametrize("labels", [TWO, THREE, FLAGS, NUMBERS, EXONS], ids=lambda x: x.classes[0])
def test_every_task_has_a_picture(tmp_path: Any, labels: Labels) -> None:
    path = tmp_path / "x.png"
    draw_predictions(path, labels, *draw(labels, 2))
    assert path.read_bytes().startswith(b"\x89PNG")
