"""Aggregate scored variants for a report, in one pass.

Memory holds a few numbers per allele, and the text of only those shown in the table.
"""

import heapq
import math
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain, islice
from typing import Any

import numpy as np

from evo2cli.errors import UserError
from evo2cli.eval.annotations import Annotated, AnnotatedHeader, missing_key
from evo2cli.eval.consequences import consequences, find_key
from evo2cli.eval.labels import Preset
from evo2cli.genome.genes import Gene, Genes
from evo2cli.genome.vcf import kind_of
from evo2cli.report.options import ReportOptions
from evo2cli.report.saturation import LAYERS, Saturation, region_figures
from evo2cli.tables import rounded

DELTA, STATUS, PERCENTILE = "EVO2_DELTA", "EVO2_STATUS", "EVO2_PCT"
MAX_ROWS = 5_000  # of the tables of alleles and of genes
MAX_GROUPS = 25  # in a figure; beyond it, the smallest groups are merged into one
MAX_POINTS = 400  # drawn per group
MAX_ALLELE = 30  # letters of an allele shown in the table
LOOK_AHEAD = 1_000  # records searched for INFO keys that the header does not declare
KIND = "kind of variant"
NONE, OTHERS = "none", "others"

GENE_COLUMNS = [
    *("gene", "contig", "from", "to", "strand", "alleles", "lowest", "median"),
    *("coding", "lowest coding"),
]


@dataclass
class _GeneDeltas:
    """Deltas of the scored alleles that overlap a gene, and of those that overlap its CDS."""

    gene: Gene
    deltas: "array[float]" = field(default_factory=lambda: array("d"))
    coding: "array[float]" = field(default_factory=lambda: array("d"))


@dataclass
class Collected:
    """The data of a report.

    Attributes:
        columns: Columns of the table of alleles.
        statuses: Number of alleles by EVO2_STATUS.
        has_delta: Whether any record has EVO2_DELTA.
        groupings: Deltas in nats by group, for each grouping (kind of variant, consequence, label).
        saturation: The regions of a saturation mutagenesis, if the alleles are one.
    """

    columns: list[str] = field(default_factory=list)
    statuses: Counter[str] = field(default_factory=Counter)
    has_delta: bool = False
    groupings: dict[str, defaultdict[str, "array[float]"]] = field(default_factory=dict)
    saturation: Saturation = field(default_factory=Saturation)
    _rows: list[tuple[float, int, list[Any]]] = field(default_factory=list)
    _genes: dict[int, _GeneDeltas] = field(default_factory=dict)

    @property
    def num_alleles(self) -> int:
        """Number of alleles."""
        return self.statuses.total()

    @property
    def deltas(self) -> "array[float]":
        """All deltas, in nats."""
        return array("d", chain.from_iterable(self.groupings[KIND].values()))

    def keep(self, delta: float, row: list[Any]) -> None:
        """Add a row to the table, which keeps the `MAX_ROWS` rows with the lowest deltas.

        Alleles without a delta (NaN) rank last, and ties in the order of the file.
        """
        order = math.inf if math.isnan(delta) else delta
        entry = (-order, -self.num_alleles, row)
        if len(self._rows) < MAX_ROWS:
            heapq.heappush(self._rows, entry)
        else:
            heapq.heappushpop(self._rows, entry)

    def count_in_genes(self, genes: Sequence[Gene], start: int, end: int, delta: float) -> None:
        """Count an allele with a delta in the genes that it overlaps."""
        for gene in genes:
            collected = self._genes.setdefault(id(gene), _GeneDeltas(gene))
            collected.deltas.append(delta)
            if any(first < end and start < last for first, last in gene.coding):
                collected.coding.append(delta)

    @property
    def rows(self) -> list[list[Any]]:
        """The rows of the table, the lowest delta first."""
        return [row for _, _, row in sorted(self._rows, key=lambda e: (-e[0], -e[1]))]

    @property
    def num_genes(self) -> int:
        """Number of genes with a scored allele."""
        return len(self._genes)

    @property
    def gene_rows(self) -> list[list[Any]]:
        """A row of `GENE_COLUMNS` for each gene, the one with the lowest delta first."""
        rows = [
            [
                of_gene.gene.name,
                of_gene.gene.contig,
                of_gene.gene.spans[0][0] + 1,
                of_gene.gene.spans[-1][1],
                of_gene.gene.strand,
                len(of_gene.deltas),
                rounded(min(of_gene.deltas)),
                rounded(float(np.median(of_gene.deltas))),
                len(of_gene.coding),
                rounded(min(of_gene.coding)) if of_gene.coding else None,
            ]
            for of_gene in self._genes.values()
        ]
        lowest = GENE_COLUMNS.index("lowest")
        return sorted(rows, key=lambda row: (row[lowest], row[1], row[2], row[0]))[:MAX_ROWS]


