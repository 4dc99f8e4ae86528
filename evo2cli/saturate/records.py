"""All single-nucleotide variants of regions of a genome, as VCF records."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from evo2cli.errors import UserError
from evo2cli.genome.alphabet import upper_dna
from evo2cli.genome.interval import Interval
from evo2cli.genome.reference import Reference
from evo2cli.genome.regions import read_bed
from evo2cli.genome.vcf import VariantRecord

BASES = b"ACGT"
_REGION = re.compile(r"(?P<name>.+):(?P<start>[0-9][0-9,]{0,29})-(?P<end>[0-9][0-9,]{0,29})")


def snv_records(
    genome: Reference, region: Interval, block: int = 1 << 16
) -> Iterator[VariantRecord]:
    """Yield one record per position of a region, with the three other bases as ALT.

    Positions where the genome has a letter other than A, C, G and T are skipped.

    Args:
        genome: The genome.
        region: An interval of it.
        block: Number of bases to fetch at a time.
    """
    for start in range(region.start, region.end, block):
        interval = Interval(region.name, start, min(start + block, region.end))
        for index, base in enumerate(upper_dna(genome.fetch(interval)), start=start):
            if base in BASES:
                others = ",".join(chr(other) for other in BASES if other != base)
                yield VariantRecord.from_columns(region.name, index + 1, chr(base), others)


def locate_regions(genome: Reference, regions: Iterable[str], bed: Path | None) -> list[Interval]:
    """The regions in the given order; or the union of those of a BED file.

    Raises:
        UserError: A region is not valid, or not in the genome.
    """
    if bed is None:
        return [locate_region(genome, region) for region in regions]
    union = genome.union(genome.resolve(each, f"--bed {bed}: {each}") for each in read_bed(bed))
    if not union:
        raise UserError(f"--bed {bed}: has no interval with a base")
    return union


def locate_region(genome: Reference, region: str) -> Interval:
    """Parse `chr:from-to` (1-based, both ends included) into an interval of the genome.

    Commas may group the digits.

    Raises:
        UserError: It is not such a region, or not in the genome.
    """
    match = _REGION.fullmatch(region)
    if match is None:
        raise UserError(f"{region}: write a region as chr:from-to, 1-based, both ends included")
    name = genome.contig(match["name"], region)
    start, end = (int(match[border].replace(",", "")) for border in ("start", "end"))
    if not 1 <= start <= end <= genome.length(name):
        raise UserError(
            f"{region}: needs 1 <= from <= to <= {genome.length(name):,}, where {name} ends"
        )
    return Interval(name, start - 1, end)
