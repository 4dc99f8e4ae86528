"""Every SNV of a region, once, in order, against the genome's own base."""

from pathlib import Path

import pytest

from evo2cli.errors import UserError
from evo2cli.saturate.records import saturate

GENOME = "ACGTNacgtRUAAC"


@pytest.fixture
def genome(tmp_path: Path) -> Path:
    path = tmp_path / "g.fa"
    path.write_text(f">chr1\n{GENOME}\n>MT\nACGT\n")
    return path


def test_every_snv_of_a_region_is_there_once(genome: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evo2cli.saturate.records._BLOCK", 3)
    records = list(saturate(genome, "1:2-13"))
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


def test_commas_and_other_spellings_of_contigs(genome: Path) -> None:
    assert [record.start for record in saturate(genome, "chrM:0,002-0,003")] == [1, 2]


@pytest.mark.parametrize(
    ("region", "message"),
    [
        ("chr1", "write chr:from-to"),
        ("chr1:5", "write chr:from-to"),
        ("chr1:0-4", "needs 1 <= from <= to <= 14"),
        ("chr1:4-3", "needs 1 <= from"),
        ("chr1:4-15", "where chr1 ends"),
        ("chr7:1-2", "has no contig chr7; it has chr1, MT"),
    ],
)
def test_what_is_no_region_is_one_line(genome: Path, region: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        next(saturate(genome, region))
    assert str(error.value).startswith(f"--saturate {region}: ")
