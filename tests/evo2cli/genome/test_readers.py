"""All readers: any bytes give records or a one-line error, and an error leaves no file open."""

import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pyarrow
import pysam
import pytest
from Bio.bgzf import BgzfWriter
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from evo2cli.embed.probe import read_labels
from evo2cli.errors import UserError
from evo2cli.eval.annotations import read_annotated
from evo2cli.genome.contig_names import read_contig_names
from evo2cli.genome.fasta import read_records
from evo2cli.genome.features import read_features
from evo2cli.genome.interval import Interval
from evo2cli.genome.reference import Reference
from evo2cli.genome.regions import Regions, read_bed
from evo2cli.genome.source import first_bytes, read_lines
from evo2cli.genome.variant_table import is_table, read_table
from evo2cli.genome.vcf import is_variants, read_vcf

HEADER = b"##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"
RECORD = b"1\t5\t.\tA\tC\t.\t.\t.\n"
TABLE = b"chrom\tpos\tref\talt\n1\t5\tA\tC\n"
# By the name of a file: what reads it, valid lines of it, and further pieces that it may hold.
READERS: dict[str, tuple[Callable[[Path], Iterable[Any]], bytes, bytes]] = {
    "x.vcf": (lambda path: read_vcf(path).records, HEADER + RECORD, b"1\tx\t.\tA\tC\t.\t.\t.\n"),
    "x.tsv": (lambda path: read_table(path).records, TABLE, b"1\t0\tA\n"),
    "x.csv": (lambda path: read_table(path).records, b"chrom,pos,ref,alt\n1,5,A,C\n", b'1,"\n'),
    "x.bed": (lambda path: Regions(read_bed(path)).spans("1"), b"1\t0\t5\tname\n", b"1\t5\t4\n"),
    "x.gff": (read_features, b"1\t.\tCDS\t1\t9\t.\t+\t0\tID=a\n", b"1\t.\tCDS\t0\t9\n"),
    "x.gtf": (read_features, b'1\t.\tCDS\t1\t9\t.\t+\t0\tgene_id "a"\n', b"1\t.\tCDS\tx\n"),
    "x.fa": (read_records, b">a b\nACGT\n", b"ACGT"),
    "x.labels": (read_labels, b"name\tlabel\na\t1\n", b"b\n"),
    "x.eval": (lambda path: read_annotated(path).records, HEADER + RECORD, b"1\t5\n"),
}  # fmt: skip


def outcome(read: Callable[[Path], Iterable[Any]], path: Path) -> str:
    """The error of a reader that reads everything; "" if there is none."""
    try:
        list(read(path))
    except UserError as error:
        return str(error)
    return ""


def is_open(path: Path) -> bool:
    return any(link.resolve() == path for link in Path("/proc/self/fd").glob("*"))


@pytest.mark.parametrize("name", READERS)
def test_a_line_that_is_not_valid_closes_the_file_at_once(name: str, tmp_path: Path) -> None:
    read, valid, wrong = READERS[name]
    path = tmp_path / name
    path.write_bytes(wrong if name == "x.fa" else valid + wrong)
    with pytest.raises(UserError) as caught:
        list(read(path))
    # While the error, and with it the frames that read, are still alive.
    assert str(path) in str(caught.value)
    assert not is_open(path)


@pytest.mark.parametrize("name", READERS)
def test_a_byte_order_mark_changes_nothing(name: str, tmp_path: Path) -> None:
    read, valid, _ = READERS[name]
    path = tmp_path / name
    path.write_bytes(valid)
    expected = list(read(path))
    path.write_bytes(b"\xef\xbb\xbf" + valid)
    assert list(read(path)) == expected != []


OTHERS = {
    "FASTA": b">a b\nACGT\n",
    "a BED": b"chr1\t5\t90\tgene\t0\t+\n",
    "a GFF or GTF": b'#!genome-build x\nchr1\thavana\tgene\t5\t90\t.\t+\t.\tgene_id "a";\n',
    "a VCF, which": HEADER + RECORD.replace(b"\t.\tA", b"\t12345\tA"),  # as an interval by columns
    "a VCF without its header": RECORD,
    "FASTQ or SAM": b"@r\nACGT\n+\nIIII\n",
    "SAM or an interval list": b"@HD\tVN:1.6\nchr1\t5\t90\t+\tgene\n",
    "GenBank": b"LOCUS       SCU49845  5028 bp  DNA  PLN  21-JUN-1999\n",
    "a CRAM": b"CRAM\3\0",
    "a web page": b"<!doctype html><html>",
    "a web page or XML": b'<?xml version="1.0"?><Error/>',
    "a BED, which": b"LOCUS_1\t5\t90\nCRAM_1\t5\t90\n",
}


