"""BCF and indexes through htslib."""

import io
from pathlib import Path

import pysam
import pytest

from evo2cli.errors import UserError
from evo2cli.genome.htslib import index_table, index_variants, read_bcf, write_bcf
from evo2cli.genome.vcf import read_vcf

UNDECLARED = (
    b"##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\tFORMAT\ts1\n"
    b"1\t5\trs1\tA\tC,G\t30\tq10\tDP=5;DB\tGT:XX\t0/1:3\n2\t7\t.\tA\t<DEL>\t.\t.\t.\tGT\t.|1\n"
)


def records(lines: list[bytes]) -> list[bytes]:
    return [line for line in lines if not line.startswith(b"#")]


def test_undeclared_keys_can_be_written_as_bcf(tmp_path):
    text, path = tmp_path / "some.vcf", tmp_path / "some.bcf"
    text.write_bytes(UNDECLARED)
    write_bcf(text, path)
    found = records(list(read_bcf(path)))
    assert b"".join(found) == b"".join(records(UNDECLARED.splitlines(keepends=True)))


def test_a_bcf_is_read_as_its_text_from_a_file_and_from_stdin(tmp_path, monkeypatch):
    text, path = tmp_path / "some.vcf", tmp_path / "some.bcf"
    text.write_bytes(UNDECLARED)
    write_bcf(text, path)
    read = [[str(r) for r in read_vcf(each).records] for each in (text, path)]
    assert read[0] == read[1] == ["1:5 A>C,G", "2:7 A><DEL>"]
    stdin = io.TextIOWrapper(io.BufferedReader(io.BytesIO(path.read_bytes())))
    monkeypatch.setattr("sys.stdin", stdin)
    assert [str(r) for r in read_vcf(Path("-")).records] == read[0]
    cut = path.read_bytes()[:-28]  # without the last block, of which htslib only warns
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(cut))))
    with pytest.raises(UserError, match=r"^-: damaged or cut off: the block that ends"):
        read_vcf(Path("-"))


def test_bcf_of_the_zoo_is_read_or_refused_in_one_line(shared):
    zoo = shared / "data" / "zoo" / "vcf"
    found = list(read_vcf(zoo / "htsjdk_BCFVersion22Uncompressed.bcf").records)
    assert len(found) == 26
    with pytest.raises(UserError, match=r"^[^\n]*AnIndex\.bcf: damaged, or of a kind[^\n]+$"):
        read_vcf(zoo / "htsjdk_VcfThatLacksAnIndex.bcf")


def test_a_damaged_bcf_is_refused(tmp_path):
    text, path = tmp_path / "some.vcf", tmp_path / "some.bcf"
    text.write_bytes(UNDECLARED)
    write_bcf(text, path)
    path.write_bytes(path.read_bytes()[:-60])
    with pytest.raises(UserError, match=r"some\.bcf: damaged"):
        list(read_bcf(path))


def test_a_record_that_htslib_cannot_parse_is_refused_with_a_way_out(tmp_path):
    text = tmp_path / "some.vcf"
    text.write_bytes(UNDECLARED.replace(b"\t7\t", b"\tseven\t"))
    with pytest.raises(UserError, match=r"^[^\n]*\.vcf\.gz[^\n]*$"):
        write_bcf(text, tmp_path / "some.bcf")


def test_a_contig_longer_than_tbi_allows_gets_a_csi(tmp_path):
    path = tmp_path / "long.vcf.gz"
    with pysam.BGZFile(str(path), "wb") as file:
        file.write(
            b"##fileformat=VCFv4.2\n##contig=<ID=1,length=900000000>\n#CHROM\tPOS\tID\tREF\t"
        )
        file.write(b"ALT\tQUAL\tFILTER\tINFO\n1\t800000000\t.\tA\tC\t.\t.\t.\n")
    index_variants(path)
    assert path.with_name("long.vcf.gz.csi").exists()
    with pysam.TabixFile(str(path), index=f"{path}.csi") as file:
        assert len(list(file.fetch("1", 799_999_990, 800_000_000))) == 1


def test_a_table_is_found_by_its_one_based_positions(tmp_path):
    path = tmp_path / "t.tsv.gz"
    with pysam.BGZFile(str(path), "wb") as file:
        file.write(b"#CHROM\tPOS\tREF\n1\t5\tA\n1\t6\tC\n2\t5\tG\n")
    index_table(path)
    with pysam.TabixFile(str(path)) as file:
        assert list(file.fetch("1", 5, 6)) == ["1\t6\tC"]
