"""`evo2 eval task`: evaluate a fine-tuned model on a labelled table; see docs/finetune.md."""

from collections.abc import Callable
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from evo2cli import __version__, console
from evo2cli.errors import counted
from evo2cli.eval.options import TaskOptions
from evo2cli.eval.report import check_outputs, write_table
from evo2cli.finetune.examples import Examples, read_examples
from evo2cli.finetune.metrics import confusion_matrix, measure
from evo2cli.finetune.plots import draw_predictions
from evo2cli.finetune.tasks import Labels, Task
from evo2cli.ranking import RESAMPLES
from evo2cli.tables import Row, rounded

Predict = Callable[[Examples], Any]  # predictions in the form that `measure` takes


def evaluate_task(options: TaskOptions, labels: Labels, predict: Predict) -> dict[str, Any]:
    """Predict the labels of a table and compute the metrics.

    Args:
        options: The options.
        labels: Task and labels of the fine-tuned model.
        predict: Predicts the labels of examples.

    Returns:
        evaluation, run, test, task, classes, sequences (their number), seed, resamples; rows: each
        metric with its interval; confusion: counts by true and by predicted class, or None.

    Raises:
        UserError: The table cannot be read, or has labels that are unknown to the run.
        UntrustedNumericsError: A prediction is not a finite number.
    """
    check_outputs(options)
    columns = options.label_cols.split(",") if options.label_cols else []
    examples, _ = read_examples(options.test, labels=labels, label_columns=columns)
    truth, predicted = examples.labels, predict(examples)
    metrics = measure(labels, truth, predicted, seed=options.seed)
    has_classes = labels.task in (Task.CLASSIFY, Task.TOKENS)
    rows: list[Row] = [
        {
            "metric": name,
            "value": rounded(estimate.value),
            "low": rounded(estimate.low),
            "high": rounded(estimate.high),
        }
        for name, estimate in metrics.items()
    ]
    result = {
        "evaluation": "task",
        "evo2cli": __version__,
        "run": str(options.run),
        "test": str(options.test),
        "task": str(labels.task),
        "classes": list(labels.classes),
        "sequences": len(examples),
        "seed": options.seed,
        "resamples": RESAMPLES,
        "confusion": confusion_matrix(labels, truth, predicted).tolist() if has_classes else None,
        "rows": rows,
    }
    write_table(options.output, result, rows)
    if options.plot is not None:
        draw_predictions(options.plot, labels, truth, predicted)
    return result


def task_page(result: dict[str, Any]) -> RenderableType:
    """Lay out the result of `evaluate_task`: the metrics, and the confusion matrix."""
    table = console.number_table("", "value", "95 %")
    for row in result["rows"]:
        table.add_row(row["metric"], f"{row['value']:.3f}", f"{row['low']:.3f}-{row['high']:.3f}")
    title = f"{result['task']}: {result['run']} on {result['test']}"
    parts: list[RenderableType] = [
        Text(title, style="bold"),
        Text(f"{counted(result['sequences'], 'sequence')}\n"),
        table,
    ]
    if result["confusion"] is not None:
        matrix = console.number_table("true \\ predicted", *result["classes"])
        for name, counts in zip(result["classes"], result["confusion"], strict=True):
            matrix.add_row(name, *(f"{count:,}" for count in counts))
        parts += [Text(), matrix]
    chance = "all are 0" if result["task"] == Task.REGRESS else "MCC is 0 and AUROC 0.5"
    parts.append(Text(f"\n95 %: bootstrap intervals over sequences; by chance {chance}"))
    return Group(*parts)
