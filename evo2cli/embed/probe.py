"""Linear probing: cross-validate a linear model from the vectors of each layer to labels.

N labelled vectors, D channels. scikit-learn (the extra `probe`) is imported only when needed.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from evo2cli.errors import UserError, counted
from evo2cli.figures import new_figure, save_figure
from evo2cli.genome.source import numbered_lines
from evo2cli.tables import format_mean, mean_and_error

PENALTIES = tuple(10.0**power for power in range(-2, 7))  # candidate alphas of ridge regression
MAX_ITERATIONS = 10_000  # of logistic regression, which usually needs some tens

Fold = tuple[NDArray[np.int64], NDArray[np.int64]]  # rows to fit on, rows to test on


class Label(NamedTuple):
    """A label, and the group that must not be split across folds, or None."""

    value: str
    group: str | None


@dataclass(frozen=True)
class Labelled:
    """The labelled vectors, sorted by name, so that results do not depend on the input order.

    Attributes:
        rows: Indices of the vectors.
        values: Labels: numbers, or names of classes.
        groups: Groups for grouped cross-validation, or None.
    """

    rows: list[int]
    values: list[float] | list[str]
    groups: list[str] | None

    @property
    def classes(self) -> dict[str, int]:
        """Number of rows of each class; empty if labels are numbers."""
        words = [value for value in self.values if isinstance(value, str)]
        return dict(sorted(Counter(words).items()))

    @property
    def metric(self) -> str:
        """The metric: R2 for numbers, AUROC for two classes, balanced accuracy for more."""
        return {0: "R2", 2: "AUROC"}.get(len(self.classes), "balanced accuracy")

    @property
    def chance(self) -> float:
        """The score expected by chance."""
        return 1 / len(self.classes) if self.classes else 0.0

    def folds(self, count: int, seed: int) -> list[Fold]:
        """Split the rows into folds, stratified by class, with every group in one fold.

        Raises:
            UserError: There are too few rows, or scikit-learn is not installed.
        """
        if self.classes:
            rarest = min(self.classes, key=lambda name: self.classes[name])
            limit = self.classes[rarest]
            reason = f"the size of class {rarest!r} is {limit}"
        else:
            limit = len(self.rows) // 2
            reason = f"the number of numeric labels is {len(self.rows)}"
        if self.groups is not None and len(set(self.groups)) < count:
            limit = len(set(self.groups))
            reason = f"the number of groups is {limit}"
        if limit < count:
            raise UserError(
                f"--probe: {reason}, too few for --folds {count}; label more, or use fewer folds"
            )
        selection = import_sklearn("--probe").model_selection
        kinds = {
            (True, False): selection.StratifiedKFold,
            (True, True): selection.StratifiedGroupKFold,
            (False, False): selection.KFold,
            (False, True): selection.GroupKFold,
        }
        splitter = kinds[bool(self.classes), self.groups is not None](
            n_splits=count, shuffle=True, random_state=seed
        )
        folds: list[Fold] = list(splitter.split(self.rows, self.values, self.groups))
        for train, test in folds:
            for part in (train, test):
                if len({self.values[row] for row in part}) < max(2, len(self.classes)):
                    raise UserError(
                        f"--folds {count}: a fold does not have rows of every label; use fewer "
                        "folds, or smaller groups"
                    )
        return folds


def import_sklearn(needed_by: str) -> Any:
    """Import scikit-learn with the submodules for linear models.

    Raises:
        UserError: It is not installed; the message begins with `needed_by`.
    """
    try:
        import sklearn.dummy
        import sklearn.linear_model
        import sklearn.model_selection
        import sklearn.pipeline
        import sklearn.preprocessing
    except ImportError:
        raise UserError(f"{needed_by} needs scikit-learn: pip install 'evo2cli[probe]'") from None
    return sklearn


def linear_model(needed_by: str, *, is_numeric: bool, c: float = 1.0) -> Any:
    """Create a pipeline of standardization and a linear model.

    Args:
        needed_by: As for `import_sklearn`.
        is_numeric: True for ridge regression, with alpha chosen from `PENALTIES` by leave-one-out
            cross-validation; false for logistic regression with an L2 penalty.
        c: Inverse regularization strength of logistic regression.
    """
    sklearn = import_sklearn(needed_by)
    if is_numeric:
        model = sklearn.linear_model.RidgeCV(alphas=PENALTIES)
    else:
        model = sklearn.linear_model.LogisticRegression(C=c, max_iter=MAX_ITERATIONS)
    return sklearn.pipeline.make_pipeline(sklearn.preprocessing.StandardScaler(), model)


def read_labels(path: Path) -> dict[str, Label]:
    """Read lines `name<TAB>label` or `name<TAB>label<TAB>group`; the file may be gzipped.

    A first line that begins with `name` is a header; lines that begin with # are comments.

    Raises:
        UserError: The file cannot be read, a line has other columns, or a name occurs twice.
    """
    labels: dict[str, Label] = {}
    for number, columns in _label_lines(path):
        if not 2 <= len(columns) <= 3 or not all(columns[1:]):
            raise UserError(
                f"{path}: line {number}: {counted(len(columns), 'column')}; it needs name, label "
                "and, optionally, a group, separated by tabs"
            )
        name, value, *group = columns
        if name in labels:
            raise UserError(f"{path}: line {number}: {name!r} already has a label; give one")
        labels[name] = Label(value, group[0] if group else None)
    if not labels:
        raise UserError(f"{path}: has no labels")
    if len({label.group is None for label in labels.values()}) > 1:
        raise UserError(f"{path}: some lines have a group and others do not; give all of them one")
    return labels


def _label_lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Number and cells of each line, without comments, empty lines and the header."""
    is_first = True
    with numbered_lines(path) as lines:
        for number, line in lines:
            text = line.decode(errors="replace").rstrip("\r\n")
            if not text.strip() or text.startswith("#"):
                continue
            columns = [cell.strip() for cell in text.split("\t")]
            if not (is_first and columns[0].lower() == "name"):
                yield number, columns
            is_first = False