@pytest.mark.parametrize(
    ("name", "other", "way_out"),
    [
        ("x.bed", "FASTA", "give a BED file"),
        ("x.bed", "a GFF or GTF", "convert it to BED first (gff2bed, gtf2bed)"),
        ("x.bed", "a VCF, which", "convert it to BED first (bcftools query"),
        ("x.bed", "a VCF without its header", "give a BED file"),
        ("x.bed", "SAM or an interval list", "convert it to BED first (picard IntervalListToBed)"),
        ("x.gff", "FASTA", "give a BED, GFF3 or GTF file"),
        ("x.gff", "a BED", "give it the suffix .bed"),
        ("x.gff", "a VCF, which", "convert it to BED first (bcftools query"),
        ("x.features", "a GFF or GTF", "give it the suffix .gff3 or .gtf"),
        ("x.vcf", "FASTA", "give a VCF"),
        ("x.vcf", "a BED", "give a VCF"),
        ("x.vcf", "a VCF without its header", "put the lines ##fileformat=VCFv4.2"),
        ("x.fa", "a BED", "give FASTA"),
        ("x.fa", "a GFF or GTF", "give FASTA"),
        ("x.fa", "a VCF, which", "give FASTA"),
        ("x.fa", "a BED, which", "give FASTA"),
        ("x.fa", "FASTQ or SAM", "convert it to FASTA first (seqtk seq -A, samtools fasta)"),
        ("x.fa", "GenBank", "convert it to FASTA first"),
        ("x.fa", "a CRAM", "convert it to FASTA first (samtools fasta)"),
        ("x.fa", "a web page", "download the file again"),
        ("x.eval", "a web page or XML", "download the file again"),
        ("x.tsv", "FASTA", "give a table whose first line names its columns"),
        ("x.tsv", "a BED", "give a table whose first line names its columns"),
        ("x.tsv", "a GFF or GTF", "give a table whose first line names its columns"),
        ("x.eval", "a BED", "give a VCF or a table of variants"),
        ("x.names", "a VCF, which", "give a table of names of contigs"),
    ],
)
def test_a_file_of_another_format_is_named_with_the_way_out(
    name: str, other: str, way_out: str, tmp_path: Path
) -> None:
    readers = {name: read for name, (read, *_) in READERS.items()}
    readers |= {"x.features": read_features, "x.names": lambda path: [read_contig_names(path)]}
    path = tmp_path / name
    path.write_bytes(OTHERS[other])
    found = outcome(readers[name], path)
    assert found.startswith(f"{path}: is {other}"), found
    assert f"; {way_out}" in found


def test_an_interval_that_looks_like_a_record_of_a_vcf_is_read(tmp_path: Path) -> None:
    """Its name may be spelled in bases, or be a dot."""
    path = tmp_path / "x.bed"
    for name in ("CAT", "."):
        path.write_text(f"track name=x\n1\t5\t9\t{name}\t0\t+\t5\t9\t0\n")
        assert list(read_bed(path)) == [Interval("1", 5, 9)]


def test_a_wrong_line_after_others_is_not_taken_for_another_format(tmp_path: Path) -> None:
    path = tmp_path / "x.bed"
    path.write_text(f"1\t5\t9\n{OTHERS['a VCF without its header'].decode()}")
    assert "line 2: '1 5 .' is not a BED interval" in outcome(read_bed, path)


def test_a_header_that_is_not_valid_closes_the_file_at_once(tmp_path: Path) -> None:
    for read, content in (
        (read_vcf, b"##x\nchrom\n"),
        (read_table, b"chrom\tpos\tref\n"),
        (read_table, b"\n"),
    ):
        path = tmp_path / "x"
        path.write_bytes(content)
        with pytest.raises(UserError) as caught:
            read(path)
        assert caught
        assert not is_open(path)


PIECES = [
    *(b"##", b"#CHROM", b"##fileformat=VCFv4.2\n", b"chrom", b"pos", b"ref", b"alt", b">", b"*"),
    *(b"\t", b",", b"\n", b"\r\n", b"\r", b" ", b";", b"=", b'"', b"|", b"-", b"+", b".", b"_"),
    *(b"0", b"1", b"-1", b"9" * 20, b"9" * 5000, b"1e5", b"A", b"ACGTN", b"R", b"<DEL>", b"ID=a"),
    *(b"\0", b"\xff", b"\xef\xbb\xbf", b"\xc2\xa0", b"\x1c", b"\x1f\x8b", b"BZh9", b"PAR1", b"BCF"),
    *(b"track", b"EVO2_DELTA=1", b"##FASTA", HEADER, RECORD),
]  # fmt: skip


