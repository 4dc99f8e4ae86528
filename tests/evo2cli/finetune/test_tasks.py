"""The task is told from the labels, and says how."""

import pytest

from evo2cli.errors import UserError
from evo2cli.finetune.tasks import Labels, Task, class_name, infer_labels, sort_classes

MANY = [str(value / 7) for value in range(40)]


def tell(cells: list[str], lengths: list[int] | None = None, task: Task | None = None) -> Labels:
    rows = [(cell,) for cell in cells]
    return infer_labels(rows, ["label"], lengths or [600] * len(cells), "row {}".format, task)


@pytest.mark.parametrize(
    ("cells", "task", "classes"),
    [
        (["donor", "none", "donor", "none"], Task.CLASSIFY, ("donor", "none")),
        (["0", "1", "2", "1", "0", "2"], Task.CLASSIFY, ("0", "1", "2")),
        (["1.0", "0.0"] * 3, Task.CLASSIFY, ("0", "1")),
        (["10", "9", "10", "9"], Task.CLASSIFY, ("9", "10")),
        (["0.5", "1.5"], Task.CLASSIFY, ("0.5", "1.5")),
        (["True", "False"], Task.CLASSIFY, ("False", "True")),
        (MANY, Task.REGRESS, ("label",)),
        (["1", "2", "3", "4"], Task.REGRESS, ("label",)),  # each once: no classes
        ([str(value) for value in range(30)] * 2, Task.REGRESS, ("label",)),
        (["[0, 1, 1]", "[1, 0, 0]"], Task.MULTILABEL, ("label_1", "label_2", "label_3")),
        (['["a", "b"]', "[]", "['c']"], Task.MULTILABEL, ("a", "b", "c")),
        (["[0.5, 2]", "[1, 1]"], Task.REGRESS, ("label_1", "label_2")),
    ],
)
def test_the_task_is_told_from_the_labels(
    cells: list[str], task: Task, classes: tuple[str, ...]
) -> None:
    found = tell(cells)
    assert (found.task, found.classes) == (task, classes)
    assert found.explanation.startswith(task)


def test_labels_as_long_as_their_sequences_are_tokens() -> None:
    found = tell(["0012", "EE"], [4, 2])
    assert (found.task, found.classes) == (Task.TOKENS, ("0", "1", "2", "E"))
    found = tell(["[0, 1, -100]", "[1, null]"], [3, 2])
    assert (found.task, found.classes) == (Task.TOKENS, ("0", "1"))
    assert tell(["0012", "EE"], [4, 3]).task is Task.CLASSIFY


def test_classes_that_look_like_numbers_say_how_to_read_them_otherwise() -> None:
    assert "--task" in tell(["0", "1", "2"] * 3).explanation
    assert tell(["0", "1", "2"] * 3, task=Task.REGRESS).task is Task.REGRESS
    assert tell(MANY, task=Task.CLASSIFY).task is Task.CLASSIFY
    assert tell(["a;b", "b", "."], task=Task.MULTILABEL).classes == ("a", "b")


def test_several_columns_are_flags_or_numbers() -> None:
    def tell_columns(rows: list[tuple[str, str]], task: Task | None = None) -> Labels:
        return infer_labels(rows, ["x", "y"], [9] * len(rows), "row {}".format, task)

    assert tell_columns([("0", "1"), ("1", "1")]).task is Task.MULTILABEL
    assert tell_columns([("0", "1"), ("1", "1")], Task.REGRESS).task is Task.REGRESS
    found = tell_columns([("0", "1.5"), ("1", "2")])
    assert (found.task, found.classes) == (Task.REGRESS, ("x", "y"))
    with pytest.raises(UserError, match="row 1: label 'much' is not a finite number"):
        tell_columns([("0", "1"), ("1", "much")])
    with pytest.raises(UserError, match="classify takes one column of labels, not x, y"):
        tell_columns([("0", "1")], Task.CLASSIFY)
    with pytest.raises(UserError, match="may contain only 0 and 1"):
        tell_columns([("0", "2")], Task.MULTILABEL)


@pytest.mark.parametrize(
    ("cells", "task", "message"),
    [
        (["a"] * 4, None, "label: all labels are 'a'"),
        (["1"] * 4, None, "label: all labels are '1'"),
        ([*MANY, "NA"], None, "row 40: label 'NA' is not a number, but most labels are"),
        ([*MANY, "nan"], Task.REGRESS, "row 40: label 'nan' is not a finite number"),
        (
            [f"id{row}" for row in range(9)],
            None,
            "label: 9 different labels in 9 rows are too many",
        ),
        (["01", "0"], Task.TOKENS, "row 0: 2 labels for 600 bases"),
    ],
)
def test_labels_that_teach_nothing_are_refused(
    cells: list[str], task: Task | None, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        tell(cells, task=task)


def test_tokens_without_a_label_are_refused() -> None:
    with pytest.raises(UserError, match="no base has a label"):
        tell(["..", ".."], [2, 2])


def test_classes_are_sorted_by_value_then_by_letter() -> None:
    assert sort_classes(["b", "10", "9", "a", "-1"]) == ("-1", "9", "10", "a", "b")
    assert [class_name(cell) for cell in ("1.0", "1", "1.5", "x")] == ["1", "1", "1.5", "x"]
