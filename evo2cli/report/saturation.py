"""The heat map of a report: every SNV of regions, recognised by the alleles themselves."""

import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

BASES = "ACGT"
MAX_COLUMNS = 20_000  # of all regions together; more positions share columns
MAX_GAP = 100  # positions without an allele, such as N, within a region

# The scores that a heat map may show: the field of an allele, and what the reader chooses by.
LAYERS = {
    "EVO2_DELTA": "both strands",
    "EVO2_FWD": "forward strand",
    "EVO2_RC": "reverse strand",
}


@dataclass
class Region:
    """Positions of a contig, in ascending order.

    Attributes:
        contig: Its name.
        positions: 0-based positions that have alleles.
        references: The base of the genome at each of them.
        scores: By layer, four numbers for each of them, in the order of `BASES`; NaN if none.
    """

    contig: str
    positions: "array[int]" = field(default_factory=lambda: array("q"))
    references: list[str] = field(default_factory=list)
    scores: dict[str, "array[float]"] = field(
        default_factory=lambda: {layer: array("d") for layer in LAYERS}
    )

    def is_followed_by(self, contig: str, start: int) -> bool:
        """Whether a position belongs to the same region."""
        return contig == self.contig and 0 < start - self.positions[-1] <= MAX_GAP


class Saturation:
    """Regions of which every SNV is there, as `evo2 saturate` writes them.

    Alleles are added in the order of the file. As soon as they are anything else, nothing is kept:
    then it is no saturation.
    """

    def __init__(self) -> None:
        self._regions: list[Region] = []
        self._reference = ""  # of the current position
        self._alternates: set[str] = set()
        self._is_one = True

    def add(
        self, contig: str, start: int, reference: str, alternate: str, scores: Sequence[float]
    ) -> None:
        """Add an allele.

        Args:
            contig: CHROM.
            start: 0-based position.
            reference: REF.
            alternate: ALT.
            scores: A number for each layer; NaN if there is none.
        """
        if not self._is_one:
            return
        region = self._regions[-1] if self._regions else None
        is_new = region is None or (region.contig, region.positions[-1]) != (contig, start)
        is_complete = not is_new or region is None or len(self._alternates) == len(BASES) - 1
        if is_new:
            self._reference, self._alternates = reference, set()
        known = {self._reference, *self._alternates}
        is_another_base = alternate not in known and {reference, alternate} <= set(BASES)
        if not (is_complete and is_another_base and reference == self._reference):
            self._is_one = False
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
        """The regions; none if there is a position without three alternate bases."""
        return self._regions if len(self._alternates) == len(BASES) - 1 else []


def described(regions: Sequence[Region]) -> list[dict[str, Any]]:
    """The regions as `regionFigure` of the page draws them, without genes.

    If all of them have more than `MAX_COLUMNS` positions, neighbouring ones share a column, whose
    score is the mean.
    """
    total = sum(region.positions[-1] - region.positions[0] + 1 for region in regions)
    step = max(1, math.ceil(total / MAX_COLUMNS))
    return [_described(region, step) for region in regions]


def _described(region: Region, step: int) -> dict[str, Any]:
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
            found: list[list[float]] = [[] for _ in range(num_columns)]
            for column, score in zip(columns, scores[index :: len(BASES)], strict=True):
                if not math.isnan(score):
                    found[column].append(score)
            deltas[base] = [round(fmean(each), 3) if each else None for each in found]
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
