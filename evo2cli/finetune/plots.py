"""Plot predictions: confusion matrix, ROC and precision-recall curves, or a scatter plot."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from evo2cli.figures import new_figure, save_figure
from evo2cli.finetune.metrics import confusion_matrix, flatten
from evo2cli.finetune.tasks import Labels, Task
from evo2cli.ranking import count_levels

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PANEL = 5.0  # inches
MAX_CLASSES = 8  # more curves would be hard to tell apart
MAX_POINTS = 5_000  # in a scatter plot


def draw_predictions(path: Path, labels: Labels, truth: Any, predicted: Any) -> None:
    """Plot predictions against labels, both in the form that `measure` takes.

    Raises:
        UserError: The figure cannot be written.
    """
    if labels.task is Task.REGRESS:
        _draw_numbers(path, labels, truth, predicted)
        return
    matrix = None
    if labels.task is not Task.MULTILABEL:
        matrix = confusion_matrix(labels, truth, predicted)
    if labels.task is Task.TOKENS:
        truth, predicted, _ = flatten(truth, predicted)
    panels = 2 if matrix is None else 3
    figure = new_figure(1 + panels * PANEL, PANEL)
    axes = figure.subplots(1, panels)
    if matrix is not None:
        _draw_matrix(axes[0], labels, matrix)
    size = len(labels.classes)
    is_true_NC = truth > 0 if labels.task is Task.MULTILABEL else truth[:, None] == range(size)
    curves = {
        name: (predicted[:, index], is_true_NC[:, index])
        for index, name in enumerate(labels.classes[:MAX_CLASSES])
        if (size != 2 or index == 1 or labels.task is Task.MULTILABEL)
        and 0 < is_true_NC[:, index].sum() < len(predicted)
    }
    _draw_curves(axes[-2], axes[-1], curves)
    save_figure(figure, path)


def _draw_matrix(axes: "Axes", labels: Labels, matrix: Any) -> None:
    """Draw counts, coloured by their fraction of the true class."""
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if len(matrix) <= MAX_CLASSES:
        for (row, column), count in np.ndenumerate(matrix):
            colour = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, f"{count:,}", ha="center", va="center", color=colour)
    ticks = range(len(matrix))
    axes.set_xticks(ticks, labels.classes, rotation=45, ha="right")
    axes.set_yticks(ticks, labels.classes)
    axes.set(xlabel="predicted", ylabel="true", title="confusion matrix")


def _draw_curves(roc: "Axes", precision: "Axes", curves: Mapping[str, tuple[Any, Any]]) -> None:
    """Draw one-versus-rest curves of each class."""
    for name, (scores_N, is_positive_N) in curves.items():
        counts = [counts_U[::-1].cumsum() for counts_U in count_levels(scores_N, is_positive_N)]
        true_U, false_U = (np.concatenate([[0], counts_U]) for counts_U in counts)
        roc.plot(false_U / false_U[-1], true_U / true_U[-1], label=name)
        called_U = (true_U + false_U)[1:]
        precision.step(true_U[1:] / true_U[-1], true_U[1:] / called_U, where="post", label=name)
    roc.plot([0, 1], [0, 1], color="grey", linestyle=":", linewidth=1)
    roc.set(xlabel="false positive rate", ylabel="true positive rate", title="ROC")
    precision.set(xlabel="recall", ylabel="precision", title="precision and recall", ylim=(0, 1.02))
    for axes in (roc, precision):
        axes.grid(alpha=0.3)
        if curves:
            axes.legend(fontsize="small")


def _draw_numbers(path: Path, labels: Labels, truth: Any, predicted: Any) -> None:
    """Draw predicted against true numbers, one panel per target."""
    names = labels.classes[:MAX_CLASSES]
    figure = new_figure(1 + len(names) * PANEL, PANEL)
    drawn = np.random.default_rng(0).permutation(len(truth))[:MAX_POINTS]
    for index, (axes, name) in enumerate(
        zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True)
    ):
        true_N, predicted_N = truth[drawn, index], predicted[drawn, index]
        axes.scatter(true_N, predicted_N, s=6, alpha=0.5)
        axes.axline((float(true_N[0]), float(true_N[0])), slope=1, color="grey", linestyle=":")
        axes.set(xlabel=f"{name}, true", ylabel=f"{name}, predicted")
        axes.grid(alpha=0.3)
    save_figure(figure, path)
