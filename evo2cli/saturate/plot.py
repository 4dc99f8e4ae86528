"""The heat map of saturation mutagenesis: positions by bases, in strips."""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from evo2cli.figures import new_figure, save_figure
from evo2cli.genome.interval import Interval
from evo2cli.genome.vcf import VariantRecord
from evo2cli.saturate.records import BASES
from evo2cli.score.output import WriteRecord
from evo2cli.tables import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage

STRIP_LENGTH = 120  # positions; in longer strips, columns are too narrow for letters
MAX_STRIPS = 12  # with more positions, strips become longer
MIN_WIDTH = 6.0  # inches, so that the axis label fits


@dataclass(frozen=True)
class Site:
    """The scores of a position.

    Attributes:
        reference: Base of the genome.
        deltas: EVO2_DELTA of the other bases, in nats; None without a score.
    """

    reference: str
    deltas: Mapping[str, float | None]


@contextmanager
def also_draw(
    path: Path | None, regions: Sequence[Interval], write: WriteRecord
) -> Iterator[WriteRecord]:
    """Yield a function that calls `write` and keeps the scores, and draw them at the end.

    Args:
        path: Figure to write; None for no figure.
        regions: Regions to draw.
        write: Writes a record with its rows.

    Raises:
        UserError: The figure cannot be written.
    """
    if path is None:
        yield write
        return
    sites: dict[str, dict[int, Site]] = defaultdict(dict)

    def write_and_keep(record: VariantRecord, rows: Sequence[Row]) -> None:
        write(record, rows)
        deltas: dict[str, float | None] = {}
        for alternate, row in zip(record.alternates, rows, strict=True):
            delta = row["EVO2_DELTA"]
            deltas[alternate.decode()] = delta if isinstance(delta, float) else None
        sites[record.contig][record.start] = Site(record.reference.decode(), deltas)

    yield write_and_keep
    by_region = [
        (
            region.name,
            {
                position: site
                for position, site in sites[region.name].items()
                if region.start <= position < region.end
            },
        )
        for region in regions
    ]
    if scored := [(contig, of_region) for contig, of_region in by_region if of_region]:
        draw_saturation(path, scored)


def draw_saturation(path: Path, regions: Sequence[tuple[str, Mapping[int, Site]]]) -> None:
    """Draw a heat map of deltas: red for less likely, blue for more likely, white for 0.

    Args:
        path: Figure to write.
        regions: For each region its contig, and its sites by position (0-based). Positions without
            a site are grey.

    Raises:
        UserError: The figure cannot be written.
    """
    spans = [(min(sites), max(sites) + 1) for _, sites in regions]
    total = sum(end - start for start, end in spans)
    length = max(STRIP_LENGTH, math.ceil(total / MAX_STRIPS))
    strips = [
        (contig, sites, range(first, min(first + length, end)))
        for (contig, sites), (start, end) in zip(regions, spans, strict=True)
        for first in range(start, end, length)
    ]
    deltas = [
        abs(delta)
        for _, sites in regions
        for site in sites.values()
        for delta in site.deltas.values()
        if delta is not None
    ]
    limit = max(deltas, default=0) or 1.0
    width = max(len(positions) for _, _, positions in strips)
    figure = new_figure(max(MIN_WIDTH, 2 + 0.13 * min(width, STRIP_LENGTH)), 1 + 1.3 * len(strips))
    rows = figure.subplots(len(strips), 1, squeeze=False)[:, 0]
    last_title = ""
    for axes, (contig, sites, positions) in zip(rows, strips, strict=True):
        image = _draw_strip(axes, sites, positions, limit, width)
        axes.set_xlim(-0.5, width - 0.5)
        if len(regions) > 1 and contig != last_title:
            axes.set_title(contig, loc="left", fontsize="small", pad=12)
            last_title = contig
        if length <= STRIP_LENGTH:
            _write_bases(axes, sites, positions)
    label = f"position in {regions[0][0]}" if len(regions) == 1 else "position"
    rows[-1].set_xlabel(f"{label}, 1-based; dots: the genome's own base")
    figure.colorbar(image, ax=list(rows), label="EVO2_DELTA, nats")
    save_figure(figure, path)


def _draw_strip(
    axes: "Axes", sites: Mapping[int, Site], positions: range, limit: float, width: int
) -> "AxesImage":
    """Draw a strip, with colours from -limit to limit and a dot at each base of the genome."""
    letters = BASES.decode()
    values = [[_delta(sites.get(position), letter) for position in positions] for letter in letters]
    axes.set_facecolor("lightgrey")
    image = axes.imshow(values, aspect="auto", cmap="RdBu", vmin=-limit, vmax=limit)
    axes.set_yticks(range(len(letters)), list(letters))
    ticks = range(0, len(positions), max(1, width // 10))
    axes.set_xticks(ticks, [f"{positions[tick] + 1:,}" for tick in ticks], fontsize="small")
    known = [position for position in positions if position in sites]
    columns = [position - positions.start for position in known]
    dots = [letters.index(sites[position].reference) for position in known]
    axes.scatter(columns, dots, s=6, color="black", linewidths=0)
    return image


def _delta(site: Site | None, letter: str) -> float:
    delta = site.deltas.get(letter) if site else None
    return math.nan if delta is None else delta


def _write_bases(axes: "Axes", sites: Mapping[int, Site], positions: range) -> None:
    """Write the bases of the genome above a strip."""
    for column, position in enumerate(positions):
        if position in sites:
            base = sites[position].reference
            axes.text(column, -0.65, base, ha="center", va="bottom", fontsize="xx-small")
