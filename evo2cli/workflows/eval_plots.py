"""Figures of evaluations; matplotlib, of the extra `plots`, is loaded when one is asked for."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evo2cli.errors import UserError
from evo2cli.workflows.eval import check_file, length_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".pdf", ".svg")


def check_plot(path: Path | None) -> None:
    """Refuse a figure that could not be drawn; None, no figure, is fine.

    Raises:
        UserError: Suffix or folder will not do, or matplotlib is not installed.
    """
    if path is None:
        return
    check_file(path, "--plot", SUFFIXES)
    _new_figure(1)


def _new_figure(panels: int) -> "Figure":
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError(
            "--plot needs matplotlib; pip install 'evo2cli[plots]', or leave it"
        ) from None
    return Figure(figsize=(1 + 6 * panels, 5), layout="constrained")


def _save(figure: "Figure", path: Path) -> None:
    """Write a figure whole or not at all."""
    part = path.with_name(f"{path.name}.part")
    try:
        figure.savefig(part, format=path.suffix[1:], dpi=110)
        part.replace(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error})") from None
    finally:
        part.unlink(missing_ok=True)


def draw_needle(path: Path, result: Mapping[str, Any]) -> None:
    """Two heat maps, depth by length: copy accuracy and likelihood gap.

    Raises:
        UserError: The figure cannot be written.
    """
    figure = _new_figure(2)
    left, right = figure.subplots(1, 2)
    _heat(left, result, "accuracy", "copy accuracy", (0.25, 1))
    # Telling one of four equally likely bases is worth ln 4.
    _heat(right, result, "gap", "likelihood gap, nats a base", (0, math.log(4)))
    figure.suptitle(f"{result['model']}: needle in {result['haystack']}")
    _save(figure, path)


def _heat(
    axes: "Axes", result: Mapping[str, Any], name: str, title: str, limits: tuple[float, float]
) -> None:
    """One heat map, from chance to all that can be had, with its numbers written in."""
    values = {(cell["depth"], cell["length"]): cell[name] for cell in result["cells"]}
    depths, lengths = (sorted({key[axis] for key in values}) for axis in (0, 1))
    rows = [[values[depth, length] for length in lengths] for depth in depths]
    image = axes.imshow(rows, aspect="auto", cmap="viridis", vmin=limits[0], vmax=limits[1])
    for row, entries in enumerate(rows):
        for column, value in enumerate(entries):
            dark = value < sum(limits) / 2
            colour = "white" if dark else "black"
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", color=colour)
    axes.set_xticks(range(len(lengths)), [length_label(length) for length in lengths])
    axes.set_yticks(range(len(depths)), [f"{depth:g} %" for depth in depths])
    axes.set(xlabel="length of the text, bases", ylabel="depth of the needle", title=title)
    axes.figure.colorbar(image, ax=axes)


def draw_context(path: Path, result: Mapping[str, Any]) -> None:
    """Loss against position, a step for each stretch, with its standard error as a band.

    Raises:
        UserError: The figure cannot be written.
    """
    figure = _new_figure(1)
    axes = figure.subplots()
    stretches = [row for row in result["rows"] if row["part"] == "stretch"]
    ends = [row["end"] for row in stretches]
    borders = [ends[0] / 2, *ends]  # there is no 0 on this axis
    for name, key in ((result["model"], "loss"), (result["against"], "against")):
        if name is None:
            continue
        losses = [row[key] for row in stretches]
        errors = [row[f"{key}_se"] or 0 for row in stretches]
        # A step reaches back to the border before its own; at the first border nothing is drawn.
        xs, ys, margins = borders, [losses[0], *losses], [errors[0], *errors]
        [line] = axes.step(xs, ys, where="pre", label=name)
        lower = [y - margin for y, margin in zip(ys, margins, strict=True)]
        upper = [y + margin for y, margin in zip(ys, margins, strict=True)]
        axes.fill_between(xs, lower, upper, step="pre", alpha=0.2, color=line.get_color())
    axes.set_xscale("log", base=2)
    axes.set_xticks(borders[1:], [length_label(border) for border in borders[1:]])
    axes.set(xlabel="position in the window", ylabel="loss, nats a base", title=result["genome"])
    axes.grid(alpha=0.3)
    axes.legend()
    _save(figure, path)
