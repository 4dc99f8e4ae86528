"""What `evo2 score` reads as variants: VCF, BCF, a table, words of the command line; filtered."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path

from evo2cli import console
from evo2cli.errors import UserError
from evo2cli.genome.builds import disagreement
from evo2cli.genome.htslib import find_index
from evo2cli.genome.reference import Reference
from evo2cli.genome.regions import Regions, read_bed, read_regions
from evo2cli.genome.source import STDIN, is_bgzip
from evo2cli.genome.variant_names import is_variant_name, read_variant_name
from evo2cli.genome.variant_table import is_table, read_table
from evo2cli.genome.vcf import (
    Header,
    VariantFile,
    VariantRecord,
    find_contig,
    is_variants,
    read_vcf,
    read_vcf_by_index,
)
from evo2cli.saturate.records import saturate
from evo2cli.score.options import ScoreOptions

MADE_HEADER = Header(
    (b"##fileformat=VCFv4.3\n", b"#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n")
)


@dataclass(frozen=True)
class Variants:
    """Variants that are being read.

    Attributes:
        header: Of the VCF, or one made for what came otherwise.
        records: Those that the filters let through, as they come.
        is_vcf: Whether they come from a VCF or BCF.
        others: Columns of a table that ride along, and what their cells are.
    """

    header: Header
    records: Iterator[VariantRecord]
    is_vcf: bool
    others: Mapping[str, type] = field(default_factory=dict)


def named_variants(options: ScoreOptions) -> tuple[str, ...]:
    """The words of the command line, where they are variants; none where they name a file.

    Raises:
        UserError: There is a file among several words.
    """
    words = (str(options.source), *options.further)
    if options.source == STDIN or options.source.exists():
        if options.further:
            raise UserError(f"{words[1]}: one file at a time; {words[0]} is one already")
        return ()
    return words if options.further or is_variant_name(words[0]) else ()


def holds_variants(options: ScoreOptions) -> bool:
    """Whether variants are to be scored, rather than the sequences of a FASTA.

    Raises:
        UserError: The input cannot be read, or is empty.
    """
    if options.saturate is not None or named_variants(options):
        return True
    return is_table(options.source) or is_variants(options.source)


def open_variants(options: ScoreOptions) -> Variants:
    """Begin to read.

    Raises:
        UserError: Here or while records are read: the input is not what it seems to be.
    """
    chosen = filtered_variants(options)
    if options.shard is None:
        return chosen
    return replace(chosen, records=islice(chosen.records, *_borders(options)))


def _borders(options: ScoreOptions) -> tuple[int, int]:
    """First and last + 1 of the records of this part, by counting all that there are."""
    total = sum(1 for _ in filtered_variants(options).records)
    index, count = options.part
    return total * index // count, total * (index + 1) // count


def filtered_variants(options: ScoreOptions) -> Variants:
    """What the filters let through, whatever the shard.

    Raises:
        UserError: As `open_variants`.
    """
    whole = _open(options)
    if not options.filters:
        return whole
    if not whole.is_vcf:
        for flag in ("--min-qual", "--pass-only"):
            if flag in options.filters:
                raise UserError(f"{flag} is for VCF, but {options.source} has no QUAL and FILTER")
    chosen: Iterator[VariantRecord] = (record for record in whole.records if record.alternates)
    for is_chosen in _conditions(options):
        chosen = filter(is_chosen, chosen)
    return Variants(whole.header, islice(chosen, options.limit), whole.is_vcf, whole.others)


def _open(options: ScoreOptions) -> Variants:
    if options.saturate is not None and options.reference is not None:
        return Variants(MADE_HEADER, saturate(options.reference, options.saturate), False)
    if names := named_variants(options):
        return Variants(MADE_HEADER, iter([read_variant_name(name) for name in names]), False)
    if is_table(options.source):
        table = read_table(options.source)
        return Variants(MADE_HEADER, table.records, False, table.others)
    vcf = _open_by_index(options) or read_vcf(options.source)
    return Variants(vcf.header, vcf.records, True)


def _open_by_index(options: ScoreOptions) -> VariantFile | None:
    """A file of which only regions are asked for, if its index tells where they are."""
    index = _index(options)
    if index is None or _is_stale(index, options.source):
        return None
    regions = read_regions(options.regions)
    asked = read_bed(options.bed) if options.bed and not options.regions else regions
    return read_vcf_by_index(options.source, index, Regions(asked))


def _index(options: ScoreOptions) -> Path | None:
    """What could spare reading a file whole."""
    if options.source == STDIN or not (options.regions or options.bed):
        return None
    return find_index(options.source) if is_bgzip(options.source) else None


def _is_stale(index: Path, path: Path) -> bool:
    return index.stat().st_mtime < path.stat().st_mtime


def _conditions(options: ScoreOptions) -> Iterator[Callable[[VariantRecord], bool]]:
    """What a record has to fulfil, every one of them, cheapest first."""
    if options.regions:
        yield partial(_is_in, Regions(read_regions(options.regions)))
    if options.bed:
        yield partial(_is_in, Regions(read_bed(options.bed)))
    if options.pass_only:
        yield lambda record: record.passes
    if options.min_qual is not None:
        yield partial(_is_sure, options.min_qual)


def _is_in(regions: Regions, record: VariantRecord) -> bool:
    """Whether a base of REF lies in `regions`."""
    return regions.overlap(record.contig, record.start, record.end)


def _is_sure(least: float, record: VariantRecord) -> bool:
    """Whether QUAL is there and large enough."""
    try:
        quality = record.quality
    except ValueError:
        raise UserError(f"{record}: its QUAL is no number; --min-qual needs one, or .") from None
    return quality is not None and quality >= least


def count_variants(options: ScoreOptions) -> int | None:
    """How many records there will be; None for stdin, which can be read only once.

    Reading a file once more is fast, and a bad record is found before hours of work.

    Raises:
        UserError: A record is bad.
    """
    if options.source == STDIN and options.saturate is None:
        return None
    if (index := _index(options)) and _is_stale(index, options.source):
        console.warn(f"{index}: is older than {options.source.name}, which is read without it")
    first, end = _borders(options)
    total = end - first
    if options.filters:
        told = f"{total:,} records are chosen by {', '.join(options.filters)}"
        (console.say if total else console.warn)(told)
    return total


def check_contigs(header: Header, genome: Reference) -> None:
    """Warn where a VCF's header and the reference tell other lengths of a contig."""
    lengths = {}
    for name, length in header.contig_lengths().items():
        known = find_contig(name, genome.names)
        if known is not None:
            lengths[known] = length
    if trouble := disagreement(lengths, {name: genome.length(name) for name in lengths}):
        console.warn(trouble)


def check_regions(options: ScoreOptions, genome: Reference) -> None:
    """Refuse regions of contigs that the reference does not have.

    Raises:
        UserError: There is one.
    """
    for text in options.regions:
        genome.region(text)
