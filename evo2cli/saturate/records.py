"""Every single-nucleotide variant of a region of the genome, as records of a VCF."""

import re
from collections.abc import Iterator
from pathlib import Path

from evo2cli.errors import UserError
from evo2cli.genome.interval import Interval
from evo2cli.genome.reference import Reference
from evo2cli.genome.vcf import VariantRecord
from evo2cli.genome.windows import upper_dna

BASES = b"ACGT"
_REGION = re.compile(r"(?P<name>.+):(?P<start>[\d,]+)-(?P<end>[\d,]+)")
_BLOCK = 1 << 16  # bases fetched at once


def saturate(path: Path, region: str) -> Iterator[VariantRecord]:
    """Stream a record for each position of a region, its three other bases as ALT.

    Positions where the genome has another letter than A, C, G and T have no record.

    Args:
        path: FASTA of the genome.
        region: `chr:from-to`, 1-based, ends included; commas may group the digits.

    Raises:
        UserError: It is no region, or none of this genome, or the genome cannot be read.
    """
    with Reference.open(path) as genome:
        whole = _locate(genome, region)
        for start in range(whole.start, whole.end, _BLOCK):
            block = Interval(whole.name, start, min(start + _BLOCK, whole.end))
            for place, base in enumerate(upper_dna(genome.fetch(block)), start=start):
                if base in BASES:
                    others = ",".join(chr(other) for other in BASES if other != base)
                    yield VariantRecord.from_columns(whole.name, place + 1, chr(base), others)


def _locate(genome: Reference, region: str) -> Interval:
    """Where a region lies, under the name that the genome gives its contig."""
    found = _REGION.fullmatch(region)
    if found is None:
        raise UserError(f"--saturate {region}: write chr:from-to, 1-based, both ends included")
    name = genome.contig(found["name"], f"--saturate {region}")
    start, end = (int(found[side].replace(",", "") or 0) for side in ("start", "end"))
    if not 1 <= start <= end <= genome.length(name):
        raise UserError(
            f"--saturate {region}: needs 1 <= from <= to <= {genome.length(name):,}, where {name} "
            "ends"
        )
    return Interval(name, start - 1, end)
