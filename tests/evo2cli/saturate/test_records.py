"""Every SNV of a region, once and in order."""

from pathlib import Path

import pytest

from evo2cli.errors import UserError
from evo2cli.genome.interval import Interval
from evo2cli.genome.reference import Reference
from evo2cli.genome.vcf import VariantRecord
from evo2cli.saturate.records import locate_region, locate_regions, snv_records

GENOME = "ACGTNacgtRUAAC"


@pytest.fixture
def genome(tmp_path: Path) -> Path:
    path = tmp_path / "g.fa"
    path.write_text(f">chr1\n{GENOME}\n>MT\nACGT\n")
    return path


def snvs(path: Path, region: str, block: int = 3) -> list[VariantRecord]:
    with Reference.open(path) as genome:
        return list(snv_records(genome, locate_region(genome, region), block))


def test_every_snv_of_a_region_comes_once(genome: Path) -> None:
    records = snvs(genome, "1:2-13")
    expected = [
        (position, letter, {"A", "C", "G", "T"} - {letter})
        for position, letter in enumerate(GENOME.upper().replace("U", "T"), start=1)
        if 2 <= position <= 13 and letter in "ACGT"
    ]
    found = [
        (r.start + 1, r.reference.decode(), {a.decode() for a in r.alternates}) for r in records
    ]
    assert found == expected
    assert all(record.contig == "chr1" and len(record.alternates) == 3 for record in records)
    assert records[0].line == b"chr1\t2\t.\tC\tA,G,T\t.\t.\t.\n"


def test_commas_and_other_names_of_contigs(genome: Path) -> None:
    assert [record.start for record in snvs(genome, "chrM:0,002-0,003")] == [1, 2]


@pytest.mark.parametrize(
    ("region", "message"),
    [
        ("chr1", "write a region as chr:from-to"),
        ("chr1:5", "write a region as chr:from-to"),
        ("chr1:0-4", "needs 1 <= from <= to <= 14"),
        ("chr1:4-3", "needs 1 <= from"),
        ("chr1:4-15", "where chr1 ends"),
        (f"chr1:4-{'9' * 5000}", "write a region as chr:from-to"),
        ("chr7:1-2", "has no contig chr7; it has chr1, MT"),
    ],
)
def test_an_invalid_region_is_refused_in_one_line(genome: Path, region: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        snvs(genome, region)
    assert str(error.value).startswith(f"{region}: ")


def test_intervals_of_a_bed_file_are_in_the_contig_that_they_name(tmp_path: Path) -> None:
    """hg19 with both mitochondria has chrM and chrMT, which are synonyms elsewhere."""
    fasta, bed = tmp_path / "g.fa", tmp_path / "x.bed"
    fasta.write_text(">chrM\nACGTACGT\n>chrMT\nACGTACGT\n")
    bed.write_text("chrMT\t4\t6\nchrM\t2\t3\nchrM\t3\t3\nchrM\t1\t2\n")
    with Reference.open(fasta) as genome:
        found = locate_regions(genome, (), bed)
    assert found == [Interval("chrM", 1, 3), Interval("chrMT", 4, 6)]
