"""`evo2 eval traitgym`: the TraitGym benchmark of causal variants; see docs/eval.md.

The metric is AUPRC by chromosome, averaged with the numbers of variants as weights; logistic
regressions are cross-validated by leaving one chromosome out.

V variants, F features.
"""

import math
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Group, RenderableType
from rich.text import Text

from evo2cli import __version__, console
from evo2cli.embed.probe import import_sklearn
from evo2cli.errors import UserError, counted
from evo2cli.eval.options import TraitGymOptions
from evo2cli.eval.report import check_outputs, format_estimate, write_table
from evo2cli.genome.contig_names import plain_name
from evo2cli.genome.table import cell_flag, cell_number, cell_text, open_table
from evo2cli.ranking import PERCENTILES, RESAMPLES, area_under_roc, average_precision, count_levels
from evo2cli.tables import Row, rounded

EMBEDDING = "embedding_"
SIGNS = {"llr": -1.0, "EVO2_DELTA": -1.0}  # the less likely, the more likely causal; others: +1
PENALTIES = tuple(10.0**exponent for exponent in range(-8, 1))  # C of logistic regression
FOLDS = 3  # of chromosomes, among those fitted on, to choose C
MAX_ITERATIONS = 1000


@dataclass(frozen=True)
class Labelled:
    """The variants that have a label and all features.

    Attributes:
        chromosomes: Chromosome of each variant, without the prefix chr, [V].
        positive: Whether a variant is causal, [V].
        values: Each feature by name, [V].
        num_left_out: Number of variants without a feature.
    """

    chromosomes: NDArray[np.str_]
    positive: NDArray[np.bool_]
    values: Mapping[str, NDArray[np.float64]]
    num_left_out: int


def evaluate_traitgym(options: TraitGymOptions) -> dict[str, Any]:
    """Evaluate features of variants, and logistic regressions on them, as predictors.

    Returns:
        evaluation, source, label, metric, positives, negatives, left_out (variants without
        features), chromosomes (with both labels), resamples, seed; rows: for each predictor its
        AUPRC and AUROC by chromosome, with the interval of AUPRC.

    Raises:
        UserError: The table cannot be used, or scikit-learn is not installed.
    """
    check_outputs(options, options.source)
    labelled = read_labelled(options)
    chosen = [
        name
        for name in np.unique(labelled.chromosomes)
        if len(set(labelled.positive[labelled.chromosomes == name])) == 2
    ]
    if not chosen:
        raise UserError(f"{options.source}: no chromosome has variants of both labels")
    predictors = _predictors(labelled, chosen)
    rows: list[Row] = [
        {"predictor": name, **_by_chromosome(labelled, scores_V, chosen, options.seed)}
        for name, scores_V in predictors.items()
    ]
    result = {
        "evaluation": "traitgym",
        "evo2cli": __version__,
        "source": str(options.source),
        "label": options.label,
        "metric": "AUPRC by chromosome, weighted by the number of variants",
        "positives": int(labelled.positive.sum()),
        "negatives": int((~labelled.positive).sum()),
        "left_out": labelled.num_left_out,
        "chromosomes": [str(name) for name in chosen],
        "resamples": RESAMPLES,
        "seed": options.seed,
        "rows": rows,
    }
    write_table(options.output, result, rows)
    return result


def read_labelled(options: TraitGymOptions) -> Labelled:
    """Read the table.

    Raises:
        UserError: It lacks a column, or a cell is not a label or not a number.
    """
    path = options.source
    table = open_table(path)
    with closing(table.rows):
        chrom = next((name for name in table.names if name.lower().lstrip("#") == "chrom"), "chrom")
        features = _feature_columns(path, table.names, options)
        chrom_at, label_at = table.column(chrom), table.column(options.label, "name it by --label")
        feature_at = [table.column(name) for name in features]
        chromosomes, positive, values, num_left_out = [], [], [], 0
        for number, row in table.rows:
            where = table.origin(number)
            is_positive = cell_flag(where, options.label, row[label_at])
            numbers = [
                cell_number(where, name, row[at])
                for name, at in zip(features, feature_at, strict=True)
            ]
            if not all(map(math.isfinite, numbers)):
                num_left_out += 1
                continue
            chromosomes.append(plain_name(cell_text(row[chrom_at])))
            positive.append(is_positive)
            values.append(numbers)
    if not values:
        raise UserError(f"{path}: no variant has a label and features")
    if num_left_out:
        console.warn(f"{counted(num_left_out, 'variant')} without features left out")
    columns = np.asarray(values, dtype=np.float64).T
    return Labelled(
        np.asarray(chromosomes),
        np.asarray(positive, dtype=bool),
        dict(zip(features, columns, strict=True)),
        num_left_out,
    )


