"""Builds are recognised by the lengths of their contigs."""

from pathlib import Path

import pytest

from evo2cli.genome.builds import BUILDS, build_of, length_mismatch

GRCH37 = {"chr1": 249_250_621, "chr17": 81_195_210}
GRCH38 = {"chr1": 248_956_422, "chr17": 83_257_441}
REPORTS = Path(__file__).with_name("assembly_reports.tsv")


@pytest.mark.parametrize("build", BUILDS[1:], ids=lambda build: build.name)
def test_lengths_and_accessions_are_those_of_the_assembly_report(build):
    rows = [line.split("\t") for line in REPORTS.read_text().splitlines()[1:]]
    own = [row[1:] for row in rows if row[0] == build.name.split()[0]]
    assert build.lengths == {name: int(length) for name, *_, length in own}
    assert build.accessions == {
        accession: name for name, *both, _ in own for accession in both if accession != "na"
    }


def test_no_length_of_a_chromosome_is_in_two_builds():
    lengths = [length for build in BUILDS for name, length in build.lengths.items() if name != "MT"]
    assert len(lengths) == len(set(lengths)) == 4 * 24 + 2 * 21


@pytest.mark.parametrize(
    ("lengths", "build"),
    [
        (GRCH37, "GRCh37 (hg19)"),
        ({"1": 249_250_621, "MT": 16_569, "GL000207.1": 4262}, "GRCh37 (hg19)"),
        ({"X": 156_040_895}, "GRCh38 (hg38)"),
        ({"chr1": 248_387_328}, "T2T-CHM13v2.0 (hs1)"),
        ({"chr2": 249_250_621}, None),
        ({"chr1": 195_154_279, "chrM": 16_299}, "GRCm39 (mm39)"),
        ({**GRCH37, "chrX": 156_040_895}, None),
        ({}, None),
    ],
)
def test_a_build_is_known_by_its_lengths(lengths, build):
    assert build_of(lengths) == build


def test_a_mismatch_names_a_contig_both_lengths_and_both_builds():
    assert length_mismatch(GRCH37, GRCH37) is None
    assert length_mismatch(GRCH37, GRCH38) == (
        "contig chr1 has 249,250,621 bases in the VCF, but 248,956,422 in the reference (and 1 "
        "more): the VCF looks like GRCh37 (hg19), the reference looks like GRCh38 (hg38)"
    )
    assert length_mismatch({"a": 5}, {"a": 6}) == (
        "contig a has 5 bases in the VCF, but 6 in the reference"
    )
