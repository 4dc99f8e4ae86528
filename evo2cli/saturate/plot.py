"""Figures of scores."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from evo2cli.figures import new_figure, save_figure
from evo2cli.genome.vcf import VariantRecord
from evo2cli.saturate.records import BASES
from evo2cli.score.output import Put
from evo2cli.tables import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage

ACROSS = 120  # positions of a strip; more are too narrow to hold a letter
MOST_STRIPS = 12  # one below the other; then they grow longer

Deltas = Mapping[int, Mapping[str, float | None]]  # position (0-based) -> base -> nats


@contextmanager
def also_drawn(path: Path | None, put: Put) -> Iterator[Put]:
    """Yield `put`, or what also collects the SNVs of one contig for a figure, drawn in the end.

    Raises:
        UserError: The figure cannot be written.
    """
    if path is None:
        yield put
        return
    contig, deltas, references = "", {}, {}

    def put_and_note(record: VariantRecord, rows: Sequence[Row]) -> None:
        nonlocal contig
        put(record, rows)
        contig = record.contig
        references[record.start] = record.reference.decode()
        deltas[record.start] = {
            alternate.decode(): _number(row["EVO2_DELTA"])
            for alternate, row in zip(record.alternates, rows, strict=True)
        }

    yield put_and_note
    if deltas:
        draw_saturation(path, contig, references, deltas)


def draw_saturation(path: Path, contig: str, references: Mapping[int, str], deltas: Deltas) -> None:
    """A heat map of deltas, positions by bases: red is less likely, blue more, white the same.

    Args:
        path: Figure to write.
        contig: Name of the contig.
        references: The genome's base at each position, 0-based.
        deltas: Of the other bases, in nats; None or absent is grey.

    Raises:
        UserError: It cannot be written.
    """
    first, last = min(deltas), max(deltas)
    across = max(ACROSS, math.ceil((last + 1 - first) / MOST_STRIPS))
    starts = range(first, last + 1, across)
    values = [abs(v) for others in deltas.values() for v in others.values() if v is not None]
    most = max(values, default=0) or 1.0
    width = min(across, last + 1 - first)
    figure = new_figure(2 + 0.13 * min(width, ACROSS), 1 + 1.3 * len(starts))
    strips = figure.subplots(len(starts), 1, squeeze=False)[:, 0]
    for axes, start in zip(strips, starts, strict=True):
        image = _strip(axes, range(start, min(start + across, last + 1)), deltas, most, width)
        axes.set_xlim(-0.5, width - 0.5)
        _mark(axes, start, range(start, min(start + across, last + 1)), references, across)
    strips[-1].set_xlabel(f"position in {contig}, 1-based; dots: the genome's own base")
    figure.colorbar(image, ax=list(strips), label="EVO2_DELTA, nats")
    save_figure(figure, path)


def _strip(axes: "Axes", positions: range, deltas: Deltas, most: float, width: int) -> "AxesImage":
    """One row of the figure; the same colours in all, white at 0."""
    letters = BASES.decode()
    rows = [
        [_colour(deltas.get(position, {}).get(letter)) for position in positions]
        for letter in letters
    ]
    axes.set_facecolor("lightgrey")
    image = axes.imshow(rows, aspect="auto", cmap="RdBu", vmin=-most, vmax=most)
    axes.set_yticks(range(len(letters)), list(letters))
    places = range(0, len(positions), max(1, width // 10))
    axes.set_xticks(places, [f"{positions[place] + 1:,}" for place in places], fontsize="small")
    return image


def _mark(
    axes: "Axes", start: int, positions: range, references: Mapping[int, str], across: int
) -> None:
    """A dot where the genome's base is, and the base above the strip where it has room."""
    known = [position for position in positions if position in references]
    columns = [position - start for position in known]
    rows = [BASES.decode().index(references[position]) for position in known]
    axes.scatter(columns, rows, s=6, color="black", linewidths=0)
    if across <= ACROSS:
        for position, column in zip(known, columns, strict=True):
            axes.text(
                column, -0.65, references[position], ha="center", va="bottom", fontsize="xx-small"
            )


def _colour(value: float | None) -> float:
    return math.nan if value is None else value


def _number(value: str | float | None) -> float | None:
    assert not isinstance(value, str)
    return value
