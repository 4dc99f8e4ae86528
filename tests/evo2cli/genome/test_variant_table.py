"""Variants from tables."""

import bz2
import csv
import gzip
import io
import json
import sys
from pathlib import Path

import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from evo2cli.errors import UserError
from evo2cli.genome.parquet import open_parquet
from evo2cli.genome.variant_table import is_table, read_table

ROWS = [("chr1", 10, "rs1", "A", "C,GT", "x y", 0.5), ("2", 7, "", "ac", "<DEL>", "", 1e-9)]
NAMES = ["Chrom", "POS", "Id", "ref", "ALT", "gene", "score"]


def write(path, names=NAMES, rows=ROWS, delimiter="\t", start=""):
    text = io.StringIO()
    writer = csv.writer(text, delimiter=delimiter, lineterminator="\n")
    writer.writerows([names, *rows])
    path.write_text(start + text.getvalue())
    return path


@pytest.mark.parametrize("kind", ["tsv", "csv", "#tsv", "gz", "bz2", "parquet", "jsonl"])
def test_all_formats_of_tables_give_the_same_records(tmp_path, kind):
    path = tmp_path / "table"
    if kind == "parquet":
        columns = dict(zip(NAMES, map(list, zip(*ROWS, strict=True)), strict=True))
        parquet.write_table(pyarrow.table(columns), path)
    elif kind == "jsonl":
        long = [{**dict(zip(NAMES, row, strict=True)), "long": "x" * 9_000} for row in ROWS]
        path.write_text("".join(json.dumps(row) + "\n" for row in long))
    else:
        delimiter, start = "," if kind == "csv" else "\t", "## made by hand\n#" * (kind == "#tsv")
        write(path, delimiter=delimiter, start=start)
    if kind in ("gz", "bz2"):
        path.write_bytes((gzip if kind == "gz" else bz2).compress(path.read_bytes()))
    assert is_table(path)
    table = read_table(path)
    first, second = table.records
    assert (str(first), str(second)) == ("chr1:10 A>C,GT", "2:7 ac><DEL>")
    assert (first.identifier, second.identifier) == ("rs1", ".")
    assert first.line == b"chr1\t10\trs1\tA\tC,GT\t.\t.\t.\n"
    assert list(table.others)[:2] == ["gene", "score"]
    cells = [tuple(map(str, record.others[:2])) for record in (first, second)]
    assert cells == [("x y", "0.5"), ("", "1e-09")]


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["1", "chrX"]),
            st.integers(1, 10**9),
            st.text("ACGTN", min_size=1, max_size=4),
            st.text("ACGTN", min_size=1, max_size=4),
            st.text(st.characters(blacklist_categories=["Cc", "Cs"]), max_size=6),
        ),
        min_size=1,
        max_size=5,
    ),
    st.permutations(range(5)),
)
def test_columns_may_be_in_any_order_and_others_are_passed_through(tmp_path_factory, rows, order):
    names = ["chrom", "pos", "ref", "alt", "note"]
    path = write(
        tmp_path_factory.mktemp("t") / "some.csv",
        [names[i] for i in order],
        [[row[i] for i in order] for row in rows],
        delimiter=",",
    )
    for record, row in zip(read_table(path).records, rows, strict=True):
        assert (record.contig, record.start + 1) == row[:2]
        assert (record.reference.decode(), record.alternates[0].decode()) == row[2:4]
        assert record.others == (row[4],)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (("1", "x", "A", "C"), "line 3: pos 'x' is not a 1-based"),
        (("1", "0", "A", "C"), "line 3: pos '0' is not a 1-based"),
        (("1", "1.0", "A", "C"), "line 3: pos '1.0'"),
        (("1", "5", "A"), "line 3: 3 columns, but the first line names 4"),
        (("1", "5", "", "C"), "line 3: ref is empty"),
        (("", "5", "A", "C"), "line 3: chrom is empty"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(tmp_path, row, message):
    good = ("1", "5", "A", "C")
    path = write(tmp_path / "bad.tsv", ["chrom", "pos", "ref", "alt"], [good, row])
    with pytest.raises(UserError) as caught:
        list(read_table(path).records)
    assert str(caught.value).startswith(f"{path}: {message}")
    handles = Path("/proc/self/fd")  # while the error, and with it the reader, is still alive
    assert not any(link.resolve() == path for link in handles.glob("*"))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["chrom", "pos", "ref"], "no column 'alt'; its columns: chrom, pos, ref"),
        (["chrom", "pos", "ref", "alt", "ALT"], "more than one column 'alt'"),
        (["chrom", "pos", "ref", "alt", "x", "x"], "two columns have the same name"),
    ],
)
def test_missing_and_repeated_columns_are_refused(tmp_path, names, message):
    with pytest.raises(UserError, match=message):
        read_table(write(tmp_path / "bad.tsv", names, []))


@pytest.mark.parametrize(
    "text",
    [
        b">chrom\nACGT\n",
        b"##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\n",
        b"#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n",
        b"chr1\t5\tA\tC\n",
        b'{"evo2": ["##evo2Shard=1/2"]}\n{"chrom": "1", "pos": 1, "ref": "A", "alt": "C"}\n',
        b"\n",
    ],
    ids=["fasta", "vcf", "bare vcf", "no names", "shard", "blank"],
)
def test_other_files_are_not_tables(tmp_path, text):
    path = tmp_path / "other"
    path.write_bytes(text)
    assert not is_table(path)


def test_parquet_without_pyarrow_says_how_to_get_it(tmp_path, monkeypatch):
    path = tmp_path / "t.parquet"
    parquet.write_table(
        pyarrow.table({"chrom": ["1"], "pos": [1], "ref": ["A"], "alt": ["C"]}), path
    )
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"evo2cli\[parquet\]"):
        read_table(path)
    with pytest.raises(UserError, match=r"evo2cli\[parquet\]"), open_parquet(path, {}):
        pass


def test_a_cut_parquet_is_refused_in_one_line(tmp_path):
    path = tmp_path / "t.parquet"
    parquet.write_table(
        pyarrow.table({"chrom": ["1"], "pos": [1], "ref": ["A"], "alt": ["C"]}), path
    )
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(UserError, match=r"^[^\n]*t\.parquet: Parquet [^\n]+$"):
        read_table(path)
