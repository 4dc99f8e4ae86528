"""An indel is normalized if bcftools norm would leave it as it is."""

import random
from pathlib import Path

import pysam.bcftools

from evo2cli.genome.normalization import Indels, is_normalized
from evo2cli.genome.vcf import VariantRecord, read_vcf

HEADER = "##fileformat=VCFv4.2\n##contig=<ID=c>\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"


def test_it_agrees_with_bcftools_norm(tmp_path: Path) -> None:
    chance = random.Random(2)  # noqa: S311 - a test
    genome = "".join(chance.choices("AC", k=300))  # repeats, so that much can be moved
    (tmp_path / "g.fa").write_text(f">c\n{genome}\n")
    lines = []
    for number in range(400):
        start, length = chance.choice([0, chance.randrange(280)]), chance.randint(1, 4)
        reference = genome[start : start + length]
        alleles = {
            "".join(chance.choices("AC", k=chance.randint(1, 5)))
            for _ in range(chance.choice([1, 1, 2]))
        }
        alternates = ",".join(sorted(alleles - {reference})) or "G"
        lines.append(f"c\t{start + 1}\t{number}\t{reference}\t{alternates}\t.\t.\t.\n")
    source, output = tmp_path / "in.vcf", tmp_path / "out.vcf"
    source.write_text(HEADER + "".join(lines))
    arguments = ("-f", str(tmp_path / "g.fa"), "-o", str(output), str(source))
    pysam.bcftools.norm(*arguments, catch_stdout=False)
    written = {record.identifier: record for record in read_vcf(source).records}
    moved = {
        record.identifier
        for record in read_vcf(output).records
        if str(record) != str(written[record.identifier])
    }
    found = {name for name, record in written.items() if not is_normalized(record)}
    assert found == moved
    assert 50 < len(moved) < 350


def test_only_indels_written_in_bases_are_counted() -> None:
    indels = Indels()
    for reference, alternates in (
        ("A", "C"),  # no indel
        ("CA", "CT"),  # nor this, though it could be trimmed
        ("A", "AA,AC"),  # jointly trimmed
        ("a", "AA"),  # to be moved
        ("CAT", "CA,CATT"),  # to be trimmed, both
        ("A", "AA,<DEL>"),  # bcftools norm leaves it alone
        ("A", "AA,*"),
    ):
        indels.count(VariantRecord.from_columns("c", 10, reference, alternates))
    assert (indels.total, indels.unnormalized) == (5, 3)
    start = VariantRecord.from_columns("c", 1, "A", "AA")
    assert is_normalized(start), "there is no base before"