def _feature_columns(path: Path, names: Sequence[str], options: TraitGymOptions) -> list[str]:
    """The feature columns: those of `--features`, or those written by `evo2 score`.

    Raises:
        UserError: There are none, or one is missing.
    """
    if options.features:
        wanted = [word.strip() for word in options.features.split(",")]
        columns = [
            name
            for word in wanted
            for name in ([word] if word in names else _of_embedding(names, word))
        ]
        if missing := [w for w in wanted if w not in names and not _of_embedding(names, w)]:
            raise UserError(f"--features {options.features}: {path} has no column {missing[0]!r}")
        return list(dict.fromkeys(columns))
    scalars = [name for name in ("llr", "absllr") if name in names]
    if not scalars and "EVO2_DELTA" in names:
        scalars = ["EVO2_DELTA"]
    if columns := [*scalars, *_of_embedding(names, "embedding")]:
        return columns
    raise UserError(
        f"{path}: has no feature (llr, absllr, embedding_0, ..., EVO2_DELTA); run evo2 "
        "score --features first, or name the columns with --features"
    )


def _of_embedding(names: Sequence[str], word: str) -> list[str]:
    return [name for name in names if word == "embedding" and name.startswith(EMBEDDING)]


def _predictors(labelled: Labelled, chosen: Sequence[str]) -> dict[str, NDArray[np.float64]]:
    """The scores [V] of each predictor: the higher, the more likely causal."""
    embedding = [name for name in labelled.values if name.startswith(EMBEDDING)]
    scalars = [name for name in labelled.values if name not in embedding]
    predictors = {
        f"-{name}" if name in SIGNS else name: SIGNS.get(name, 1.0) * labelled.values[name]
        for name in scalars
    }
    if len(chosen) <= FOLDS:
        console.warn(f"logistic regression needs more than {FOLDS} chromosomes with both labels")
        return predictors
    groups = {"embedding": embedding} if scalars and embedding else {}
    groups["all features"] = [*scalars, *embedding]
    for name, columns in groups.items():
        x_VF = np.stack([labelled.values[column] for column in columns], axis=1)
        predictors[f"logistic, {name}"] = predict_left_out(labelled, x_VF, chosen)
    return predictors


def predict_left_out(
    labelled: Labelled, x_VF: NDArray[np.float64], chosen: Sequence[str]
) -> NDArray[np.float64]:
    """Scores [V] of a logistic regression, cross-validated by leaving one chromosome out.

    Features are standardized on the training variants. The penalty is the one with the best average
    precision in an inner cross-validation with `FOLDS` folds grouped by chromosome.
    """
    sklearn = import_sklearn("evo2 eval traitgym")
    scores_V = np.zeros(len(x_VF))
    with console.progress("fit", len(chosen), "chromosomes") as bar:
        for name in chosen:
            test_V = labelled.chromosomes == name
            train_V = np.isin(labelled.chromosomes, chosen) & ~test_V
            search = sklearn.model_selection.GridSearchCV(
                sklearn.pipeline.make_pipeline(
                    sklearn.preprocessing.StandardScaler(),
                    sklearn.linear_model.LogisticRegression(
                        class_weight="balanced", max_iter=MAX_ITERATIONS
                    ),
                ),
                {"logisticregression__C": PENALTIES},
                scoring="average_precision",
                cv=sklearn.model_selection.GroupKFold(FOLDS),
            )
            groups = labelled.chromosomes[train_V]
            search.fit(x_VF[train_V], labelled.positive[train_V], groups=groups)
            scores_V[test_V] = search.decision_function(x_VF[test_V])
            bar.advance()
    return scores_V


def _by_chromosome(
    labelled: Labelled, scores_V: NDArray[np.float64], chosen: Sequence[str], seed: int
) -> Row:
    """AUPRC and AUROC, averaged over chromosomes with their numbers of variants as weights.

    The 95 % interval of AUPRC is from a bootstrap over chromosomes.
    """
    precisions, areas, sizes = [], [], []
    for name in chosen:
        own_V = labelled.chromosomes == name
        positives_U, negatives_U = count_levels(scores_V[own_V], labelled.positive[own_V])
        precisions.append(average_precision(positives_U[None], negatives_U[None])[0])
        areas.append(area_under_roc(positives_U[None], negatives_U[None])[0])
        sizes.append(own_V.sum())
    draws = np.random.default_rng(seed).integers(len(chosen), size=(RESAMPLES, len(chosen)))
    resampled = np.average(
        np.asarray(precisions)[draws], axis=1, weights=np.asarray(sizes, dtype=float)[draws]
    )
    low, high = np.percentile(resampled, PERCENTILES)
    return {
        "auprc": rounded(float(np.average(precisions, weights=sizes))),
        "auprc_low": rounded(float(low)),
        "auprc_high": rounded(float(high)),
        "auroc": rounded(float(np.average(areas, weights=sizes))),
    }


def traitgym_page(result: dict[str, Any]) -> RenderableType:
    """Lay out the result of `evaluate_traitgym`."""
    table = console.number_table("predictor", "AUPRC", "95 %", "AUROC")
    for row in result["rows"]:
        table.add_row(row["predictor"], *format_estimate(row, "auprc"), f"{row['auroc']:.3f}")
    share = result["positives"] / (result["positives"] + result["negatives"])
    return Group(
        Text(
            f"{result['source']}: {result['positives']:,} positive and {result['negatives']:,} "
            f"negative variants on {counted(len(result['chromosomes']), 'chromosome')}",
            style="bold",
        ),
        Text(f"means over chromosomes, weighted by variants; AUPRC by chance {share:.3f}\n"),
        table,
    )
