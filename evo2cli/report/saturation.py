"""The heat map of a report: regions with every SNV, recognised from the alleles themselves."""

import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

BASES = "ACGT"
MAX_COLUMNS = 20_000  # of all regions together; more positions are binned
MAX_GAP = 100  # positions without alleles, such as N, allowed within a region

# Scores that a heat map can show, by INFO key, with their labels in the menu.
LAYERS = {
    "EVO2_DELTA": "both strands",
    "EVO2_FWD": "forward strand",
    "EVO2_RC": "reverse strand",
}


@dataclass
class Region:
    """Positions of a contig, in ascending order.

    Attributes:
        contig: Name of the contig.
        positions: 0-based positions that have alleles.
        references: Reference base at each position.
        scores: For each layer, four scores per position in the order of `BASES`; NaN if none.
    """

    contig: str
    positions: "array[int]" = field(default_factory=lambda: array("q"))
    references: list[str] = field(default_factory=list)
    scores: dict[str, "array[float]"] = field(
        default_factory=lambda: {layer: array("d") for layer in LAYERS}
    )

    def is_followed_by(self, contig: str, start: int) -> bool:
        """Whether a position continues this region."""
        return contig == self.contig and 0 < start - self.positions[-1] <= MAX_GAP


class Saturation:
    """Collects regions in which every SNV is present, as written by `evo2 saturate`.

    Alleles are added in the order of the file. At the first one that does not fit this pattern, the
    file is not a saturation mutagenesis, and all regions are dropped.
    """

    def __init__(self) -> None:
        self._regions: list[Region] = []
        self._reference = ""  # of the current position
        self._alternates: set[str] = set()
        self._is_complete = True

    def add(
        self, contig: str, start: int, reference: str, alternate: str, scores: Sequence[float]
    ) -> None:
        """Add an allele.

        Args:
            contig: CHROM.
            start: 0-based position.
            reference: REF.
            alternate: ALT.
            scores: Score of each layer; NaN if there is none.
        """
        if not self._is_complete:
            return
        region = self._regions[-1] if self._regions else None
        is_new = region is None or (region.contig, region.positions[-1]) != (contig, start)
        is_last_done = not is_new or region is None or len(self._alternates) == len(BASES) - 1
        if is_new:
            self._reference, self._alternates = reference, set()
        seen = {self._reference, *self._alternates}
        is_new_snv = alternate not in seen and {reference, alternate} <= set(BASES)
        if not (is_last_done and is_new_snv and reference == self._reference):
            self._is_complete = False
            self._regions.clear()
            return
        self._alternates.add(alternate)
        if region is None or (is_new and not region.is_followed_by(contig, start)):
            region = Region(contig)
            self._regions.append(region)
        if is_new:
            region.positions.append(start)
            region.references.append(reference)
            for values in region.scores.values():
                values.extend([math.nan] * len(BASES))
        for values, score in zip(region.scores.values(), scores, strict=True):
            values[len(values) - len(BASES) + BASES.index(alternate)] = score

    @property
    def regions(self) -> list[Region]:
        """The regions; none unless every position has its three alternate bases."""
        return self._regions if len(self._alternates) == len(BASES) - 1 else []


def region_figures(regions: Sequence[Region]) -> list[dict[str, Any]]:
    """The regions as input of `regionFigure` of the page, without genes.

    If they have more than `MAX_COLUMNS` positions in total, neighbouring positions are binned, and
    the score of a bin is the mean.
    """
    total = sum(region.positions[-1] - region.positions[0] + 1 for region in regions)
    step = max(1, math.ceil(total / MAX_COLUMNS))
    return [_region_figure(region, step) for region in regions]


def _region_figure(region: Region, step: int) -> dict[str, Any]:
    first, end = region.positions[0], region.positions[-1] + 1
    num_columns = math.ceil((end - first) / step)
    letters = ["."] * num_columns
    columns = [(position - first) // step for position in region.positions]
    if step == 1:
        for column, reference in zip(columns, region.references, strict=True):
            letters[column] = reference
    layers = []
    for name, label in LAYERS.items():
        scores = region.scores[name]
        if all(map(math.isnan, scores)):
            continue
        deltas: dict[str, list[float | None]] = {}
        for index, base in enumerate(BASES):
            bins: list[list[float]] = [[] for _ in range(num_columns)]
            for column, score in zip(columns, scores[index :: len(BASES)], strict=True):
                if not math.isnan(score):
                    bins[column].append(score)
            deltas[base] = [round(fmean(values), 3) if values else None for values in bins]
        layers.append({"label": label, "deltas": deltas})
    return {
        "name": region.contig,
        "start": first,
        "end": end,
        "step": step,
        "bases": "".join(letters),
        "genes": [],
        "tracks": [],
        "layers": layers,
    }
