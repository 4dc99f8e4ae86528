"""What `evo2 embed` reads: records of a FASTA or regions of a genome, and features in them."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from evo2cli import console
from evo2cli.embed.options import EmbedOptions, Pooling
from evo2cli.errors import UserError
from evo2cli.genome.alphabet import ACGT
from evo2cli.genome.fasta import read_records, require_nucleotides
from evo2cli.genome.features import Feature, is_gff, read_features
from evo2cli.genome.interval import Interval
from evo2cli.genome.reference import Reference
from evo2cli.genome.vcf import find_contig
from evo2cli.genome.windows import upper_dna
from stripedhyena2.pooling import Spans


@dataclass(frozen=True)
class Passage:
    """A sequence that is read by itself.

    Attributes:
        name: Of the record or region.
        contig: It lies in: the record, or a contig of the genome.
        start: Where it begins in the contig, 0-based.
        bases: Upper-case.
    """

    name: str
    contig: str
    start: int
    bases: bytes


@dataclass(frozen=True)
class Row:
    """What one vector is pooled over: `spans` of a passage."""

    name: str
    spans: Spans


@dataclass(frozen=True)
class Survey:
    """What there is to embed.

    Attributes:
        passages: Name and length of each sequence that has a row.
        rows: Name of each vector, and of the sequence it is of.
    """

    passages: list[tuple[str, int]]
    rows: list[tuple[str, str]]

    @property
    def num_bases(self) -> int:
        """Bases of all sequences."""
        return sum(length for _, length in self.passages)


class FeatureIndex:
    """Features by contig, asked which of them lie in a passage.

    Args:
        features: Those to find.
    """

    def __init__(self, features: list[Feature]) -> None:
        self._by_contig: dict[str, list[Feature]] = {}
        for feature in sorted(features, key=lambda feature: feature.start):
            self._by_contig.setdefault(feature.contig, []).append(feature)

    def __len__(self) -> int:
        return sum(map(len, self._by_contig.values()))

    def inside(self, passage: Passage) -> Iterator[Feature]:
        """Features that lie whole in it, in order of their starts."""
        contig = find_contig(passage.contig, self._by_contig)
        if contig is None:
            return
        features, end = self._by_contig[contig], passage.start + len(passage.bases)
        first = bisect_left(features, passage.start, key=lambda feature: feature.start)
        for place in range(first, bisect_left(features, end, key=lambda feature: feature.start)):
            if features[place].end <= end:
                yield features[place]


def read_index(options: EmbedOptions) -> FeatureIndex | None:
    """The features that are asked for, if any.

    Raises:
        UserError: They cannot be read, or --feature-type speaks of no GFF.
    """
    if options.features is not None:
        return FeatureIndex(read_features(options.features, options.feature_type))
    if options.feature_type is not None and options.reference is None:
        raise UserError(f"--feature-type {options.feature_type}: give a GFF, by --features")
    return None


def rows_of(passage: Passage, index: FeatureIndex | None) -> list[Row]:
    """What is pooled over: the features in a passage, or without any asked for, the whole."""
    if index is None:
        return [Row(passage.name, [(0, len(passage.bases))])]
    return [
        Row(feature.name, [(s - passage.start, e - passage.start) for s, e in feature.spans])
        for feature in index.inside(passage)
    ]


def read_passages(options: EmbedOptions) -> Iterator[Passage]:
    """The sequences, in the order of the input.

    Raises:
        UserError: The input is not what it should be, or a sequence holds no base.
    """
    if options.reference is not None:
        yield from _read_regions(options, options.reference)
        return
    if is_gff(options.source) or ".bed" in options.source.suffixes:
        raise UserError(f"{options.source}: give the genome of these regions by --reference")
    for record in read_records(options.source):
        require_nucleotides(options.source, record)
        if not record.sequence:
            raise UserError(f"{options.source}: record {record.name!r} holds no base; remove it")
        yield Passage(record.name, record.name, 0, upper_dna(record.sequence))


def _read_regions(options: EmbedOptions, reference: Path) -> Iterator[Passage]:
    """Every region of a BED, or whole extent of a feature, as the genome's forward strand."""
    kind = options.feature_type if options.features is None else None
    with Reference.open(reference) as genome:
        for region in read_features(options.source, kind):
            asked = Interval(region.contig, region.start, region.end)
            found = genome.place(asked, f"{options.source}: {asked}")
            bases = genome.fetch(found)
            yield Passage(region.name, found.name, found.start, upper_dna(bases))


def survey(options: EmbedOptions, index: FeatureIndex | None) -> Survey:
    """Read the input once before the work, so that whatever is wrong with it is found now.

    Raises:
        UserError: Something is wrong with it.
    """
    found, ambiguous = Survey([], []), 0
    seen: set[int] = set()
    for passage in read_passages(options):
        rows = rows_of(passage, index)
        if not rows:
            continue
        found.passages.append((passage.name, len(passage.bases)))
        found.rows.extend((row.name, passage.name) for row in rows)
        ambiguous += bool(passage.bases.translate(None, ACGT))
        seen.update(map(id, index.inside(passage) if index is not None else ()))
    if ambiguous:
        console.warn(
            f"{ambiguous:,} of {len(found.passages):,} sequences hold letters other than ACGT, "
            "which are read as they are"
        )
    if index is not None:
        _tell_features(options, index, len(seen))
    if options.pooling == Pooling.NONE:
        _require_unique([name for name, _ in found.passages], options)
    return found


def _tell_features(options: EmbedOptions, index: FeatureIndex, num_found: int) -> None:
    if num_found == 0:
        raise UserError(
            f"{options.features}: none of its {len(index):,} features lies in a sequence of "
            f"{options.source}; are contigs named alike in both?"
        )
    if num_found < len(index):
        console.say(
            f"{num_found:,} of {len(index):,} features lie whole in a sequence; others are left out"
        )


def _require_unique(names: list[str], options: EmbedOptions) -> None:
    [(name, count)] = Counter(names).most_common(1)
    if count > 1:
        raise UserError(
            f"{options.source}: {count} sequences are named {name!r}; --pooling none keeps an "
            "array by name, so give each its own"
        )
