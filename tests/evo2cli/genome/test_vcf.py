"""VCF records pass through byte for byte."""

import bz2
import gzip
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evo2cli.errors import UserError
from evo2cli.genome.contig_names import DEFAULT_NAMES
from evo2cli.genome.vcf import Status, VariantRecord, allele_status, read_vcf

HEADER = b"##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"
OURS = "EVO2_DELTA=-1.5,.;EVO2_STATUS=OK,STAR"
# Files that must be refused with a one-line error; all others must pass through.
REFUSED = [
    "cyvcf2_empty.vcf",
    "htsjdk_VcfThatLacksAnIndex.bcf",
    "htsjdk_vcfexample.vcf.truncated.gz",
    "htsjdk_vcfexample.vcf.truncated.hdr.gz",
    "wild_issue-16.vcf",
    "wild_metadata-whitespace.vcf",
]


def annotated(path: Path) -> bytes:
    vcf = read_vcf(path)
    added = ["##evo2Version=0", '##INFO=<ID=EVO2_DELTA,Number=A,Type=Float,Description="x">']
    body = [r.with_info(OURS) if r.alternates else r.line for r in vcf.records]
    return vcf.header.with_lines(added) + b"".join(body)


def stripped(text: bytes) -> bytes:
    """Remove what we added, and nothing else."""
    lines = []
    for line in text.splitlines(keepends=True):
        if line.startswith((b"##evo2", b"##INFO=<ID=EVO2_")):
            continue
        if not line.startswith(b"#") and b"\t" in line:
            end = line[len(line.rstrip(b"\r\n")) :]
            columns = line.rstrip(b"\r\n").split(b"\t")
            kept = [f for f in columns[7].split(b";") if not f.startswith(b"EVO2_")]
            columns[7] = b";".join(kept) if kept else b"."
            line = b"\t".join(columns) + end
        lines.append(line)
    return b"".join(lines)


def plain(path: Path) -> bytes:
    data = path.read_bytes()
    if data.startswith(b"\x1f\x8b"):
        return gzip.decompress(data)
    return bz2.decompress(data) if data.startswith(b"BZh") else data


def zoo_files(shared: Path) -> list[Path]:
    zoo = shared / "data" / "zoo"
    files = [*(zoo / "vcf").iterdir(), *(zoo / "vcf_ref").glob("*.vcf")]
    assert len(files) > 40
    return sorted(files)


def test_every_file_of_the_zoo_passes_through_byte_for_byte(shared):
    for path in zoo_files(shared):
        if path.name not in REFUSED and path.suffix != ".bcf":
            assert stripped(annotated(path)) == plain(path), path.name


def test_incomplete_files_of_the_zoo_are_refused_in_one_line(shared):
    for name in REFUSED:
        with pytest.raises(UserError, match=rf"^[^\n]*{name}: [^\n]+$"):
            annotated(shared / "data" / "zoo" / "vcf" / name)


@given(
    info=st.sampled_from([b".", b"DP=5", b"DP=5;DB", b"AF=0.1000;END=9", b"X=a=b;;Y", b"DB;"]),
    end=st.sampled_from([b"\n", b"\r\n", b""]),
    samples=st.sampled_from([b"", b"\tGT\t0/1", b"\tGT:X\t0|1:EVO2_X\t./.", b"\tGT\t\xe9 \xff"]),
)
def test_only_info_changes(info, end, samples):
    line = b"1\t7\trs1\tA\tC,*\t1e-3\tq10\t" + info + samples + end
    record = VariantRecord(line, "1", 6, "rs1", b"A", (b"C", b"*"))
    changed = record.with_info(OURS)
    assert stripped(changed) == line
    before, after = line.split(b"\t"), changed.split(b"\t")
    assert before[:7] == after[:7]
    assert len(before) == len(after)
    assert OURS.encode() in after[7]


