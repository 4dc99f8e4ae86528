"""The input of `evo2 embed`: FASTA records or regions of a genome, and features in them."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from evo2cli.data.tags import read_tag, split_tag
from evo2cli.embed.options import EmbedOptions, Pooling
from evo2cli.errors import UserError
from evo2cli.genome.alphabet import ACGT, upper_dna
from evo2cli.genome.contig_names import DEFAULT_NAMES
from evo2cli.genome.fasta import read_records
from evo2cli.genome.features import Feature, is_gff, locate_features, read_features
from evo2cli.genome.reference import Reference
from stripedhyena2.pooling import Spans


@dataclass(frozen=True)
class InputSequence:
    """A sequence to embed, independently of the others.

    Attributes:
        name: Name of the record or region.
        contig: Name of the record, or of the contig of the region.
        start: First position in the contig, 0-based.
        bases: Upper-case bases.
        tag: Lineage tag before the bases, enclosed in '|', or empty.
    """

    name: str
    contig: str
    start: int
    bases: bytes
    tag: bytes


@dataclass(frozen=True)
class OutputRow:
    """One output vector: its name, and the spans of the sequence to pool over."""

    name: str
    spans: Spans


@dataclass(frozen=True)
class InputSummary:
    """Summary of the input.

    Attributes:
        sequences: Name and length of each sequence that gives a vector.
        rows: Name of each vector, and name of its sequence.
        num_ambiguous: Number of these sequences with letters other than A, C, G and T.
        num_features: Number of features that lie within a sequence.
    """

    sequences: list[tuple[str, int]]
    rows: list[tuple[str, str]]
    num_ambiguous: int
    num_features: int

    @property
    def num_bases(self) -> int:
        """Total length of all sequences."""
        return sum(length for _, length in self.sequences)


class FeatureIndex:
    """Finds the features that lie within a sequence."""

    def __init__(self, features: list[Feature]) -> None:
        self._by_contig: dict[str, list[Feature]] = {}
        for feature in sorted(features, key=lambda feature: feature.start):
            self._by_contig.setdefault(feature.contig, []).append(feature)

    def __len__(self) -> int:
        return sum(map(len, self._by_contig.values()))

    def within(self, sequence: InputSequence) -> Iterator[Feature]:
        """Features that lie entirely within a sequence, by ascending start."""
        contig = DEFAULT_NAMES.find(sequence.contig, self._by_contig)
        if contig is None:
            return
        features, end = self._by_contig[contig], sequence.start + len(sequence.bases)
        first = bisect_left(features, sequence.start, key=lambda feature: feature.start)
        last = bisect_left(features, end, key=lambda feature: feature.start)
        for feature in features[first:last]:
            if feature.end <= end:
                yield feature


def read_feature_index(options: EmbedOptions) -> FeatureIndex | None:
    """The features to pool over; None without --features.

    Raises:
        UserError: The file cannot be read.
    """
    if options.features is None:
        return None
    return FeatureIndex(read_features(options.features, options.feature_type))


def rows_of(sequence: InputSequence, index: FeatureIndex | None) -> list[OutputRow]:
    """The output rows of a sequence: one per feature within it, or one for the whole sequence."""
    if index is None:
        return [OutputRow(sequence.name, [(0, len(sequence.bases))])]
    start = sequence.start
    return [
        OutputRow(feature.name, [(first - start, end - start) for first, end in feature.spans])
        for feature in index.within(sequence)
    ]


def read_sequences(options: EmbedOptions) -> Iterator[InputSequence]:
    """Read the sequences in the order of the input: records, or the forward strand of regions.

    Raises:
        UserError: The input is not valid, or a sequence is empty.
    """
    tag = b"" if options.tag is None else read_tag(options.tag)
    if options.reference is not None:
        kind = options.feature_type if options.features is None else None
        with Reference.open(options.reference) as genome:
            for region, interval in locate_features(options.source, genome, kind):
                bases = upper_dna(genome.fetch(interval))
                yield InputSequence(region.name, interval.name, interval.start, bases, tag)
        return
    if is_gff(options.source) or ".bed" in options.source.suffixes:
        raise UserError(f"{options.source}: give the genome of these regions with --reference")
    for record in read_records(options.source):
        origin = f"{options.source}: record {record.name!r}"
        record_tag, bases = split_tag(origin, record.sequence, tag)
        if not bases:
            raise UserError(f"{origin} is empty; remove it")
        yield InputSequence(record.name, record.name, 0, bases, record_tag)


def summarize_input(options: EmbedOptions, index: FeatureIndex | None) -> InputSummary:
    """Read the whole input once, so that errors in it are found before the model runs.

    Raises:
        UserError: The input is not valid, no feature lies within a sequence, or two sequences
            whose positions are kept have the same name.
    """
    sequences: list[tuple[str, int]] = []
    rows: list[tuple[str, str]] = []
    num_ambiguous = 0
    features: set[int] = set()
    for sequence in read_sequences(options):
        sequence_rows = rows_of(sequence, index)
        if not sequence_rows:
            continue
        sequences.append((sequence.name, len(sequence.bases)))
        rows.extend((row.name, sequence.name) for row in sequence_rows)
        num_ambiguous += bool(sequence.bases.translate(None, ACGT))
        if index is not None:
            features.update(map(id, index.within(sequence)))
    if index is not None and not features:
        raise UserError(
            f"{options.features}: none of its features ({len(index):,}) lies within a sequence of "
            f"{options.source}; check that both use the same contig names"
        )
    if options.pooling is Pooling.NONE:
        [(name, count)] = Counter(name for name, _ in sequences).most_common(1)
        if count > 1:
            raise UserError(
                f"{options.source}: {count} sequences are named {name!r}; --pooling none writes an "
                "array for each name, so names must be unique"
            )
    return InputSummary(sequences, rows, num_ambiguous, len(features))
