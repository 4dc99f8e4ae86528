"""Input of `evo2 score`: variants from a VCF, BCF, table or the command line, and filters."""

import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path

from evo2cli import console
from evo2cli.errors import UserError, counted
from evo2cli.files import size_and_time
from evo2cli.genome.builds import length_mismatch
from evo2cli.genome.fasta import require_fasta
from evo2cli.genome.formats import Wanted
from evo2cli.genome.reference import Reference
from evo2cli.genome.regions import Regions, read_bed, read_regions
from evo2cli.genome.source import STDIN, exists, is_bgzip
from evo2cli.genome.variant_index import find_index, index_matches
from evo2cli.genome.variant_names import NOTATIONS, is_variant_name, read_variant_name
from evo2cli.genome.variant_table import is_table, read_table
from evo2cli.genome.vcf import (
    Header,
    VariantRecord,
    is_variants,
    read_vcf,
    read_vcf_by_index,
)
from evo2cli.score.options import ScoreOptions, VariantOptions

EMPTY_HEADER = Header(
    (b"##fileformat=VCFv4.3\n", b"#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n")
)


@dataclass(frozen=True)
class Variants:
    """An open source of variants.

    Attributes:
        records: Yields the records.
        header: Header of the VCF; for other inputs a minimal one.
        is_vcf: Whether the records come from a VCF or BCF.
        is_table: Whether they come from a table.
        others: Further columns of a table, which are passed through to output tables, and the types
            of their cells.
        has_sequences: Whether records have their two sequences, so that they need no genome.
    """

    records: Iterator[VariantRecord]
    header: Header = EMPTY_HEADER
    is_vcf: bool = False
    is_table: bool = False
    others: Mapping[str, type] = field(default_factory=dict)
    has_sequences: bool = False


# Opens the variants of a command, of all shards; stdin can be opened only once.
Read = Callable[[], Variants]


def named_variants(inputs: tuple[str, ...]) -> tuple[str, ...]:
    """The arguments if they are variants; empty if they name a file.

    Raises:
        UserError: There are several arguments, and one is not a variant.
    """
    path = Path(inputs[0])
    if path == STDIN or exists(path):
        if len(inputs) > 1:
            raise UserError(
                f"{inputs[1]}: {path} is a file, and only one file can be scored at a time"
            )
        return ()
    if len(inputs) == 1:
        return inputs if is_variant_name(inputs[0]) else ()
    for text in inputs:
        if not is_variant_name(text):
            raise UserError(f"{text}: neither a file nor a variant; {NOTATIONS}")
    return inputs


def holds_variants(inputs: tuple[str, ...]) -> bool:
    """Whether the input is variants; otherwise it is a FASTA of sequences.

    Raises:
        UserError: The input is neither, or cannot be read.
    """
    path = Path(inputs[0])
    if named_variants(inputs) or is_table(path) or is_variants(path):
        return True
    require_fasta(path, Wanted.FASTA_OR_VARIANTS)
    return False


def open_variants(
    inputs: tuple[str, ...], shift: int = 0, genome: Callable[[], Reference] | None = None
) -> Variants:
    """Open variants: those named on the command line, or those of a file.

    Args:
        inputs: Names of variants, or one file.
        shift: Number to add to every position of a table.
        genome: Opens the genome, for the bases that HGVS leaves out.

    Raises:
        UserError: Here or while records are read: the input is not valid, or `shift` is given but
            the input is not a table.
    """
    names = named_variants(inputs)
    path = Path(inputs[0])
    if not names and is_table(path):
        table = read_table(path, shift=shift)
        return Variants(
            table.records,
            is_table=True,
            others=table.others,
            has_sequences=table.has_sequences,
        )
    if shift:
        raise UserError(f"--shift {shift}: only for tables; correct the positions of {path}")
    if names:
        with genome() if genome else nullcontext() as bases:
            return Variants(iter([read_variant_name(name, bases) for name in names]))
    vcf = read_vcf(path)
    return Variants(vcf.records, vcf.header, is_vcf=True)


def read_variants(options: ScoreOptions) -> Variants:
    """Open the variants, with the filters applied.

    Raises:
        UserError: As `open_variants`; or a filter needs a VCF.
    """
    path, names = options.reference, options.names
    genome = partial(Reference.open, path, names) if path else None
    variants = _open_by_index(options) or open_variants(options.inputs, options.shift, genome)
    if not options.filters:
        return variants
    if not variants.is_vcf:
        for flag in ("--min-qual", "--pass-only"):
            if flag in options.filters:
                raise UserError(f"{flag} is for VCF, but {options.source} has no QUAL and FILTER")
    records: Iterator[VariantRecord] = (record for record in variants.records if record.alternates)
    for condition in _conditions(options):
        records = filter(condition, records)
    return replace(variants, records=islice(records, options.limit))


