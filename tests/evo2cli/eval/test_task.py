"""`evo2 eval task`: the table is read as the run reads it, and predictions are compared."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from evo2cli.errors import UserError
from evo2cli.eval.options import TaskOptions
from evo2cli.eval.task import evaluate_task, task_page
from evo2cli.finetune.examples import Examples
from evo2cli.finetune.tasks import Labels, Task

RUN = Labels(Task.CLASSIFY, ("acceptor", "donor", "none"))


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "test.csv"
    rows = [f"{'ACGT'[row % 4] * 5},{('donor', 'none')[row % 2]}" for row in range(20)]
    path.write_text("\n".join(["sequence,label", *rows]) + "\n")
    return path


def predict(examples: Examples) -> Any:
    """Right but for sequences of T, which are called donors with little confidence."""
    wrong = {"A": 1, "C": 2, "G": 1, "T": 1}
    called = np.array([wrong[sequence[0]] for sequence in examples.sequences])
    return 0.2 + 0.4 * np.eye(3)[called]


def test_predictions_are_compared_with_the_labels(table: Path, tmp_path: Path) -> None:
    options = TaskOptions(
        run=Path("run"), test=table, output=tmp_path / "x.json", plot=tmp_path / "x.png"
    )
    result = evaluate_task(options, RUN, predict)
    rows = {row["metric"]: row for row in result["rows"]}
    assert rows["accuracy"]["value"] == 0.75
    assert rows["accuracy"]["low"] < 0.75 < rows["accuracy"]["high"]
    assert result["confusion"] == [[0, 0, 0], [0, 10, 0], [0, 5, 5]]
    assert json.loads((tmp_path / "x.json").read_text()) == result
    assert (tmp_path / "x.png").exists()
    page = io.StringIO()
    Console(file=page, width=100).print(task_page(result))
    assert "accuracy" in page.getvalue()
    assert "donor" in page.getvalue()


def test_a_label_that_the_run_does_not_know_is_refused(table: Path) -> None:
    with pytest.raises(UserError, match="label 'none' is not one of the classes donor, acceptor"):
        evaluate_task(
            TaskOptions(run=Path("run"), test=table),
            Labels(Task.CLASSIFY, ("donor", "acceptor")),
            predict,
        )
