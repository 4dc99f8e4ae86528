"""Records do not depend on line ends, compression or the blocks in which a file is read."""

import bz2
import gzip
from pathlib import Path

import pytest
from Bio import bgzf
from hypothesis import given
from hypothesis import strategies as st

from evo2cli.errors import UserError
from evo2cli.genome import source
from evo2cli.genome.fasta import Record, read_records, require_nucleotides


def records_of(path: Path) -> list[tuple[str, bytes]]:
    return [(record.name, record.sequence) for record in read_records(path)]


LAYOUTS = {
    "plain": b">a first one\nACGT\nacg\n>b\nNNRY\n",
    "crlf": b">a first one\r\nACGT\r\nacg\r\n>b\r\nNNRY\r\n",
    "old-mac": b">a first one\rACGT\racg\r>b\rNNRY\r",
    "no-final-newline": b">a first one\nACGT\nacg\n>b\nNNRY",
    "blank-lines": b"\n\n>a first one\n\nAC GT\n\tacg\n\n>b\n NNRY \n\n",
    "byte-order-mark": b"\xef\xbb\xbf>a first one\nACGTacg\n>b\nNNRY\n",
    "tab-in-header": b">a\tfirst one\nACGTacg\n>b\nNNRY\n",
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_do_not_matter(tmp_path: Path, layout: str) -> None:
    file = tmp_path / "in.fa"
    file.write_bytes(LAYOUTS[layout])
    assert list(read_records(file)) == [
        Record("a", "first one", b"ACGTacg"),
        Record("b", "", b"NNRY"),
    ]


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress], ids=["gzip", "bzip2"])
def test_compression_does_not_matter(tmp_path: Path, compress: object) -> None:
    file = tmp_path / "in.fa.z"
    file.write_bytes(compress(LAYOUTS["plain"]))  # type: ignore[operator]
    assert records_of(file) == [("a", b"ACGTacg"), ("b", b"NNRY")]


def test_bgzip_with_several_blocks(tmp_path: Path) -> None:
    bases = b"ACGTTGCA" * 40_000
    with bgzf.BgzfWriter(str(tmp_path / "in.fa.gz")) as file:
        file.write(b">a\n" + bases + b"\n")
    assert records_of(tmp_path / "in.fa.gz") == [("a", bases)]


def test_empty_and_nameless_records_stay(tmp_path: Path) -> None:
    file = tmp_path / "in.fa"
    file.write_bytes(b">\nAC\n>empty\n>last\nGT\n>end\n")
    assert records_of(file) == [("", b"AC"), ("empty", b""), ("last", b"GT"), ("end", b"")]


@given(
    records=st.lists(
        st.tuples(
            st.text("abc_", min_size=1, max_size=5),
            st.lists(st.text("ACGTacgtN", max_size=12), max_size=5),
            st.sampled_from(["", "|D__X;S__ORYZA SATIVA|", "|A__\n B|"]),
        ),
        min_size=1,
        max_size=5,
    ),
    block=st.integers(1, 40),
    end=st.sampled_from(["\n", "\r\n"]),
)
def test_where_a_block_ends_does_not_matter(
    tmp_path_factory: pytest.TempPathFactory,
    records: list[tuple[str, list[str], str]],
    block: int,
    end: str,
) -> None:
    """White space goes, line ends within a tag too, but the blanks of a tag stay."""
    text = "".join(
        f">{name}{end}" + tag.replace("\n", end) + "".join(line + end for line in lines or [""])
        for name, lines, tag in records
    )
    file = tmp_path_factory.mktemp("blocks") / "in.fa"
    file.write_bytes(text.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(source, "_BLOCK", block)
        expected = [
            (name, "".join([tag.replace("\n", ""), *lines]).encode())
            for name, lines, tag in records
        ]
        assert records_of(file) == expected


def test_every_stored_byte_is_counted(tmp_path: Path) -> None:
    file = tmp_path / "in.fa.gz"
    file.write_bytes(gzip.compress(b">a\n" + b"ACGT" * 100_000))
    counted: list[int] = []
    list(read_records(file, counted.append))
    assert sum(counted) == file.stat().st_size


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\n \n", "is empty"),
        (b"@read\nACGT\n+\nIIII\n", "is FASTQ"),
        (b"##fileformat=VCFv4.2\n", "is a VCF"),
        (b"LOCUS  X\n", "is GenBank"),
        (b"hello\n>a\nACGT\n", "starts with 'hello', not with '>'"),
        (b"\x7fELF\0\0", "binary"),
        (gzip.compress(b">a\nACGTACGT\n")[:-9], "damaged or cut off"),
        (b"\x1f\x8b\x08garbage", "damaged or cut off"),
    ],
    ids=["empty", "blank", "fastq", "vcf", "genbank", "text", "binary", "cut-gzip", "bad-gzip"],
)
def test_the_format_of_another_file_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "in.fa"
    file.write_bytes(content)
    with pytest.raises(UserError, match=message):
        list(read_records(file))


@pytest.mark.parametrize("name", ["missing.fa", "."])
def test_an_unreadable_file_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        list(read_records(tmp_path / name))


@pytest.mark.parametrize(
    ("sequence", "message"),
    [
        (b"acgXT", "'X' at position 4: not a nucleotide letter"),
        (b"MKXLE", "'X' at position 3: this looks like protein"),
        (b"AC-GT", "'-' at position 3: an alignment gap"),
        (b"AC*GT--A", "'[*]' at position 3: an alignment gap"),
        (b"ACGT*", "'[*]' at position 5: the stop of a protein"),
        (b"MKV*", "'[*]' at position 4: the stop of a protein"),
        (b"MEV*", "'E' at position 2: this looks like protein"),
        (b"|D__X;P__EY|ACGT", "'[|]' at position 1: part of a lineage tag; .*--tag"),
        (b"D__PLANTAE", "'_' at position 2: part of a lineage tag; .*--tag"),
        ("ACÅ".encode("latin-1"), "'Å' at position 3: not a nucleotide letter"),
    ],
)
def test_the_first_invalid_letter_is_named(sequence: bytes, message: str) -> None:
    with pytest.raises(UserError, match=f"in.fa: record 'a': {message}"):
        require_nucleotides("in.fa", Record("a", "", sequence))


def test_every_nucleotide_letter_is_accepted() -> None:
    require_nucleotides("in.fa", Record("a", "", b"ACGTURYSWKMBDHVNacgturyswkmbdhvn"))