def collect(
    options: ReportOptions,
    header: AnnotatedHeader,
    records: Iterator[Annotated],
    genes: Genes | None,
) -> Collected:
    """Read and aggregate all records.

    Raises:
        UserError: No record has EVO2_DELTA, or the key of an option; or a delta is not a number.
    """
    first = list(islice(records, LOOK_AHEAD))
    known = set(header.declared).union(*(record.info for record in first))
    labels = [preset.labels.key for preset in Preset]
    for key, option in ((options.group, "--group"), (options.consequence, "--consequence")):
        if key is not None and key not in known:
            raise missing_key(options.source, header.place, key, sorted(known), option)
    label = options.group or next((key for key in labels if key in known), None)
    effect = options.consequence or find_key(known.__contains__, beside=label)
    scores = [name for name in (DELTA, "EVO2_FWD", "EVO2_RC", PERCENTILE) if name in known]
    by_effect = f"consequence ({effect})"
    groupings = [KIND, *([by_effect] if effect else []), *([label] if label else [])]
    collected = Collected(groupings={name: defaultdict(_numbers) for name in groupings})
    collected.columns = ["chrom", "pos", "id", "ref", "alt", *scores, STATUS]
    collected.columns += groupings[1:] + ["genes"] * (genes is not None)
    for record in chain(first, records):
        collected.has_delta = collected.has_delta or DELTA in record.info
        end = record.start + len(record.reference)
        near = [] if genes is None else genes.overlapping(record.contig, record.start, end)
        values = {
            name: record.values(name, header.declared.get(name))
            for name in dict.fromkeys([DELTA, *LAYERS, PERCENTILE, STATUS, *filter(None, [label])])
        }
        effects = consequences(record, effect, header.declared.get(effect)) if effect else []
        for index, alternate in enumerate(record.alternates):
            numbers = {
                name: record.number(name, values[name][index]) for name in (*LAYERS, PERCENTILE)
            }
            delta, status = numbers[DELTA], values[STATUS][index] or "no status"
            collected.statuses[status] += 1
            groups = {KIND: str(kind_of(record.reference, alternate))}
            if effect:
                term = effects[index]
                groups[by_effect] = NONE if term is None else term.name
            if label:
                groups[label] = values[label][index] or NONE
            if not math.isnan(delta):
                for name, group in groups.items():
                    collected.groupings[name][group].append(delta)
                collected.count_in_genes(near, record.start, end, delta)
            collected.saturation.add(
                record.contig,
                record.start,
                record.reference,
                alternate,
                [numbers[name] for name in LAYERS],
            )
            row: list[Any] = [record.contig, record.start + 1, record.identifier]
            row += [_short(record.reference), _short(alternate)]
            row += [None if math.isnan(numbers[name]) else numbers[name] for name in scores]
            row += [status, *list(groups.values())[1:]]
            row += [", ".join(gene.name for gene in near)] if genes is not None else []
            collected.keep(delta, row)
    if not collected.has_delta:
        raise UserError(
            f"{options.source}: no record has {DELTA} in {header.place}; score it first "
            "(evo2 score)"
        )
    return collected


def _numbers() -> "array[float]":
    return array("d")


def _short(allele: str) -> str:
    if len(allele) <= MAX_ALLELE:
        return allele
    return f"{allele[:MAX_ALLELE]}... ({len(allele):,} letters)"


def strips(by_group: dict[str, "array[float]"]) -> list[dict[str, Any]]:
    """The groups of a strip plot, by ascending median, as input of `stripFigure` of the page.

    Quartiles are computed from all deltas. At most `MAX_POINTS` are drawn as points, evenly
    spaced by rank from the lowest to the highest.
    """
    largest = sorted(by_group, key=lambda name: (-len(by_group[name]), name))
    groups = {name: by_group[name] for name in largest}
    if len(largest) > MAX_GROUPS:
        rest = [groups.pop(name) for name in largest[MAX_GROUPS - 1 :]]
        groups[f"{OTHERS} ({len(rest)} groups)"] = array("d", chain.from_iterable(rest))
    figure = []
    for name, deltas in groups.items():
        sorted_N = np.sort(np.asarray(deltas))
        ranks = np.unique(np.linspace(0, len(sorted_N) - 1, MAX_POINTS).round().astype(int))
        figure.append(
            {
                "name": name,
                "count": len(deltas),
                "points": [round(value, 4) for value in sorted_N[ranks].tolist()],
                "quartiles": [round(v, 6) for v in np.quantile(sorted_N, [0, 0.25, 0.5, 0.75, 1])],
            }
        )
    return sorted(figure, key=lambda group: (group["quartiles"][2], group["name"]))


def heat_maps(saturation: Saturation, genes: Genes | None) -> list[dict[str, Any]]:
    """The heat maps of a saturation mutagenesis, with the genes of each region."""
    maps = region_figures(saturation.regions)
    if genes is None:
        return maps
    for region in maps:
        near = genes.overlapping(region["name"], region["start"], region["end"])
        region["genes"] = [asdict(gene) for gene in near]
    return maps
