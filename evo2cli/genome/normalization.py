"""Whether insertions and deletions are normalized: trimmed and left-aligned.

A normalized variant has as few bases as possible, as far to the left as possible. This can be
decided without the genome: if all alleles end with the same base, that base can be removed, or
replaced by the base before them. Source: Tan, Abecasis and Kang 2015,
doi:10.1093/bioinformatics/btv112.
"""

from evo2cli.genome.alphabet import upper_dna
from evo2cli.genome.vcf import VariantRecord, is_bases


class Indels:
    """Counts insertions and deletions.

    Attributes:
        total: Alleles whose length differs from that of REF.
        unnormalized: Those in records that are not normalized.
    """

    def __init__(self) -> None:
        self.total = self.unnormalized = 0

    def count(self, record: VariantRecord) -> None:
        """Count the alleles of a record, unless one of them is not written in bases."""
        alleles = [record.reference, *record.alternates]
        num_indels = sum(len(allele) != len(record.reference) for allele in record.alternates)
        if num_indels and all(map(is_bases, alleles)):
            self.total += num_indels
            self.unnormalized += 0 if is_normalized(record) else num_indels


def is_normalized(record: VariantRecord) -> bool:
    """Whether a record, all of whose alleles are written in bases, is trimmed and left-aligned."""
    alleles = [upper_dna(allele) for allele in (record.reference, *record.alternates)]
    shortest = min(map(len, alleles))
    can_grow_left = record.start > 0
    if len({allele[-1] for allele in alleles}) == 1 and (shortest > 1 or can_grow_left):
        return False
    return shortest == 1 or len({allele[0] for allele in alleles}) > 1
