"""Genes of a genome with their exons and coding sequences, from GFF3 or GTF files."""

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

from evo2cli.errors import UserError
from evo2cli.genome.contig_names import DEFAULT_NAMES, ContigNames
from evo2cli.genome.features import read_gff_lines
from evo2cli.genome.regions import merge_spans

Spans = tuple[tuple[int, int], ...]
Key = tuple[str, str]  # contig and ID

EXON, CODING = "exon", "CDS"
# Attributes with the name of a gene that people use; the first that is present.
_LABELS = ("gene_name", "gene", "Name", "gene_id", "locus_tag", "ID")
_MAX_DEPTH = 8  # of parents; ends a cycle


@dataclass(frozen=True, slots=True)
class Gene:
    """A gene.

    Attributes:
        name: Its symbol or other name, or its ID.
        contig: Name of its contig.
        strand: + or -; . if unknown.
        spans: Intervals [start, end) of the gene with its introns, 0-based, ascending and disjoint:
            one, or two if it crosses the origin of a circular genome.
        exons: Union of the exons of all transcripts, likewise.
        coding: Union of their coding sequences, likewise.
    """

    name: str
    contig: str
    strand: str
    spans: Spans
    exons: Spans
    coding: Spans


class Genes:
    """The genes of a genome, searchable by interval.

    Args:
        genes: The genes, in any order.
        names: Synonyms of contig names.
    """

    def __init__(self, genes: Iterable[Gene], names: ContigNames = DEFAULT_NAMES) -> None:
        self._plain = names.plain
        self._num_genes = 0
        self._spans: dict[str, list[tuple[int, int, Gene]]] = defaultdict(list)
        for gene in genes:
            self._num_genes += 1
            self._spans[self._plain(gene.contig)] += [(*span, gene) for span in gene.spans]
        for spans in self._spans.values():
            spans.sort(key=lambda span: (*span[:2], span[2].name))
        # The largest end of all spans up to each one: ascending, so that it can be bisected.
        self._max_ends = {
            name: list(accumulate((end for _, end, _ in spans), max))
            for name, spans in self._spans.items()
        }

    def __len__(self) -> int:
        return self._num_genes

    def overlapping(self, contig: str, start: int, end: int) -> list[Gene]:
        """The genes with a base in [start, end) of a contig, sorted by start."""
        plain = self._plain(contig)
        if plain not in self._spans:
            return []
        first = bisect_right(self._max_ends[plain], start)
        last = bisect_left(self._spans[plain], end, key=lambda span: span[0])
        near = self._spans[plain][first:last]
        return list(dict.fromkeys(gene for _, span_end, gene in near if span_end > start))


@dataclass(slots=True)
class _Draft:
    """A gene from the lines read so far."""

    name: str
    strand: str
    spans: list[tuple[int, int]]
    parts: dict[str, list[tuple[int, int]]]


def read_genes(path: Path, names: ContigNames = DEFAULT_NAMES) -> Genes:
    """Read the genes of a GFF3 or GTF file; .gz is read too.

    A gene is a line whose type ends in "gene", with the exons and CDS that refer to it by `Parent`
    (GFF3) or `gene_id` (GTF). Some programs for bacteria write no gene lines: then the parts with
    the same parent or ID are a gene, without introns.

    Raises:
        UserError: The file cannot be read, a line is not valid, or there is no gene.
    """
    drafts: dict[Key, _Draft] = {}
    parents: dict[Key, str] = {}
    labels: dict[Key, tuple[str, str]] = {}  # name and strand of other lines, e.g. transcripts
    parts: dict[tuple[Key, str], list[tuple[int, int]]] = defaultdict(list)
    for line in read_gff_lines(path):
        contig, attributes = line.interval.name, line.attributes
        span = (line.interval.start, line.interval.end)
        names_of_line = (attributes[key] for key in _LABELS if attributes.get(key))
        label = next(names_of_line, str(line.interval))
        line_id = attributes.get("ID") or attributes.get("gene_id") or f"line {line.number}"
        # A part of several transcripts has several parents, all in the same gene.
        parent = attributes.get("Parent", "").partition(",")[0] or attributes.get("gene_id")
        if line.kind.endswith("gene"):
            draft = drafts.setdefault((contig, line_id), _Draft(label, line.strand, [], {}))
            draft.spans.append(span)
        elif line.kind in (EXON, CODING):
            key = contig, parent or line_id
            labels.setdefault(key, (label, line.strand))
            parts[key, line.kind].append(span)
        elif "ID" in attributes:
            key = contig, line_id
            labels[key] = label, line.strand
            if parent:
                parents[key] = parent
    for (key, kind), spans in parts.items():
        root = _root(key, drafts, parents)
        if root not in drafts:
            drafts[root] = _Draft(*labels.get(root, labels[key]), [], {})
        drafts[root].parts.setdefault(kind, []).extend(spans)
    if not drafts:
        raise UserError(f"{path}: has no gene: no line of type gene, {EXON} or {CODING}")
    return Genes(_finished(drafts), names)


def _root(key: Key, drafts: dict[Key, _Draft], parents: dict[Key, str]) -> Key:
    """The key of the gene that a line belongs to; without one, of its topmost parent."""
    for _ in range(_MAX_DEPTH):
        if key in drafts or key not in parents:
            break
        key = key[0], parents[key]
    return key


def _finished(drafts: dict[Key, _Draft]) -> Iterator[Gene]:
    for (contig, _), draft in drafts.items():
        exons, coding = (tuple(merge_spans(draft.parts.get(kind, ()))) for kind in (EXON, CODING))
        spans = tuple(merge_spans(draft.spans or [*exons, *coding]))
        yield Gene(draft.name, contig, draft.strand, spans, exons, coding)
