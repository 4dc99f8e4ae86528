"""`evo2cli.genome` imports its public names when they are first used."""

import subprocess
import sys
from pathlib import Path

import pytest

from evo2cli import genome
from evo2cli.errors import UserError


def test_every_public_name_is_there() -> None:
    assert set(genome.__all__) <= set(dir(genome))
    for name in genome.__all__:
        assert getattr(genome, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        genome.nothing  # noqa: B018 - the access is the test


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = (
        "import sys, evo2cli.genome, evo2cli.genome.source\n"
        "print(sorted({'Bio', 'numpy', 'pysam', 'torch', 'pyarrow'} & set(sys.modules)))"
    )
    path = [str(Path(genome.__file__).parents[2])]
    result = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {path}\n{code}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout == "[]\n"


def test_paths_may_be_text_and_coordinates_agree(tmp_path: Path) -> None:
    (tmp_path / "g.fa").write_text(">chr1\nACGTACGT\n")
    (tmp_path / "v.vcf").write_text(
        "##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"
        "chr1\t3\t.\tG\tC\t.\t.\t.\n"
    )
    with genome.Reference.open(str(tmp_path / "g.fa")) as reference:
        for record in genome.read_vcf(str(tmp_path / "v.vcf")).records:
            spelled = genome.Interval(record.contig, record.start, record.end)
            assert reference.fetch(spelled) == record.reference == b"G"
            assert "line=" not in repr(record)
    (tmp_path / "i.bed").write_text("chr1\t2\t5\tone\n")
    (tmp_path / "i.gff3").write_text("chr1\t.\tgene\t3\t5\t.\t+\t.\tID=one\n")
    assert list(genome.read_bed(str(tmp_path / "i.bed"))) == [genome.Interval("chr1", 2, 5)]
    for name in ("i.bed", "i.gff3"):
        [feature] = genome.read_features(str(tmp_path / name))
        assert (feature.name, feature.spans) == ("one", ((2, 5),))


def test_what_is_printed_is_short(tmp_path: Path) -> None:
    (tmp_path / "g.fa").write_text(f">chr1 of a test\n{'ACGT' * 1000}\n>chr2\nA\n")
    first, _ = genome.read_records(tmp_path / "g.fa")
    assert repr(first) == ("Record(name='chr1', description='of a test', sequence=<4,000 letters>)")
    with genome.Reference.open(tmp_path / "g.fa") as reference:
        assert repr(reference) == "<Reference: 2 contigs, 4,001 bases>"
    with pytest.raises(UserError, match=r"g\.fa: the reference has been closed"):
        reference.fetch(genome.Interval("chr1", 0, 3))
