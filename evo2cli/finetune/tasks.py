"""Tasks, their inference from labels, and enums of data options; imports nothing slow."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import isfinite
from typing import Any, TypeVar

from evo2cli.errors import UserError, counted, listed

MAX_NUMBERED_CLASSES = 20  # more distinct whole numbers are regression targets, not classes
UNLABELLED = (".", "-100", "null", "None", "")  # in a table: a base without a label
NO_LABEL = -100  # class index of a base without a label, which loss and metrics ignore
_WAY_OUT = "--task overrides this"

S = TypeVar("S", bound=Any)
Cells = Sequence[str]  # the cells of one row in the label columns


class Task(StrEnum):
    """The task of fine-tuning: what the model predicts.

    LM: the next base.
    CLASSIFY: one of several classes for a sequence.
    MULTILABEL: any number of several classes for a sequence.
    REGRESS: one or several numbers for a sequence.
    TOKENS: one of several classes for each base.
    """

    LM = "lm"
    CLASSIFY = "classify"
    MULTILABEL = "multilabel"
    REGRESS = "regress"
    TOKENS = "tokens"


class Cut(StrEnum):
    """Which part of a sequence longer than the window to keep.

    CENTRE: its central bases.
    START: its first bases.
    END: its last bases.
    """

    CENTRE = "centre"
    START = "start"
    END = "end"

    def shorten(self, sequence: S, window: int) -> S:
        """Crop a sequence, or the labels of its bases, to at most `window`."""
        extra = max(0, len(sequence) - window)
        start = {Cut.CENTRE: extra // 2, Cut.START: 0, Cut.END: extra}[self]
        shorter: S = sequence[start : start + window]
        return shorter


class SplitBy(StrEnum):
    """How to split examples into training, validation and test.

    COLUMN: by the column `split`, or the file.
    CHROMOSOME: a chromosome is never in two splits.
    GROUP: a group is never in two splits.
    CLUSTER: a cluster of copies and near copies is never in two splits.
    RANDOM: at random, stratified by class; exact copies stay together.
    """

    COLUMN = "column"
    CHROMOSOME = "chromosome"
    GROUP = "group"
    CLUSTER = "cluster"
    RANDOM = "random"


@dataclass(frozen=True)
class Labels:
    """Task and classes of a data set.

    Attributes:
        task: The task.
        classes: Names of the classes, or of the regression targets.
        explanation: A message about how the task was inferred from the data.
    """

    task: Task
    classes: tuple[str, ...]
    explanation: str = ""


def check_cells(cells: Cells, columns: Sequence[str], origin: str) -> None:
    """Refuse cells that are not labels.

    Raises:
        UserError: A cell is empty, or looks like a list but cannot be parsed.
    """
    for name, cell in zip(columns, cells, strict=True):
        if not cell:
            raise UserError(f"{origin}: {name} is empty; give it a value or remove the row")
        try:
            parse_list(cell)
        except ValueError:
            raise UserError(
                f"{origin}: {name} {cell[:20]!r} looks like a list, but cannot be parsed"
            ) from None


def infer_labels(
    rows: Sequence[Cells],
    columns: Sequence[str],
    lengths: Sequence[int],
    origin: Callable[[int], str],
    task: Task | None = None,
) -> Labels:
    """Infer the task and the classes from the cells of the label columns.

    Args:
        rows: The cells of each row, which have passed `check_cells`.
        columns: Names of the label columns.
        lengths: Length of each sequence in bases.
        origin: Returns file and line of a row, for messages.
        task: The task, if given by the user.

    Raises:
        UserError: The labels do not fit the task, or there is only one class.
    """
    if task is Task.LM:
        return Labels(task, (), "lm, given by --task; labels are not read")
    if len(columns) > 1:
        labels = _of_columns(rows, columns, origin, task)
    else:
        labels = _of_column([cells[0] for cells in rows], columns[0], lengths, origin, task)
    if labels.task in (Task.CLASSIFY, Task.TOKENS) and len(labels.classes) < 2:
        fault = f"all labels are {labels.classes[0]!r}" if labels.classes else "no base has a label"
        raise UserError(f"{columns[0]}: {fault}; at least two classes are needed")
    return labels


def _of_columns(
    rows: Sequence[Cells], columns: Sequence[str], origin: Callable[[int], str], task: Task | None
) -> Labels:
    """Infer labels from several columns, which hold a number each."""
    names = tuple(columns)
    if task in (Task.CLASSIFY, Task.TOKENS):
        raise UserError(f"--task {task} takes one column of labels, not {', '.join(names)}")
    values = [parse_numbers(cells, origin(index)) for index, cells in enumerate(rows)]
    are_flags = all(value in (0, 1) for row in values for value in row)
    if task is Task.MULTILABEL and not are_flags:
        raise UserError(f"--task multilabel: columns {', '.join(names)} may contain only 0 and 1")
    if task is Task.REGRESS or not are_flags:
        return Labels(Task.REGRESS, names, f"regress: {len(names)} columns of numbers")
    return Labels(
        Task.MULTILABEL, names, f"multilabel: {len(names)} columns of 0 and 1; {_WAY_OUT}"
    )


def _of_column(
    cells: Sequence[str],
    column: str,
    lengths: Sequence[int],
    origin: Callable[[int], str],
    task: Task | None,
) -> Labels:
    """Infer labels from one column."""
    if task is Task.TOKENS or (task is None and _are_tokens(cells, lengths)):
        names: set[str] = set()
        for index, (cell, length) in enumerate(zip(cells, lengths, strict=True)):
            names.update(parse_tokens(cell, length, origin(index)))
        classes = sort_classes(names.difference(UNLABELLED))
        explanation = f"tokens: every {column} is as long as its sequence, with {_counted(classes)}"
        return Labels(Task.TOKENS, classes, explanation)
    if task is not Task.CLASSIFY:
        are_lists = all(cell.startswith("[") for cell in cells)
        if are_lists or task is Task.MULTILABEL:
            return _of_lists(cells, column, task)
    if task is Task.REGRESS:
        for index, cell in enumerate(cells):
            parse_numbers([cell], origin(index))
        return Labels(Task.REGRESS, (column,), f"regress: {column} is a number, given by --task")
    counts = Counter(map(class_name, cells))
    numbers = {name: value for name in counts if (value := _number(name)) is not None}
    if task is None and numbers and not _look_like_classes(counts, numbers):
        if len(numbers) == len(counts):
            explanation = f"regress: {column} holds {len(counts):,} different numbers; {_WAY_OUT}"
            return Labels(Task.REGRESS, (column,), explanation)
        if sum(counts[name] for name in numbers) * 2 > len(cells):
            index = next(i for i, cell in enumerate(cells) if _number(cell) is None)
            raise UserError(
                f"{origin(index)}: {column} {cells[index]!r} is not a number, but most labels "
                "are; remove the row, or give --task classify"
            )
    classes = sort_classes(counts)
    if task is None and len(counts) > max(2, len(cells) // 2):
        raise UserError(
            f"{column}: {len(counts):,} different labels in {len(cells):,} rows are too "
            "many to be classes; choose another column with --label-cols, or give --task "
            "classify"
        )
    explanation = f"classify: {column} is one of {_counted(classes)}"
    if len(numbers) == len(counts):
        explanation += f", whole numbers read as names of classes; {_WAY_OUT}"
    return Labels(Task.CLASSIFY, classes, explanation)


def _of_lists(cells: Sequence[str], column: str, task: Task | None) -> Labels:
    """Infer labels from one column with several labels per cell."""
    rows = [parse_names(cell) for cell in cells]
    numbers = [[_number(name) for name in row] for row in rows]
    num_columns = len(rows[0])
    if num_columns > 1 and all(len(row) == num_columns and None not in row for row in numbers):
        names = tuple(f"{column}_{index}" for index in range(1, num_columns + 1))
        are_flags = all(value in (0, 1) for row in numbers for value in row)
        if are_flags and task is not Task.REGRESS:
            explanation = f"multilabel: {column} lists {num_columns} flags of 0 and 1"
            return Labels(Task.MULTILABEL, names, explanation)
        if task is not Task.MULTILABEL:
            return Labels(Task.REGRESS, names, f"regress: {column} lists {num_columns} numbers")
    classes = sort_classes({name for row in rows for name in row})
    return Labels(
        Task.MULTILABEL, classes, f"multilabel: {column} lists any of {_counted(classes)}"
    )


def _are_tokens(cells: Sequence[str], lengths: Sequence[int]) -> bool:
    """Whether each cell has a label for each base of its sequence."""
    return max(lengths, default=0) > 1 and all(
        _num_tokens(cell) == length for cell, length in zip(cells, lengths, strict=True)
    )


def _num_tokens(cell: str) -> int:
    entries = parse_list(cell)
    return len(cell) if entries is None else len(entries)


def _look_like_classes(counts: Counter[str], numbers: dict[str, float]) -> bool:
    """Whether numeric labels are class names: whole numbers, and few distinct ones."""
    if len(counts) <= 2:
        return True
    are_whole = all(value.is_integer() for value in numbers.values())
    return (
        len(numbers) == len(counts) <= MAX_NUMBERED_CLASSES
        and are_whole
        and counts.total() >= 2 * len(counts)
    )


def class_name(cell: str) -> str:
    """The canonical name of a class: 1 for 1.0, otherwise the text."""
    number = _number(cell)
    return str(int(number)) if number is not None and number.is_integer() else cell


def sort_classes(names: Iterable[str]) -> tuple[str, ...]:
    """Sort class names: numbers by value, then words alphabetically."""

    def key(name: str) -> tuple[bool, float, str]:
        number = _number(name)
        return number is None, number or 0.0, name

    return tuple(sorted(names, key=key))


def parse_list(cell: str) -> list[str] | None:
    """Parse a list such as `[0, 1]` or `["a", "b"]`; None if the cell is not a list.

    Raises:
        ValueError: The cell looks like a list but cannot be parsed.
    """
    if not cell.startswith("["):
        return None
    entries = json.loads(cell.replace("'", '"'))
    return [entry if isinstance(entry, str) else json.dumps(entry) for entry in entries]


def parse_names(cell: str) -> list[str]:
    """Parse several labels: a list, or names separated by `;`, `|` or `,`."""
    entries = parse_list(cell)
    if entries is None:
        entries = cell.replace("|", ";").replace(",", ";").split(";")
    return [class_name(entry.strip()) for entry in entries if entry.strip() not in UNLABELLED]


def parse_tokens(cell: str, length: int, origin: str) -> Sequence[str]:
    """Parse the label of each base: the letters of the cell, or the entries of a list.

    Raises:
        UserError: The number of labels is not the number of bases.
    """
    tokens = parse_list(cell)
    labels: Sequence[str] = cell if tokens is None else [class_name(token) for token in tokens]
    if len(labels) != length:
        raise UserError(
            f"{origin}: {counted(len(labels), 'label')} for {counted(length, 'base')}; --task "
            "tokens needs one digit, letter or list entry for each base"
        )
    return labels


def parse_numbers(cells: Iterable[str], origin: str) -> list[float]:
    """Parse cells that hold numbers or lists of numbers.

    Raises:
        UserError: An entry is not a finite number.
    """
    values = []
    for cell in cells:
        for entry in parse_list(cell) or [cell]:
            value = _number(entry)
            if value is None:
                raise UserError(f"{origin}: label {entry!r} is not a finite number")
            values.append(value)
    return values


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if isfinite(value) else None


def _counted(classes: Sequence[str]) -> str:
    return f"{len(classes)} classes ({listed(classes)})"
