"""What layers know of labels: a linear model on the vectors of each, cross-validated.

N labelled names, D channels. scikit-learn, of the extra `probe`, is loaded when a probe is asked
for.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from evo2cli import console
from evo2cli.embed.options import EmbedOptions
from evo2cli.errors import UserError
from evo2cli.figures import new_figure, save_figure
from evo2cli.genome.source import read_lines
from evo2cli.tables import format_mean, mean_and_error

PENALTIES = tuple(10.0**power for power in range(-2, 7))  # of ridge regression, to choose from
ITERATIONS = 10_000  # of logistic regression, at most; usually it needs some tens

Fold = tuple[NDArray[np.int64], NDArray[np.int64]]  # rows to fit on, rows to test on


class Label(NamedTuple):
    """A line of a file of labels; lines of one group are never split between folds."""

    value: str
    group: str | None


@dataclass(frozen=True)
class Labelled:
    """Vectors that have a label, in an order of their own: that of the input changes nothing.

    Attributes:
        rows: Which they are.
        values: The label of each: numbers, or names of classes.
        groups: That of each, or None where there are none.
    """

    rows: list[int]
    values: list[float] | list[str]
    groups: list[str] | None

    @property
    def classes(self) -> dict[str, int]:
        """How many rows each class has; empty where labels are numbers."""
        words = [value for value in self.values if isinstance(value, str)]
        return dict(sorted(Counter(words).items()))

    @property
    def metric(self) -> str:
        """What is told of a layer: R2 of numbers, AUROC of two classes, accuracy of more."""
        return {0: "R2", 2: "AUROC"}.get(len(self.classes), "balanced accuracy")

    @property
    def chance(self) -> float:
        """What a layer reaches that knows nothing."""
        return 1 / len(self.classes) if self.classes else 0.0

    def folds(self, count: int, seed: int) -> list[Fold]:
        """Cut the rows into folds, classes shared out evenly, groups whole.

        Raises:
            UserError: There are too few rows for it, or scikit-learn is not there.
        """
        self._require_enough(count)
        selection = import_sklearn().model_selection
        kinds = {
            (True, False): selection.StratifiedKFold,
            (True, True): selection.StratifiedGroupKFold,
            (False, False): selection.KFold,
            (False, True): selection.GroupKFold,
        }
        cut = kinds[bool(self.classes), self.groups is not None]
        splitter = cut(n_splits=count, shuffle=True, random_state=seed)
        folds: list[Fold] = list(splitter.split(self.rows, self.values, self.groups))
        for train, test in folds:
            for part in (train, test):
                if len({self.values[row] for row in part}) < max(2, len(self.classes)):
                    raise UserError(
                        f"--folds {count}: a fold has not rows of every label; take fewer folds, "
                        "or smaller groups"
                    )
        return folds

    def _require_enough(self, count: int) -> None:
        if self.classes:
            rarest = min(self.classes, key=lambda name: self.classes[name])
            unit, least = f"class {rarest!r} has {self.classes[rarest]}", self.classes[rarest]
        else:
            unit, least = f"{len(self.rows)} have a number", len(self.rows) // 2
        if self.groups is not None and len(set(self.groups)) < count:
            unit, least = f"there are {len(set(self.groups))} groups", len(set(self.groups))
        if least < count:
            raise UserError(
                f"--probe: {unit}, too few for --folds {count}; label more, or take fewer folds"
            )


def import_sklearn() -> Any:
    """The module sklearn, with what a probe needs of it.

    Raises:
        UserError: It is not installed.
    """
    try:
        import sklearn.linear_model
        import sklearn.model_selection
        import sklearn.pipeline
        import sklearn.preprocessing
    except ImportError:
        raise UserError(
            "--probe needs scikit-learn; pip install 'evo2cli[probe]', or leave it"
        ) from None
    return sklearn


def read_labels(path: Path) -> dict[str, Label]:
    """Read `name<TAB>label` or `name<TAB>label<TAB>group`, a line each; .gz too.

    A first line that begins with `name` is a header; lines after # are comments.

    Raises:
        UserError: It cannot be read, a line is none, or a name comes twice.
    """
    found: dict[str, Label] = {}
    for number, columns in _label_lines(path):
        if not 2 <= len(columns) <= 3 or not all(columns[1:]):
            raise UserError(
                f"{path}: line {number}: {len(columns)} columns; write name, label and, if names "
                "belong together, a group, between tabs"
            )
        name, value, *group = columns
        if name in found:
            raise UserError(f"{path}: line {number}: {name!r} has a label already; give it one")
        found[name] = Label(value, group[0] if group else None)
    if not found:
        raise UserError(f"{path}: holds no label")
    if len({label.group is None for label in found.values()}) > 1:
        raise UserError(f"{path}: some lines have a group and some none; give one to all of them")
    return found


def _label_lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Number and cells of each line that counts."""
    is_first = True
    for number, line in enumerate(read_lines(path), start=1):
        text = line.decode(errors="replace").rstrip("\r\n")
        if not text.strip() or text.startswith("#"):
            continue
        columns = [cell.strip() for cell in text.split("\t")]
        if not (is_first and columns[0].lower() == "name"):
            yield number, columns
        is_first = False


