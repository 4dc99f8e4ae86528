"""Every single-nucleotide variant of regions of a genome, as records of a VCF."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from evo2cli.errors import UserError
from evo2cli.genome.alphabet import upper_dna
from evo2cli.genome.contig_names import ContigNames
from evo2cli.genome.interval import Interval
from evo2cli.genome.reference import Reference
from evo2cli.genome.regions import Regions, read_bed
from evo2cli.genome.vcf import VariantRecord

BASES = b"ACGT"
_REGION = re.compile(r"(?P<name>.+):(?P<start>[0-9][0-9,]{0,29})-(?P<end>[0-9][0-9,]{0,29})")


def snv_records(
    genome: Reference, region: Interval, block: int = 1 << 16
) -> Iterator[VariantRecord]:
    """Stream one record for each position of a region, with its three other bases as ALT.

    Positions where the genome has a letter other than A, C, G and T have no record.

    Args:
        genome: The genome.
        region: An interval of it.
        block: Number of bases to fetch at once.
    """
    for start in range(region.start, region.end, block):
        interval = Interval(region.name, start, min(start + block, region.end))
        for index, base in enumerate(upper_dna(genome.fetch(interval)), start=start):
            if base in BASES:
                others = ",".join(chr(other) for other in BASES if other != base)
                yield VariantRecord.from_columns(region.name, index + 1, chr(base), others)


def locate_regions(
    genome: Reference, regions: Iterable[str], bed: Path | None, names: ContigNames
) -> list[Interval]:
    """The regions as they are named; or those of a BED file, disjoint and in the genome's order.

    Raises:
        UserError: One is not valid, or not in the genome.
    """
    if bed is None:
        return [locate_region(genome, region) for region in regions]
    intervals = list(read_bed(bed))
    for interval in intervals:
        genome.resolve(interval, f"--bed {bed}: {interval}")
    spans = Regions(intervals, names).spans(genome.names)
    if not spans:
        raise UserError(f"--bed {bed}: has no interval with a base")
    return spans


def locate_region(genome: Reference, region: str) -> Interval:
    """The interval of `chr:from-to` (1-based, both ends included), under the contig's own name.

    Commas may group the digits.

    Raises:
        UserError: The region is not written like that, or is not in the genome.
    """
    found = _REGION.fullmatch(region)
    if found is None:
        raise UserError(f"{region}: write a region as chr:from-to, 1-based, both ends included")
    name = genome.contig(found["name"], region)
    start, end = (int(found[side].replace(",", "") or 0) for side in ("start", "end"))
    if not 1 <= start <= end <= genome.length(name):
        raise UserError(
            f"{region}: needs 1 <= from <= to <= {genome.length(name):,}, where {name} ends"
        )
    return Interval(name, start - 1, end)
