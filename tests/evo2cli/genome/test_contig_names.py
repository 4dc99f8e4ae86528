"""Synonyms of contig names."""

from pathlib import Path

import pytest

from evo2cli.errors import UserError
from evo2cli.genome.builds import BUILDS
from evo2cli.genome.contig_names import DEFAULT_NAMES, plain_name, read_contig_names
from evo2cli.genome.interval import Interval
from evo2cli.genome.reference import Reference
from evo2cli.genome.regions import Regions


@pytest.mark.parametrize("build", BUILDS[1:], ids=lambda build: build.name)
def test_every_chromosome_of_a_build_is_found_by_every_name_under_every_name(build):
    for chromosome in build.lengths:
        short = {chromosome, f"chr{chromosome}"} | ({"chrM", "M"} if chromosome == "MT" else set())
        accessions = {name for name, of in build.accessions.items() if of == chromosome}
        assert len(accessions) == 2 or (chromosome == "MT" and build.name.startswith("T2T"))
        names = short | accessions
        for name in names:
            assert plain_name(name) == chromosome
            assert all(DEFAULT_NAMES.find(name, [other]) == other for other in names)


@pytest.mark.parametrize(
    ("names", "others"),
    [
        ({"1", "chr1", "Chr1", "CHR1"}, {"chr11", "Chr", "cHR1", "c1"}),
        ({"MT", "M", "Mt", "chrM", "ChrM", "ChrMt", "CHRMT"}, {"m", "Pt", "ChrC"}),
    ],
    ids=["chromosome", "mitochondrion"],
)
def test_the_prefix_of_plants_is_that_of_animals(names: set[str], others: set[str]) -> None:
    """TAIR10 and the rice genome write Chr1, other files CHR1 or chr1, Ensembl 1 and Mt."""
    for name in names:
        assert all(DEFAULT_NAMES.find(name, [other]) == other for other in names)
        assert DEFAULT_NAMES.find(name, sorted(others)) is None
        assert DEFAULT_NAMES.find(name, sorted(names)) == name  # itself first
    assert len({plain_name(name) for name in names}) == 1


def test_the_number_of_an_accession_is_that_of_its_chromosome():
    for build in BUILDS[1:3]:
        numbers = {**{str(n): n for n in range(1, 23)}, "X": 23, "Y": 24}
        for accession, chromosome in build.accessions.items():
            if accession.startswith("NC_0000"):
                assert int(accession[3:9]) == numbers[chromosome]
            if accession.startswith("CM"):
                assert int(accession[2:8]) == 662 + numbers[chromosome]


@pytest.mark.parametrize(
    ("name", "chromosome", "build"),
    [
        ("NC_000017.11", "17", "GRCh38 (hg38)"),
        ("CM000679.2", "17", "GRCh38 (hg38)"),
        ("NC_000017.10", "17", "GRCh37 (hg19)"),
        ("NC_000023.10", "X", "GRCh37 (hg19)"),
        ("NC_060948.1", "Y", "T2T-CHM13v2.0 (hs1)"),
        ("CP068256.2", "22", "T2T-CHM13v2.0 (hs1)"),
        ("NC_000068.7", "2", "GRCm38 (mm10)"),
        ("NC_000068.8", "2", "GRCm39 (mm39)"),
        ("CM001013.3", "X", "GRCm39 (mm39)"),
    ],
)
def test_accessions_as_the_assembly_reports_list_them(name, chromosome, build):
    [found] = [each for each in BUILDS if name in each.accessions]
    assert (found.name, found.accessions[name]) == (build, chromosome)


def test_accessions_of_two_builds_are_not_the_same():
    assert DEFAULT_NAMES.find("NC_000017.10", ["NC_000017.11"]) is None
    assert DEFAULT_NAMES.find("NC_012920.1", ["J01415.2"]) == "J01415.2"
    assert DEFAULT_NAMES.find("17", ["NC_000017.10", "NC_000017.11"]) is None  # which of them?


def genome(folder: Path, contigs: dict[str, int]) -> Path:
    path = folder / "g.fa"
    path.write_text("".join(f">{name}\n{'A' * length}\n" for name, length in contigs.items()))
    return path


def test_a_genome_of_another_build_does_not_have_the_contig(tmp_path: Path):
    path = genome(tmp_path, {"chrM": 16_571})  # that of hg18 and of UCSC's hg19
    with Reference.open(path) as hg19:
        assert hg19.find("MT") == hg19.find("NC_001807.4") == "chrM"
        assert hg19.find("NC_012920.1") is None
        with pytest.raises(UserError, match=r"NC_012920\.1 is chromosome MT of GRCh37 .* NCBI36"):
            hg19.contig("NC_012920.1", "here")
    path = genome(tmp_path, {"chrM": 16_569, "chr1": 5})
    with Reference.open(path) as hg38:
        assert hg38.find("NC_012920.1") == "chrM"
        assert hg38.find("NC_000001.10") == "chr1"  # a part of a genome may be of any build


REPORT = (
    "# Assembly name:  x\n# Sequence-Name\tSequence-Role\tAssigned-Molecule\tLocation\t"
    "GenBank-Accn\tRelationship\tRefSeq-Accn\tUnit\tLength\tUCSC-style-name\n"
    "I\tassembled-molecule\tI\tChromosome\tBK006935.2\t=\tNC_001133.9\tPrimary\t230218\tchrI\n"
    "MT\tassembled-molecule\tMT\tMitochondrion\tna\t<>\tNC_001224.1\tnon-nuclear\t85779\tna\n"
)


@pytest.mark.parametrize(
    "text",
    [
        REPORT,
        "# mine\nI\tBK006935.2\tNC_001133.9\n",
        "I,BK006935.2,NC_001133.9\n",
        "BK006935.2 I NC_001133.9",
    ],
)
def test_synonyms_of_a_file(tmp_path: Path, text: str):
    path = tmp_path / "names.txt"
    path.write_text(text)
    names = read_contig_names(path)
    assert names.find("NC_001133.9", ["chrI"]) == "chrI"
    assert names.find("I", ["BK006935.2"]) == "BK006935.2"
    assert names.find("II", ["BK006935.2"]) is None
    assert names.find("17", ["NC_000017.11"]) == "NC_000017.11"
    regions = Regions([Interval("NC_001133.9", 2, 4)], names)
    assert regions.overlap("chrI", 3, 5)
    assert not regions.overlap("II", 3, 5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a\tb\nc\n", "line 2: 'c' is alone"),
        ("a\tb\nc\tb\n", "line 2: b is also in line 1"),
        ("a\tchr7\nc\t7\n", "line 2: 7 is also in line 1"),
        ("# nothing\n", "has no line"),
    ],
)
def test_an_invalid_file_of_names_is_refused(tmp_path: Path, text: str, message: str):
    path = tmp_path / "names.txt"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        read_contig_names(path)
