"""Figures of evaluations."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evo2cli.errors import counted
from evo2cli.eval.labels import Allele
from evo2cli.eval.report import cells_by_distractors, format_length
from evo2cli.figures import new_figure, save_figure
from evo2cli.ranking import roc_curve

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PANEL = (6.0, 5.0)  # inches
MAX_CURVES = 7  # more cannot be told apart in one panel


def draw_needle(path: Path, result: Mapping[str, Any]) -> None:
    """Two heat maps, depth by length, for each set of distractors: copy accuracy, likelihood gap.

    Raises:
        UserError: The figure cannot be written.
    """
    sets = cells_by_distractors(result["cells"])
    figure = new_figure(1 + 2 * PANEL[0], PANEL[1] * len(sets))
    panels = figure.subplots(len(sets), 2, squeeze=False)
    for (left, right), (distractors, cells) in zip(panels, sets.items(), strict=True):
        under = f"\n{distractors}" if len(sets) > 1 else ""
        _heat_map(left, cells, "accuracy", f"copy accuracy{under}", (0.25, 1))
        # Perfect recall of one of four equally likely bases gains ln 4.
        title = f"likelihood gap, nats per base{under}"
        _heat_map(right, cells, "gap", title, (0, math.log(4)))
    figure.suptitle(f"{result['model']}: needle in {result['haystack']}")
    save_figure(figure, path)


def _heat_map(
    axes: "Axes",
    cells: Sequence[Mapping[str, Any]],
    name: str,
    title: str,
    limits: tuple[float, float],
) -> None:
    """One heat map with its numbers; colours range from chance to perfect recall."""
    values = {(cell["depth"], cell["length"]): cell[name] for cell in cells}
    depths, lengths = (sorted({key[axis] for key in values}) for axis in (0, 1))
    rows = [[values[depth, length] for length in lengths] for depth in depths]
    image = axes.imshow(rows, aspect="auto", cmap="viridis", vmin=limits[0], vmax=limits[1])
    for row, entries in enumerate(rows):
        for column, value in enumerate(entries):
            dark = value < sum(limits) / 2
            colour = "white" if dark else "black"
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", color=colour)
    axes.set_xticks(range(len(lengths)), [format_length(length) for length in lengths])
    axes.set_yticks(range(len(depths)), [f"{depth:g} %" for depth in depths])
    axes.set(xlabel="length of the text, bases", ylabel="depth of the needle", title=title)
    axes.figure.colorbar(image, ax=axes)


def draw_context(path: Path, result: Mapping[str, Any]) -> None:
    """Loss as a function of position: a step per section, with the standard error as a band.

    Raises:
        UserError: The figure cannot be written.
    """
    figure = new_figure(1 + PANEL[0], PANEL[1])
    axes = figure.subplots()
    sections = [row for row in result["rows"] if row["part"] == "stretch"]
    ends = [row["end"] for row in sections]
    borders = [ends[0] / 2, *ends]  # a logarithmic axis has no 0
    for name, key in ((result["model"], "loss"), (result["against"], "against")):
        if name is None:
            continue
        losses = [row[key] for row in sections]
        errors = [row[f"{key}_se"] or 0 for row in sections]
        # A step is drawn from the border before its value, so the first value is given twice.
        xs, ys, margins = borders, [losses[0], *losses], [errors[0], *errors]
        [line] = axes.step(xs, ys, where="pre", label=name)
        lower = [y - margin for y, margin in zip(ys, margins, strict=True)]
        upper = [y + margin for y, margin in zip(ys, margins, strict=True)]
        axes.fill_between(xs, lower, upper, step="pre", alpha=0.2, color=line.get_color())
    axes.set_xscale("log", base=2)
    axes.set_xticks(borders[1:], [format_length(border) for border in borders[1:]])
    axes.set(xlabel="position in the window", ylabel="loss, nats per base", title=result["genome"])
    axes.grid(alpha=0.3)
    axes.legend()
    save_figure(figure, path)


def draw_continuation(path: Path, result: Mapping[str, Any]) -> None:
    """Accuracy as a function of context length, with its interval as a band.

    Raises:
        UserError: The figure cannot be written.
    """
    figure = new_figure(1 + PANEL[0], PANEL[1])
    axes = figure.subplots()
    groups = list(dict.fromkeys(row["group"] for row in result["rows"]))[:MAX_CURVES]
    for group in groups:
        rows = [row for row in result["rows"] if row["group"] == group]
        contexts = [row["context"] for row in rows]
        [line] = axes.plot(contexts, [row["accuracy"] for row in rows], marker="o", label=group)
        low, high = ([row[f"accuracy_{end}"] for row in rows] for end in ("low", "high"))
        axes.fill_between(contexts, low, high, alpha=0.2, color=line.get_color())
        markov = [row["markov"] for row in rows]
        axes.plot(contexts, markov, color=line.get_color(), linestyle=":")
    axes.set_xscale("log", base=2)
    axes.set_xticks(contexts, [format_length(length) for length in contexts])
    axes.set(
        xlabel="context, bases",
        ylabel=f"share of the next {counted(result['bases'], 'base')}",
        title=f"{result['model']}; dotted: Markov model of the context",
    )
    axes.grid(alpha=0.3)
    axes.legend()
    save_figure(figure, path)


def draw_ranking(path: Path, result: Mapping[str, Any], alleles: Sequence[Allele]) -> None:
    """ROC curves of all alleles and of each consequence, and the deltas of both labels.

    Raises:
        UserError: The figure cannot be written.
    """
    figure = new_figure(1 + 2 * PANEL[0], PANEL[1])
    left, right = figure.subplots(1, 2)
    rows = [row for row in result["rows"] if row["auroc"] is not None]
    curves = [row for row in rows if row["kind"] in ("all", "consequence")]
    for row in curves[:MAX_CURVES]:
        group = (row["kind"], row["group"])
        chosen = [a for a in alleles if row["kind"] == "all" or group in a.groups]
        rates = roc_curve([-a.delta for a in chosen], [a.positive for a in chosen])
        width = 2.5 if row["kind"] == "all" else 1.2
        left.plot(*rates, linewidth=width, label=f"{row['group']}: {row['auroc']:.3f}")
    left.plot([0, 1], [0, 1], color="grey", linestyle=":", linewidth=1)
    left.set(xlabel="false positive rate", ylabel="true positive rate", title="ROC: AUROC")
    left.set_aspect("equal")
    if curves:
        left.legend(loc="lower right", fontsize="small")
    _violins(right, result, alleles)
    figure.suptitle(f"{Path(result['source']).name}, {result['label']}")
    save_figure(figure, path)


def _violins(axes: "Axes", result: Mapping[str, Any], alleles: Sequence[Allele]) -> None:
    """The distributions of deltas with their medians, negatives on the left."""
    sides = [[a.delta for a in alleles if a.positive == side] for side in (False, True)]
    names = [", ".join(result[side]).replace("_", " ") for side in ("negative", "positive")]
    shown = [(deltas, name) for deltas, name in zip(sides, names, strict=True) if deltas]
    axes.violinplot([deltas for deltas, _ in shown], showmedians=True, widths=0.8)
    labels = [f"{name}\n{len(deltas):,}" for deltas, name in shown]
    axes.set_xticks(range(1, len(shown) + 1), labels)
    axes.axhline(0, color="grey", linestyle=":", linewidth=1)
    axes.set(ylabel="EVO2_DELTA, nats", title="deltas")
