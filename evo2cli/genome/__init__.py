"""Genomes and variants, read and written without torch.

::

    from evo2cli.genome import Interval, Reference, read_vcf

    with Reference.open("genome.fa") as genome:
        for record in read_vcf("variants.vcf.gz").records:
            start = max(record.start - 10, 0)
            print(record, genome.fetch(Interval(record.contig, start, record.start)))

Coordinates are 0-based and half-open everywhere in Python: `Interval("chr1", 9, 12)` is the bases
that a VCF calls 10, 11 and 12. Only text for people is 1-based: VCF and GFF files, `--regions`,
and names of variants such as chr1-10-A-C. Sequences are bytes.

Reference
    A FASTA file with random access: `names`, `length(name)`, `fetch(interval)`.
Interval
    The bases from `start` to `end` of a contig.
read_records, Record
    The records of a FASTA file one after the other: `name`, `description`, `sequence`.
read_vcf, VariantFile, VariantRecord
    The header and the records of a VCF or BCF; a record keeps its line byte for byte.
read_table
    The same from TSV, CSV, Parquet or JSON lines with chrom, pos, ref and alt.
read_bed, read_features
    The intervals of a BED file; the features of a BED, GFF3 or GTF file.
reverse_complement
    The other strand.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from evo2cli.genome.alphabet import reverse_complement
    from evo2cli.genome.fasta import Record, read_records
    from evo2cli.genome.features import read_features
    from evo2cli.genome.interval import Interval
    from evo2cli.genome.reference import Reference
    from evo2cli.genome.regions import read_bed
    from evo2cli.genome.variant_table import read_table
    from evo2cli.genome.vcf import VariantFile, VariantRecord, read_vcf

__all__ = [
    "Interval",
    "Record",
    "Reference",
    "VariantFile",
    "VariantRecord",
    "read_bed",
    "read_features",
    "read_records",
    "read_table",
    "read_vcf",
    "reverse_complement",
]

# Imported on first use: options of commands import modules of this package, and pysam and numpy
# would slow down every `--help`.
_MODULES = {
    "Interval": "interval",
    "Record": "fasta",
    "Reference": "reference",
    "VariantFile": "vcf",
    "VariantRecord": "vcf",
    "read_bed": "regions",
    "read_features": "features",
    "read_records": "fasta",
    "read_table": "variant_table",
    "read_vcf": "vcf",
    "reverse_complement": "alphabet",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