def match_labels(options: EmbedOptions, names: Sequence[str]) -> Labelled | None:
    """Find the rows that have a label; None where no probe is asked for.

    Args:
        options: Tell the file of labels, and folds, which are tried.
        names: Of the rows.

    Raises:
        UserError: Labels cannot be read, or fit no names, or are too few for the folds.
    """
    if options.probe is None:
        return None
    labels = read_labels(options.probe)
    places: dict[str, int] = {}
    for row, name in enumerate(names):
        if name in labels and places.setdefault(name, row) != row:
            raise UserError(f"--probe {options.probe}: two vectors are named {name!r}")
    if not places:
        raise UserError(
            f"--probe {options.probe}: none of its {len(labels):,} names is one of those embedded: "
            f"{', '.join(names[:3])}, ..."
        )
    if len(places) < max(len(names), len(labels)):
        console.say(
            f"{options.probe}: {len(places):,} of {len(labels):,} labels fit one of {len(names):,} "
            "vectors"
        )
    chosen = sorted(places)
    groups = [group for name in chosen if (group := labels[name].group) is not None]
    labelled = Labelled(
        rows=[places[name] for name in chosen],
        values=_values([labels[name].value for name in chosen]),
        groups=groups or None,
    )
    if len(labelled.classes) == 1:
        raise UserError(f"--probe {options.probe}: all labels are {next(iter(labelled.classes))!r}")
    labelled.folds(options.folds, options.seed)
    return labelled


def _values(texts: list[str]) -> list[float] | list[str]:
    """Numbers if all are and more than two differ; else classes."""
    try:
        numbers = [float(text) for text in texts]
    except ValueError:
        return texts
    return numbers if len(set(numbers)) > 2 and np.isfinite(numbers).all() else texts


def probe_layers(
    vectors: Mapping[str, NDArray[np.float32]], labelled: Labelled, *, folds: int, seed: int
) -> dict[str, Any]:
    """Fit and test a linear model on each layer, in the same folds.

    Channels are standardized by what is fitted on. Classes: logistic regression, L2 with C = 1.
    Numbers: ridge regression, its penalty the best of `PENALTIES` in leave-one-out.

    Args:
        vectors: [rows, D] of each layer.
        labelled: Rows that are used.
        folds: How many.
        seed: Of the folds.

    Returns:
        metric, chance, classes (rows of each), labelled, groups (None without), folds, seed; rows:
        for each layer the mean score over folds and its standard error; best: the layer of the
        highest mean.
    """
    splits = labelled.folds(folds, seed)
    scores: dict[str, float] = {}
    errors: dict[str, float | None] = {}
    with console.progress("probe", len(vectors), "layers") as bar:
        for layer, vectors_RD in vectors.items():
            found = _scores(vectors_RD[labelled.rows], labelled, splits)
            scores[layer], errors[layer] = mean_and_error(found)
            bar.advance()
    return {
        "metric": labelled.metric,
        "chance": labelled.chance,
        "classes": labelled.classes,
        "labelled": len(labelled.rows),
        "groups": labelled.groups and len(set(labelled.groups)),
        "folds": folds,
        "seed": seed,
        "rows": [{"layer": layer, "score": scores[layer], "se": errors[layer]} for layer in scores],
        "best": max(scores, key=lambda layer: scores[layer]),
    }


def _scores(vectors_ND: NDArray[np.float32], labelled: Labelled, splits: list[Fold]) -> list[float]:
    """The score of each fold."""
    sklearn = import_sklearn()
    if labelled.classes:
        model = sklearn.linear_model.LogisticRegression(max_iter=ITERATIONS)
    else:
        model = sklearn.linear_model.RidgeCV(alphas=PENALTIES)
    pipeline = sklearn.pipeline.make_pipeline(sklearn.preprocessing.StandardScaler(), model)
    scoring = {"AUROC": "roc_auc", "R2": "r2"}.get(labelled.metric, "balanced_accuracy")
    scores = sklearn.model_selection.cross_val_score(
        pipeline, vectors_ND.astype(np.float64), labelled.values, cv=splits, scoring=scoring
    )
    return [float(score) for score in scores]


def probe_page(result: Mapping[str, Any]) -> RenderableType:
    """Lay out what `probe_layers` returns."""
    table = Table(box=None, pad_edge=False)
    table.add_column("layer")
    table.add_column(result["metric"], justify="right")
    table.add_column("")
    for row in result["rows"]:
        mark = "best" if row["layer"] == result["best"] else ""
        table.add_row(row["layer"], format_mean(row["score"], row["se"], 3), mark)
    counts = ", ".join(f"{count:,} {name}" for name, count in result["classes"].items())
    groups = f", {result['groups']:,} groups" if result["groups"] else ""
    title = (
        f"{counts or f'''{result['labelled']:,} numbers'''}{groups}: {result['metric']}, "
        f"{result['folds']} folds, chance {result['chance']:.2g}"
    )
    return Group(Text(title), Text(), table)


def draw_probe(path: Path, result: Mapping[str, Any]) -> None:
    """The score of each layer, with its standard error, and chance.

    Raises:
        UserError: The figure cannot be written.
    """
    rows = result["rows"]
    figure = new_figure(3 + 0.22 * len(rows), 4.5)
    axes = figure.subplots()
    scores, errors = ([row[key] for row in rows] for key in ("score", "se"))
    places = range(len(rows))
    axes.errorbar(places, scores, errors, marker="o", markersize=4, capsize=2, linewidth=1.2)
    axes.axhline(result["chance"], color="grey", linestyle=":", linewidth=1, label="chance")
    axes.set_xticks(places, [row["layer"] for row in rows], rotation=90, fontsize="small")
    axes.set(ylabel=f"{result['metric']}, {result['folds']} folds", title=f"best: {result['best']}")
    axes.grid(alpha=0.3)
    axes.legend()
    save_figure(figure, path)
