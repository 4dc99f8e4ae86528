"""What `evo2 score` reads as variants: VCF, BCF, a table, or arguments; and its filters."""

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
from evo2cli.genome.builds import disagreement
from evo2cli.genome.fasta import require_fasta
from evo2cli.genome.formats import Wanted
from evo2cli.genome.reference import Reference
from evo2cli.genome.regions import Regions, read_bed, read_regions
from evo2cli.genome.source import STDIN, exists, is_bgzip
from evo2cli.genome.variant_index import belongs, find_index
from evo2cli.genome.variant_names import is_variant_name, read_variant_name
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
    """Variants that are being read.

    Attributes:
        records: The records, as they come.
        header: Header of the VCF; for other inputs, of a VCF without records.
        is_vcf: Whether the records come from a VCF or BCF.
        is_table: Whether they come from a table.
        others: Further columns of a table, which are copied to tables, and the types of their
            cells.
        has_sequences: Whether records have their two sequences, so that they need no genome.
    """

    records: Iterator[VariantRecord]
    header: Header = EMPTY_HEADER
    is_vcf: bool = False
    is_table: bool = False
    others: Mapping[str, type] = field(default_factory=dict)
    has_sequences: bool = False


# Starts to read all variants of a command, whatever the shard; stdin allows one call only.
Read = Callable[[], Variants]


def named_variants(inputs: tuple[str, ...]) -> tuple[str, ...]:
    """The arguments if they are variants; none if they name a file.

    Raises:
        UserError: There are several arguments, and the first is a file.
    """
    path = Path(inputs[0])
    if path == STDIN or exists(path):
        if len(inputs) > 1:
            raise UserError(
                f"{inputs[1]}: {path} is a file, and only one file can be scored at a time"
            )
        return ()
    return inputs if len(inputs) > 1 or is_variant_name(inputs[0]) else ()


def holds_variants(inputs: tuple[str, ...]) -> bool:
    """Whether the input is variants, rather than the sequences of a FASTA.

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
    """Start to read variants: those written out, or those of a file.

    Args:
        inputs: Variants, or one file.
        shift: What to add to every position of a table.
        genome: Opens the genome, which has the bases that names of variants may leave out.

    Raises:
        UserError: Here or while records are read: the input is not valid; or it is not a table,
            but `shift` is given.
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
    """Start to read the variants that pass the filters.

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
    chosen: Iterator[VariantRecord] = (record for record in variants.records if record.alternates)
    for is_chosen in _conditions(options):
        chosen = filter(is_chosen, chosen)
    return replace(variants, records=islice(chosen, options.limit))


def _open_by_index(options: ScoreOptions) -> Variants | None:
    """A VCF or BCF read by its index, if only regions are asked for and the index belongs to it."""
    index = _find_index(options)
    if index is None or _misfit(index, options.source) or options.shift:
        return None
    if options.bed and not options.regions:
        intervals = read_bed(options.bed)
    else:  # with both, the BED file is a filter of what is read
        intervals = read_regions(options.regions)
    vcf = read_vcf_by_index(options.source, index, Regions(intervals, options.names))
    return Variants(vcf.records, vcf.header, is_vcf=True)


def _find_index(options: ScoreOptions) -> Path | None:
    """The index by which only a part of the file need be read."""
    asks_for_part = options.regions or options.bed
    if not asks_for_part or named_variants(options.inputs) or options.is_stdin:
        return None
    if not is_bgzip(options.source) or is_table(options.source):
        return None
    return find_index(options.source)


def _misfit(index: Path, path: Path) -> str:
    """Why a file is not read by its index; "" if it is."""
    if index.stat().st_mtime < path.stat().st_mtime:
        return f"is older than {path.name}"
    stamps = size_and_time(index), size_and_time(path)
    return "" if _belongs(index, path, stamps) else f"is damaged, or not the index of {path.name}"


@lru_cache(maxsize=1)
def _belongs(index: Path, path: Path, _stamps: object) -> bool:
    """As `belongs`; a command asks several times, and to check a large index takes a second."""
    return belongs(index, path)


def warn_of_misfit(options: ScoreOptions) -> None:
    """Warn that a file is read whole because its index is not current."""
    if (index := _find_index(options)) and (trouble := _misfit(index, options.source)):
        console.warn(
            f"{index}: {trouble}, which is read without it; make it again, e.g. with "
            "`bcftools index -f`"
        )


def _conditions(options: ScoreOptions) -> Iterator[Callable[[VariantRecord], bool]]:
    """All conditions on a record, the cheapest first."""

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
    """The indices of the records of the shard, counted by reading all variants once.

    Reading a file once more is fast, and an invalid record is found before hours of work. None
    stands for stdin, which can be read only once.

    Raises:
        UserError: A record is invalid.
    """
    if options.is_stdin:
        return None
    total = sum(1 for _ in read().records)
    index, count = options.part
    shard = range(total * index // count, total * (index + 1) // count)
    if options.filters:
        chosen = counted(len(shard), "record is", "records are")
        message = f"{chosen} chosen by {', '.join(options.filters)}"
        (console.say if shard else console.warn)(message)
    return shard


def input_digest(read: Read) -> str:
    """Number and checksum of all records, which the shards of one input have in common.

    Raises:
        UserError: A record is invalid.
    """
    count = checksum = 0
    for count, record in enumerate(read().records, start=1):  # noqa: B007 - the last is the number
        checksum = zlib.crc32(f"{record}\n".encode(), checksum)
    return f"{count} records, checksum {checksum:08x}"


def check_contigs(header: Header, genome: Reference) -> None:
    """Warn if the header of a VCF and the reference disagree about the length of a contig."""
    lengths = {}
    for name, length in header.contig_lengths().items():
        known = genome.find(name)
        if known is not None:
            lengths[known] = length
    if trouble := disagreement(lengths, {name: genome.length(name) for name in lengths}):
        console.warn(trouble)


def check_regions(options: ScoreOptions, genome: Reference) -> None:
    """Refuse regions of contigs that the reference does not have.

    Raises:
        UserError: There is one in `--regions`, or the BED file has no others.
    """
    for text in options.regions:
        genome.region(text)
    if options.bed is None:
        return
    contigs = dict.fromkeys(interval.name for interval in read_bed(options.bed))
    if contigs and all(genome.find(name) is None for name in contigs):
        raise UserError(f"--bed {options.bed}: {genome.missing_contig(next(iter(contigs)))}")