@settings(max_examples=100, derandomize=True)
@given(data=st.data())
@pytest.mark.parametrize("name", READERS)
def test_any_bytes_give_records_or_a_one_line_error(
    name: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    read, valid, _ = READERS[name]
    pieces = [*PIECES, valid, *valid.replace(b"\n", b"\n ").split(b" "), *valid.split(b"\t")]
    content = b"".join(data.draw(st.lists(st.sampled_from(pieces), max_size=12)))
    if data.draw(st.booleans()):
        content = valid + content
    path = tmp_path_factory.getbasetemp() / name
    path.write_bytes(content)
    for use in (read, lambda path: [is_table(path), is_variants(path)]):
        found = outcome(use, path)
        assert str(path) in found or not found
        assert "\n" not in found
        assert not is_open(path)


@settings(max_examples=60, derandomize=True)
@given(data=st.data())
def test_any_index_beside_a_genome_gives_its_bases(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Cells of a .fai may be anything; an index that does not fit the file is made again."""
    path = tmp_path_factory.getbasetemp() / "indexed.fa"
    path.write_bytes(b">a\nACGT\nAC\n>b\nGG\n")
    cells = b"a\t6\t3\t4\t5\tb\t2\t14\t2\t3".split(b"\t")
    other = st.sampled_from([b"0", b"-1", b"2", b"6", b"9" * 22, b"9" * 5000, b"a", b"", b"\xff"])
    for index in data.draw(st.lists(st.integers(0, 9), max_size=3)):
        cells[index] = data.draw(other)
    lines = [b"\t".join(cells[:5]), b"\t".join(cells[5:])]
    path.with_name("indexed.fa.fai").write_bytes(b"\n".join(lines) + b"\n")
    with Reference.open(path) as genome:
        assert genome.fetch(Interval("a", 0, 6)) == b"ACGTAC"
        assert genome.fetch(Interval("b", 0, 2)) == b"GG"


@pytest.mark.parametrize("name", ["x.vcf.gz", "x.fa.gz", "x.bed.gz", "x.tsv.gz"])
def test_a_bgzip_file_cut_between_two_blocks_is_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    read, valid, _ = READERS[name.removesuffix(".gz")]
    with BgzfWriter(path) as writer:
        writer.write(valid)
        writer.flush()
    whole = path.read_bytes()
    assert list(read(path))
    path.write_bytes(whole[:-28])
    opens = [read, read_lines, lambda path: [first_bytes(path)]]
    if name == "x.fa.gz":
        opens.append(Reference.open)
    for use in opens:
        with pytest.raises(UserError, match=r"bgzip file is missing; get the whole file"):
            list(use(path))
        assert not is_open(path)


def test_a_bcf_cut_between_two_blocks_is_refused(tmp_path: Path) -> None:
    text, path = tmp_path / "x.vcf", tmp_path / "x.bcf"
    text.write_bytes(HEADER.replace(b"#CHROM", b"##contig=<ID=1>\n#CHROM") + RECORD)
    pysam.bcftools.view("-o", str(path), "-O", "b", str(text), catch_stdout=False)
    path.write_bytes(path.read_bytes()[:-28])
    with pytest.raises(UserError, match="bgzip file is missing"):
        read_vcf(path)


def test_two_columns_of_a_parquet_with_one_name_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    columns = [pyarrow.array(values) for values in (["1"], [5], ["A"], ["C"], ["x"], ["y"])]
    names = ["chrom", "pos", "ref", "alt", "note", "note"]
    parquet.write_table(pyarrow.Table.from_arrays(columns, names=names), path)
    with pytest.raises(UserError, match=r"two columns have the same name: .*note, note"):
        list(read_table(path).records)


def test_a_parquet_cell_that_python_cannot_hold_is_a_one_line_error(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    when = pyarrow.array([2**62], pyarrow.timestamp("ns"))
    columns = {"chrom": ["1"], "pos": [5], "ref": ["A"], "alt": ["C"], "when": when}
    parquet.write_table(pyarrow.table(columns), path)
    assert outcome(lambda path: read_table(path).records, path).startswith(f"{path}: Parquet ")


@pytest.mark.parametrize("read", [read_annotated, lambda path: list(read_records(path))])
def test_every_reader_recognises_an_excel_workbook(
    read: Callable[[Path], Any], tmp_path: Path
) -> None:
    path = tmp_path / "x.xlsx"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("[Content_Types].xml", "<Types/>")
    with pytest.raises(UserError, match=r"x\.xlsx: is an Excel workbook; save its sheet as CSV"):
        read(path)
