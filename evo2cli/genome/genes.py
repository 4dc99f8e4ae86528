"""Genes of a genome, read from GFF3 or GTF: where they lie, with their exons and coding parts."""

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

from evo2cli.errors import UserError
from evo2cli.genome.contig_names import KNOWN, ContigNames
from evo2cli.genome.features import read_gff_lines
from evo2cli.genome.regions import merged

Spans = tuple[tuple[int, int], ...]
Key = tuple[str, str]  # contig and ID

EXON, CODING = "exon", "CDS"
# Attributes that name a gene for people, the first one present.
_LABELS = ("gene_name", "gene", "Name", "gene_id", "locus_tag", "ID")
_MAX_DEPTH = 8  # of parents, so that a circle of them ends


@dataclass(frozen=True, slots=True)
class Gene:
    """A gene.

    Attributes:
        name: Its name for people, or its ID.
        contig: The contig it is on.
        strand: + or -, or . if the file does not say.
        spans: Its bases [start, end) with its introns, 0-based, ascending and disjoint: one span,
            or two where it crosses the origin of a circular genome.
        exons: Its exons, of all transcripts together, likewise.
        coding: Its coding parts, likewise.
    """

    name: str
    contig: str
    strand: str
    spans: Spans
    exons: Spans
    coding: Spans


class Genes:
    """The genes of a genome, to find those at a place.

    Args:
        genes: The genes, in any order.
        names: Tells which names mean the same contig.
    """

    def __init__(self, genes: Iterable[Gene], names: ContigNames = KNOWN) -> None:
        self._plain = names.plain
        self._num_genes = 0
        self._of: dict[str, list[tuple[int, int, Gene]]] = defaultdict(list)
        for gene in genes:
            self._num_genes += 1
            self._of[self._plain(gene.contig)] += [(*span, gene) for span in gene.spans]
        for found in self._of.values():
            found.sort(key=lambda entry: (*entry[:2], entry[2].name))
        # How far all spans up to this one reach, which never becomes less.
        self._reach = {
            name: list(accumulate((end for _, end, _ in found), max))
            for name, found in self._of.items()
        }

    def __len__(self) -> int:
        return self._num_genes

    def overlapping(self, contig: str, start: int, end: int) -> list[Gene]:
        """The genes with a base in [start, end) of a contig, by where they begin."""
        plain = self._plain(contig)
        if plain not in self._of:
            return []
        first = bisect_right(self._reach[plain], start)
        last = bisect_left(self._of[plain], end, key=lambda entry: entry[0])
        near = self._of[plain][first:last]
        return list(dict.fromkeys(gene for _, span_end, gene in near if span_end > start))


@dataclass(slots=True)
class _Draft:
    """What lines have said of a gene so far."""

    name: str
    strand: str
    spans: list[tuple[int, int]]
    parts: dict[str, list[tuple[int, int]]]


def read_genes(path: Path, names: ContigNames = KNOWN) -> Genes:
    """Read the genes of a GFF3 or GTF file; .gz is read too.

    A gene is a line whose type ends in "gene", with the exons and coding parts that belong to it
    through `Parent` (GFF3) or `gene_id` (GTF). Parts that belong to no such line, as some programs
    for bacteria write them, are a gene with the other parts of the same parent or ID, and then
    it has no introns.

    Raises:
        UserError: The file cannot be read, a line is not valid, or there is no gene.
    """
    drafts: dict[Key, _Draft] = {}
    parents: dict[Key, str] = {}
    labels: dict[Key, tuple[str, str]] = {}  # of what is neither a gene nor a part: name, strand
    parts: dict[tuple[Key, str], list[tuple[int, int]]] = defaultdict(list)
    for line in read_gff_lines(path):
        contig, attributes = line.interval.name, line.attributes
        span = (line.interval.start, line.interval.end)
        found = (attributes[key] for key in _LABELS if attributes.get(key))
        label = next(found, str(line.interval))
        number = f"line {line.number}"  # in place of an ID
        own = attributes.get("ID") or attributes.get("gene_id") or number
        # A part of several transcripts has several parents, which belong to the same gene.
        parent = attributes.get("Parent", "").partition(",")[0] or attributes.get("gene_id")
        if line.kind.endswith("gene"):
            draft = drafts.setdefault((contig, own), _Draft(label, line.strand, [], {}))
            draft.spans.append(span)
        elif line.kind in (EXON, CODING):
            key = contig, parent or own
            labels.setdefault(key, (label, line.strand))
            parts[key, line.kind].append(span)
        elif "ID" in attributes:
            key = contig, own
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
    """The gene that something belongs to, or the topmost of its parents."""
    for _ in range(_MAX_DEPTH):
        if key in drafts or key not in parents:
            break
        key = key[0], parents[key]
    return key


def _finished(drafts: dict[Key, _Draft]) -> Iterator[Gene]:
    for (contig, _), draft in drafts.items():
        exons, coding = (_union(draft.parts.get(kind, [])) for kind in (EXON, CODING))
        spans = _union(draft.spans or [*exons, *coding])
        yield Gene(draft.name, contig, draft.strand, spans, exons, coding)


def _union(spans: list[tuple[int, int]]) -> Spans:
    return tuple(zip(*merged(spans), strict=True))