@pytest.mark.parametrize("pack", [bytes, gzip.compress, bz2.compress], ids=["plain", "gz", "bz2"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"], ids=["lf", "crlf"])
def test_compression_and_line_ends_do_not_change_the_records(tmp_path, pack, end):
    text = (HEADER + b"chr1\t10\trs1\tac\tg,<DEL>\t.\t.\tDB").replace(b"\n", end)
    path = tmp_path / "some.vcf"
    path.write_bytes(pack(text))
    vcf = read_vcf(path)
    [record] = vcf.records
    assert (record.contig, record.start, record.identifier) == ("chr1", 9, "rs1")
    assert (record.reference, record.alternates) == (b"ac", (b"g", b"<DEL>"))
    assert vcf.header.value("fileformat") == "VCFv4.2"
    assert vcf.header.value("reference") is None
    assert stripped(annotated(path)) == text
    assert annotated(path).count(b"\r") == text.count(b"\r") + (2 if end == b"\r\n" else 0)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"1 5 . A C . . .\n", "line 3: 1 column separated by tabs"),
        (b"1\tfive\t.\tA\tC\t.\t.\t.\n", "line 3: POS 'five'"),
        (b"1\t-5\t.\tA\tC\t.\t.\t.\n", "line 3: POS '-5'"),
        (b"1\t5\t.\tA\tC\t.\t.\t.\n1\t5\n", "line 4: 2 columns"),
        (b"1\t5\t.\tA\tC\t.\t.\tDB;EVO2_DELTA=1\n", "line 3: has EVO2_"),
    ],
)
def test_a_bad_line_is_named_by_file_and_number(tmp_path, body, message):
    path = tmp_path / "bad.vcf"
    path.write_bytes(HEADER + body)
    with pytest.raises(UserError) as caught:
        list(read_vcf(path).records)
    assert str(caught.value).startswith(f"{path}: {message}")


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"##fileformat=VCFv4.2\n",
        b"##fileformat=VCFv4.2\n1\t5\t.\tA\tC\t.\t.\t.\n",
        b"##fileformat=VCFv4.2\n#CHROM\tPOS\n",
        b"##INFO=<ID=EVO2_DELTA,Number=A,Type=Float>\n" + HEADER,
        gzip.compress(HEADER)[:-12],
    ],
    ids=["nothing", "no #CHROM", "no #CHROM but a record", "columns", "scored", "cut off"],
)
def test_an_incomplete_header_is_refused(tmp_path, text):
    path = tmp_path / "bad.vcf"
    path.write_bytes(text)
    with pytest.raises(UserError, match=r"bad\.vcf: .+"):
        read_vcf(path)


def test_a_byte_order_mark_and_blank_lines_pass_through(tmp_path):
    text = b"\xef\xbb\xbf" + HEADER + b"1\t5\t.\tA\tC\t.\t.\t.\n\n"
    path = tmp_path / "bom.vcf"
    path.write_bytes(text)
    assert stripped(annotated(path)) == text


@pytest.mark.parametrize(
    ("allele", "status"),
    [
        (b"A", Status.OK),
        (b"acgtuU", Status.OK),
        (b"acgtNry", Status.AMBIGUOUS_ALLELE),
        (b"N", Status.AMBIGUOUS_ALLELE),
        (b".", Status.NO_ALT),
        (b"*", Status.STAR),
        (b"<DEL>", Status.SYMBOLIC),
        (b"<*>", Status.SYMBOLIC),
        (b"G]17:198982]", Status.BREAKEND),
        (b"[chr2:5[T", Status.BREAKEND),
        (b".TGCA", Status.BREAKEND),
        (b"G.", Status.BREAKEND),
        (b"", Status.INVALID_ALLELE),
        (b"A-C", Status.INVALID_ALLELE),
        (b"A1", Status.INVALID_ALLELE),
        (b"<DEL", Status.INVALID_ALLELE),
        (b"\xff", Status.INVALID_ALLELE),
    ],
)
def test_the_status_of_an_alternate(allele, status):
    assert allele_status(allele) is status


@pytest.mark.parametrize(
    ("name", "known", "found"),
    [
        ("chr1", ["1"], "1"),
        ("1", ["chr1"], "chr1"),
        ("1", ["1", "chr1"], "1"),
        ("chrM", ["MT"], "MT"),
        ("MT", ["chrM"], "chrM"),
        ("chr1", ["chr11"], None),
    ],
)
def test_contigs_are_found_by_the_names_of_different_builds(name, known, found):
    assert DEFAULT_NAMES.find(name, known) == found