def _open_by_index(options: ScoreOptions) -> Variants | None:
    """Open a VCF or BCF with its index; None if there are no regions or no matching index."""
    index = _find_index(options)
    if index is None or _index_problem(index, options.source) or options.shift:
        return None
    if options.bed and not options.regions:
        intervals = read_bed(options.bed)
    else:  # with both, the BED file filters the records of the regions
        intervals = read_regions(options.regions)
    vcf = read_vcf_by_index(options.source, index, Regions(intervals, options.names))
    return Variants(vcf.records, vcf.header, is_vcf=True)


def _find_index(options: ScoreOptions) -> Path | None:
    """The index with which only the regions of the file need be read, if there is one."""
    has_regions = options.regions or options.bed
    if not has_regions or named_variants(options.inputs) or options.is_stdin:
        return None
    if not is_bgzip(options.source) or is_table(options.source):
        return None
    return find_index(options.source)


def _index_problem(index: Path, path: Path) -> str:
    """Why an index cannot be used; "" if it can."""
    if index.stat().st_mtime < path.stat().st_mtime:
        return f"is older than {path.name}"
    versions = size_and_time(index), size_and_time(path)
    return "" if _matches(index, path, versions) else f"is damaged, or not the index of {path.name}"


@lru_cache(maxsize=1)
def _matches(index: Path, path: Path, _versions: object) -> bool:
    """As `index_matches`, which takes a second for a large index and is called several times."""
    return index_matches(index, path)


def warn_of_unused_index(options: ScoreOptions) -> None:
    """Warn if a file is read whole although it has an index, because the index does not match."""
    if (index := _find_index(options)) and (problem := _index_problem(index, options.source)):
        console.warn(
            f"{index}: {problem}, which is read without it; make it again, e.g. with "
            "`bcftools index -f`"
        )


def _conditions(options: ScoreOptions) -> Iterator[Callable[[VariantRecord], bool]]:
    """The conditions of the filters, the cheapest first."""

    def overlaps(regions: Regions, record: VariantRecord) -> bool:
        return regions.overlap(record.contig, record.start, record.end)

    def has_quality(minimum: float, record: VariantRecord) -> bool:
        try:
            quality = record.quality
        except ValueError:
            raise UserError(
                f"{record}: its QUAL is not a number; --min-qual needs a number or ."
            ) from None
        return quality is not None and quality >= minimum

    if options.regions:
        yield partial(overlaps, Regions(read_regions(options.regions), options.names))
    if options.bed:
        yield partial(overlaps, Regions(read_bed(options.bed), options.names))
    if options.pass_only:
        yield lambda record: record.passes
    if options.min_qual is not None:
        yield partial(has_quality, options.min_qual)


def count_shard(options: VariantOptions, read: Read) -> range | None:
    """The indices of the records of the shard; None for stdin, which can be read only once.

    All variants are read for it. That is fast, and an invalid record is found before hours of work.

    Raises:
        UserError: A record is invalid.
    """
    if options.is_stdin:
        return None
    total = sum(1 for _ in read().records)
    index, count = options.part
    shard = range(total * index // count, total * (index + 1) // count)
    if options.filters:
        count_text = counted(len(shard), "record is", "records are")
        message = f"{count_text} chosen by {', '.join(options.filters)}"
        (console.say if shard else console.warn)(message)
    return shard


def input_digest(read: Read) -> str:
    """Number and checksum of all records, the same for all shards of an input.

    Raises:
        UserError: A record is invalid.
    """
    count = checksum = 0
    for count, record in enumerate(read().records, start=1):  # noqa: B007 - used after the loop
        checksum = zlib.crc32(f"{record}\n".encode(), checksum)
    return f"{count} records, checksum {checksum:08x}"


def check_contigs(header: Header, genome: Reference) -> None:
    """Warn if a contig has another length in the header of a VCF than in the reference."""
    lengths = {}
    for name, length in header.contig_lengths().items():
        contig = genome.find(name)
        if contig is not None:
            lengths[contig] = length
    if message := length_mismatch(lengths, {name: genome.length(name) for name in lengths}):
        console.warn(message)


def check_regions(options: ScoreOptions, genome: Reference) -> None:
    """Check that the reference has the contigs of the regions.

    Raises:
        UserError: It lacks a contig of `--regions`, or all contigs of the BED file.
    """
    for text in options.regions:
        genome.region(text)
    if options.bed is None:
        return
    contigs = dict.fromkeys(interval.name for interval in read_bed(options.bed))
    if contigs and all(genome.find(name) is None for name in contigs):
        raise UserError(f"--bed {options.bed}: {genome.missing_contig(next(iter(contigs)))}")