def match_labels(path: Path, labels: Mapping[str, Label], names: Sequence[str]) -> Labelled:
    """Match labels to vectors by name.

    Args:
        path: The file of the labels, for error messages.
        labels: The labels by name.
        names: Names of the vectors.

    Raises:
        UserError: A label matches two vectors, none matches any, or all labels are the same.
    """
    rows: dict[str, int] = {}
    for row, name in enumerate(names):
        if name in labels and rows.setdefault(name, row) != row:
            raise UserError(f"--probe {path}: two vectors are named {name!r}")
    if not rows:
        raise UserError(
            f"--probe {path}: none of its names ({len(labels):,}) is the name of a vector: "
            f"{', '.join(names[:3])}, ..."
        )
    matched = sorted(rows)
    texts = [labels[name].value for name in matched]
    groups = [group for name in matched if (group := labels[name].group) is not None]
    labelled = Labelled(
        rows=[rows[name] for name in matched],
        values=_numbers(texts) or texts,
        groups=groups or None,
    )
    if len(labelled.classes) == 1:
        raise UserError(f"--probe {path}: all labels are {texts[0]!r}")
    return labelled


def _numbers(texts: list[str]) -> list[float] | None:
    """Labels as numbers, if all are finite numbers and there are more than two; else None."""
    try:
        numbers = [float(text) for text in texts]
    except ValueError:
        return None
    return numbers if len(set(numbers)) > 2 and np.isfinite(numbers).all() else None


def probe_layers(
    vectors: Mapping[str, NDArray[np.float32]],
    labelled: Labelled,
    *,
    folds: int,
    seed: int,
    progress: Callable[[float], None] = lambda _: None,
) -> dict[str, Any]:
    """Cross-validate `linear_model` (C = 1) on each layer, with the same folds.

    Args:
        vectors: Vectors of each layer, [rows, D].
        labelled: The labelled rows.
        folds: Number of folds.
        seed: Seed of the folds.
        progress: Called with 1 after each layer.

    Returns:
        metric, chance, classes (number of rows by class), labelled (number of rows), groups (their
        number or None), folds, seed; rows: mean score over folds and its standard error per layer;
        best: the layer with the highest mean.
    """
    sklearn = import_sklearn("--probe")
    pipeline = linear_model("--probe", is_numeric=not labelled.classes)
    scoring = {"AUROC": "roc_auc", "R2": "r2"}.get(labelled.metric, "balanced_accuracy")
    splits = labelled.folds(folds, seed)
    rows: list[dict[str, Any]] = []
    for layer, vectors_RD in vectors.items():
        scores = sklearn.model_selection.cross_val_score(
            pipeline,
            vectors_RD[labelled.rows].astype(np.float64),
            labelled.values,
            cv=splits,
            scoring=scoring,
        )
        score, error = mean_and_error([float(score) for score in scores])
        rows.append({"layer": layer, "score": score, "se": error})
        progress(1)
    return {
        "metric": labelled.metric,
        "chance": labelled.chance,
        "classes": labelled.classes,
        "labelled": len(labelled.rows),
        "groups": labelled.groups and len(set(labelled.groups)),
        "folds": folds,
        "seed": seed,
        "rows": rows,
        "best": max(rows, key=lambda row: row["score"])["layer"],
    }


def probe_page(result: Mapping[str, Any]) -> RenderableType:
    """Lay out the result of `probe_layers` as a table."""
    table = Table(box=None, pad_edge=False)
    table.add_column("layer")
    table.add_column(result["metric"], justify="right")
    table.add_column("")
    for row in result["rows"]:
        mark = "best" if row["layer"] == result["best"] else ""
        table.add_row(row["layer"], format_mean(row["score"], row["se"], 3), mark)
    counts = ", ".join(f"{count:,} {name}" for name, count in result["classes"].items())
    groups = f", {result['groups']:,} groups" if result["groups"] else ""
    numbers = f"{result['labelled']:,} numbers"
    title = (
        f"{counts or numbers}{groups}: {result['metric']}, "
        f"{result['folds']} folds, chance {result['chance']:.2g}"
    )
    return Group(Text(title), Text(), table)


def draw_probe(path: Path, result: Mapping[str, Any]) -> None:
    """Plot the score of each layer with its standard error, and the chance level.

    Raises:
        UserError: The figure cannot be written.
    """
    rows = result["rows"]
    figure = new_figure(3 + 0.22 * len(rows), 4.5)
    axes = figure.subplots()
    scores, errors = ([row[key] for row in rows] for key in ("score", "se"))
    indices = range(len(rows))
    axes.errorbar(indices, scores, errors, marker="o", markersize=4, capsize=2, linewidth=1.2)
    axes.axhline(result["chance"], color="grey", linestyle=":", linewidth=1, label="chance")
    axes.set_xticks(indices, [row["layer"] for row in rows], rotation=90, fontsize="small")
    axes.set(ylabel=f"{result['metric']}, {result['folds']} folds", title=f"best: {result['best']}")
    axes.grid(alpha=0.3)
    axes.legend()
    save_figure(figure, path)
