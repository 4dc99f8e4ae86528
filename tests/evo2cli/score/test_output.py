"""Outputs of `evo2 score` for variants, with made-up rows instead of a model."""

import gzip
import json
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pyarrow
import pysam
import pysam.bcftools
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from evo2cli.errors import TooManySkippedError, UserError
from evo2cli.genome.htslib import read_bcf
from evo2cli.genome.reference import Reference
from evo2cli.genome.source import read_lines
from evo2cli.genome.vcf import Status, VariantRecord, allele_status, read_vcf
from evo2cli.score.input import count_shard, read_variants
from evo2cli.score.options import VARIANT_LAYOUTS, Layout, ScoreOptions
from evo2cli.score.output import (
    FIELDS,
    WINDOW_COLUMNS,
    VariantWriter,
    open_variant_output,
    written_fields,
)
from evo2cli.score.report import Tally, report

HEADER = (
    b"##fileformat=VCFv4.2\n##contig=<ID=1,length=100>\n##contig=<ID=2,length=100>\n"
    b"#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"
)
SUFFIXES = [".vcf", ".vcf.gz", ".bcf", ".tsv", ".tsv.gz", ".jsonl", ".parquet"]


def made_up(record: VariantRecord) -> list[dict]:
    """A row per allele: its score is minus its length; symbolic alleles have only a status."""
    rows = []
    for alternate in record.alternates:
        status = allele_status(alternate)
        row = dict.fromkeys((*FIELDS, *WINDOW_COLUMNS))
        if status is Status.OK:
            row |= dict.fromkeys(list(FIELDS)[:-1], -float(len(alternate)))
            row |= dict.fromkeys(WINDOW_COLUMNS, 5)
        rows.append(row | {"EVO2_STATUS": status.value})
    return rows


def write(source: Path, output: Path, **options) -> Path:
    asked = ScoreOptions(inputs=(source,), output=output, **options)
    variants = read_variants(asked)
    layout = asked.layout(Layout.VCF, VARIANT_LAYOUTS)
    writer = VariantWriter(layout, list(FIELDS), variants.others)
    with open_variant_output(output, writer, variants.header, ["##evo2Version=0"]) as write_record:
        for record in variants.records:
            write_record(record, made_up(record))
    return output


def vcf_of(path: Path, *records: str) -> Path:
    columns = (record.split() for record in records)
    body = "".join(f"{c}\t{p}\t.\t{r}\t{a}\t.\t.\t.\n" for c, p, r, a in columns)
    path.write_bytes(HEADER + body.encode())
    return path


def readable(shared: Path) -> Iterator[Path]:
    zoo = shared / "data" / "zoo"
    for path in sorted([*(zoo / "vcf").iterdir(), *(zoo / "vcf_ref").glob("*.vcf")]):
        try:
            for _ in read_vcf(path).records:
                pass
        except UserError:
            continue
        yield path


def pysam_reads(path: Path) -> bool:
    verbosity = pysam.set_verbosity(0)
    try:
        with pysam.VariantFile(str(path)) as file:
            for _ in file:
                pass
    except (OSError, ValueError, NotImplementedError):
        return False
    finally:
        pysam.set_verbosity(verbosity)
    return True


@pytest.mark.parametrize("suffix", [s for s in SUFFIXES if s != ".bcf"])
def test_the_zoo_in_every_format_has_every_allele(shared, tmp_path, suffix):
    num_files = 0
    for source in readable(shared):
        output = write(source, tmp_path / f"{source.name}.out{suffix}")
        records = [record for record in read_vcf(source).records if record.alternates]
        if suffix.startswith(".vcf"):
            assert [b"EVO2_STATUS=" in line for line in lines_of(output)] == [True] * len(records)
            if pysam_reads(source):
                assert pysam_reads(output), source.name
        else:
            expected = [(r.contig, r.start + 1, a.decode()) for r in records for a in r.alternates]
            assert [(r["chrom"], int(r["pos"]), r["alt"]) for r in table(output)] == expected
        num_files += 1
    assert num_files >= 45


def test_the_zoo_as_bcf_is_written_if_htslib_can_read_it(shared, tmp_path):
    num_files = 0
    for source in readable(shared):
        output = tmp_path / f"{source.name}.out.bcf"
        text = write(source, tmp_path / f"{source.name}.out.vcf")
        if not pysam_reads(text):
            with pytest.raises(UserError, match=r"^[^\n]*htslib cannot[^\n]*$"):
                write(source, output)
            assert not output.exists()
            continue
        num_records = sum(1 for record in read_vcf(source).records if record.alternates)
        assert len(lines_of(write(source, output))) == num_records
        num_files += 1
    assert num_files >= 35


def lines_of(path: Path) -> list[bytes]:
    lines = read_bcf(path) if path.suffix == ".bcf" else read_lines(path)
    return [line for line in lines if b"\t" in line and not line.startswith(b"#")]


def table(path: Path) -> list[dict]:
    if path.suffix == ".parquet":
        return parquet.read_table(path).to_pylist()
    text = b"".join(read_lines(path)).decode()
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in text.splitlines()]
    header, *lines = text.splitlines()
    names = [name.lower() for name in header.removeprefix("#").split("\t")]
    return [dict(zip(names, line.split("\t"), strict=True)) for line in lines]


ALLELES = st.lists(
    st.sampled_from(["A", "C", "GT", "N", "*", "<DEL>", "A[1:5["]), min_size=1, max_size=4
)


@given(st.lists(st.tuples(st.sampled_from("12"), st.integers(1, 90), ALLELES), max_size=6))
def test_bcftools_norm_splits_our_fields_and_pysam_reads_them(tmp_path_factory, sites):
    folder = tmp_path_factory.mktemp("norm")
    records = [f"{c} {p} A {','.join(a)}" for c, p, a in sorted(sites)]
    for suffix in (".vcf", ".vcf.gz", ".bcf"):
        output = write(vcf_of(folder / "in.vcf", *records), folder / f"out{suffix}")
        with pysam.VariantFile(str(output)) as file:
            for record in file:
                rows = made_up(VariantRecord.from_columns("", 1, "A", ",".join(record.alts)))
                assert list(record.info["EVO2_STATUS"]) == [row["EVO2_STATUS"] for row in rows]
                assert list(record.info["EVO2_DELTA"]) == [row["EVO2_DELTA"] for row in rows]
        split = pysam.bcftools.norm("-m-", str(output))
        for line in split.splitlines():
            if line.startswith("#"):
                continue
            columns = line.split("\t")
            [row] = made_up(VariantRecord.from_columns("", 1, columns[3], columns[4]))
            told = dict(field.split("=") for field in columns[7].split(";") if "=" in field)
            assert told["EVO2_STATUS"] == row["EVO2_STATUS"]
            delta = row["EVO2_DELTA"]
            assert told.get("EVO2_DELTA", ".") == ("." if delta is None else f"{delta:g}") or (
                float(told["EVO2_DELTA"]) == delta
            )


@pytest.mark.parametrize(
    ("suffix", "index"), [(".vcf.gz", "tbi"), (".tsv.gz", "tbi"), (".bcf", "csi")]
)
def test_sorted_records_are_indexed_and_others_cause_a_warning(tmp_path, suffix, index, capsys):
    source = vcf_of(tmp_path / "in.vcf", "1 5 A C", "1 5 A G", "1 9 A C", "2 1 A C")
    output = write(source, tmp_path / f"out{suffix}")
    beside = tmp_path / f"out{suffix}.{index}"
    assert beside.exists()
    if suffix != ".bcf":
        with pysam.TabixFile(str(output)) as file:
            assert len(list(file.fetch("1", 4, 5))) == 2
    assert capsys.readouterr().err == ""
    for records, told in (
        (("1 9 A C", "1 5 A C"), "1:5 comes after 1:9"),
        (("1 5 A C", "2 5 A C", "1 6 A C"), "1 comes twice"),
    ):
        write(vcf_of(source, *records), output)
        assert not beside.exists()
        assert told in capsys.readouterr().err


def test_columns_of_a_table_are_passed_through_to_tables_and_variants_to_a_vcf(tmp_path):
    source = tmp_path / "in.csv"
    source.write_text('gene,alt,ref,pos,chrom,score\n"a,b",C,A,5,1,1e-9\n,"C,G",T,7,2,\n')
    for suffix in (".tsv", ".jsonl", ".parquet"):
        found = table(write(source, tmp_path / f"out{suffix}"))
        assert [row["gene"] for row in found] == ["a,b", "", ""]
        assert [row["score"] for row in found] == ["1e-9", "", ""]
        assert [row["alt"] for row in found] == ["C", "C", "G"]
    for suffix in (".vcf", ".bcf"):
        with pysam.VariantFile(str(write(source, tmp_path / f"out{suffix}"))) as file:
            assert [(r.chrom, r.pos, r.alts) for r in file] == [
                ("1", 5, ("C",)),
                ("2", 7, ("C", "G")),
            ]


def test_parquet_keeps_the_types_of_columns(tmp_path):
    source = tmp_path / "in.parquet"
    columns = {"chrom": ["1", "1"], "pos": [5, 6], "ref": ["A", "A"], "alt": ["C", "C"]}
    others = {"count": [1, None], "share": [0.5, float("nan")], "flag": [True, False]}
    parquet.write_table(pyarrow.table({**columns, **others}), source)
    found = parquet.read_table(write(source, tmp_path / "out.parquet"))
    assert found.column("count").to_pylist() == [1, None]
    assert found.column("share").to_pylist() == [0.5, None]
    assert found.column("flag").to_pylist() == ["True", "False"]
    assert str(found.schema.field("EVO2_DELTA").type) == "double"
    assert str(found.schema.field("window_start").type) == "int64"


def test_json_lines_keep_their_columns(tmp_path):
    source = tmp_path / "in.jsonl"
    keys = {"chrom": "1", "ref": "A", "alt": "C"}
    others = [{"pos": 5, "share": 0.5, "gene": "x"}, {"pos": 6, "share": 1, "gene": None}]
    rows = [{**keys, **other} for other in others]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [row["share"] for row in table(write(source, tmp_path / "o.jsonl"))] == [0.5, 1]
    found = parquet.read_table(write(source, tmp_path / "o.parquet"))
    assert found.column("share").to_pylist() == ["0.5", "1"]  # JSON says no type of a column
    assert found.column("gene").to_pylist() == ["x", None]


def test_a_scored_table_is_refused(tmp_path):
    first = write(vcf_of(tmp_path / "in.vcf", "1 5 A C"), tmp_path / "out.tsv")
    with pytest.raises(UserError, match="EVO2_DELTA"):
        write(first, tmp_path / "again.tsv")


@pytest.mark.parametrize(
    ("score", "strand", "expected"),
    [
        ("delta", None, ["DELTA", "FWD", "RC"]),
        ("delta", "rc", ["DELTA"]),
        ("ref", None, ["REF"]),
        ("alt", "both", ["ALT"]),
        ("all", "fwd", ["DELTA", "REF", "ALT"]),
        ("all", None, ["DELTA", "REF", "ALT", "FWD", "RC"]),
    ],
)
def test_the_requested_fields_are_written(tmp_path, score, strand, expected):
    source = vcf_of(tmp_path / "in.vcf", "1 5 A C,*")
    in_vcf = [f"EVO2_{name}" for name in [*expected, "STATUS"]]
    names = [*in_vcf, "EVO2_NONACGT"]
    options = ScoreOptions(inputs=(source,), score=score, strand=strand)
    writer = VariantWriter(Layout.TSV, written_fields(options))
    assert list(writer.columns)[5:] == [*names, *WINDOW_COLUMNS]
    [record] = read_vcf(source).records
    assert [list(row)[5:] for row in writer.rows(record, made_up(record))] == 2 * [
        [*names, *WINDOW_COLUMNS]
    ]
    writer = VariantWriter(Layout.VCF, written_fields(options))
    info = writer.lines(record, made_up(record)).decode().split("\t")[7].strip()
    assert [field.partition("=")[0] for field in info.split(";")] == in_vcf
    declared = writer.header(read_vcf(source).header, []).decode()
    assert declared.count("##INFO=<ID=EVO2_") == len(names)


def test_options_about_deltas_need_deltas(tmp_path):
    source = vcf_of(tmp_path / "in.vcf", "1 5 A C")
    for words in ({"precision_check": 3}, {"background": tmp_path / "x"}):
        assert ScoreOptions(inputs=(source,), score="all", **words)
        with pytest.raises(UserError, match="needs EVO2_DELTA, which --score ref does not write"):
            ScoreOptions(inputs=(source,), score="ref", **words)


def test_an_output_that_fails_leaves_nothing_behind(tmp_path):
    source = vcf_of(tmp_path / "in.vcf", "1 5 A C")
    with source.open("a") as file:
        file.write("1\tfive\t.\tA\tC\t.\t.\t.\n")
    for suffix in SUFFIXES:
        with pytest.raises(UserError, match="line 6"):
            write(source, tmp_path / f"out{suffix}")
        assert list(tmp_path.iterdir()) == [source]


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".vcf", ".bcf", ".parquet"])
def test_memory_does_not_grow_with_the_file(tmp_path, suffix):
    def peak(num_records: int) -> int:
        source = tmp_path / f"{num_records}.vcf"
        with source.open("wb") as file:
            file.write(HEADER)
            for i in range(num_records):
                file.write(b"1\t%d\trs%d\tA\tC,G\t50\tPASS\tDP=%d\n" % (i + 1, i, i))
        tracemalloc.start()
        options = {"regions": ("1",), "pass_only": True, "min_qual": 50.0}
        asked = ScoreOptions(inputs=(source,), **options)
        count_shard(asked, partial(read_variants, asked))
        write(source, tmp_path / f"out{suffix}", **options)
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    peak(100)  # loads what is loaded once
    few, many = peak(2_000), peak(12_000)
    # 10,000 records more, of which each would take 100 bytes at least; the bar of a longer run
    # takes some thousands, too.
    assert many < few + 500_000


def test_the_report_counts_every_status(tmp_path, capsys):
    options = ScoreOptions(inputs=(tmp_path / "in.vcf",), max_skipped=0.25)
    tally = Tally(Reference.from_sequences({}))
    tally.counts = Counter({"OK": 6, "EDGE&NONACGT": 2, "STAR": 2})
    report(options, tally)
    told = capsys.readouterr()
    assert told.out == ""
    lines = [line.split() for line in told.err.splitlines() if "%" in line]
    assert told.err.startswith("evo2: 8 of 10 alleles scored\n")
    assert [line[:3] for line in lines] == [
        ["OK", "6", "60.0"],
        ["EDGE&NONACGT", "2", "20.0"],
        ["STAR", "2", "20.0"],
    ]
    for alternates in ("AC", "AA"):
        tally.indels.count(VariantRecord.from_columns("c", 5, "A", alternates))
    tally.counts = Counter({"OK": 2})
    report(options, tally)
    told = capsys.readouterr().err
    assert "1 of 2 insertions and deletions are not trimmed and left-aligned" in told
    assert "bcftools norm" in told
    tally.counts = Counter({"OK": 7, "STAR": 3})
    with pytest.raises(TooManySkippedError) as caught:
        report(options, tally)
    assert caught.value.exit_code == 3


def test_a_blank_line_is_skipped_in_bcf(tmp_path):
    source = vcf_of(tmp_path / "in.vcf", "1 5 A C")
    source.write_text(source.read_text() + "\n")
    assert len(lines_of(write(source, tmp_path / "out.bcf"))) == 1
    assert write(source, tmp_path / "out.vcf").read_bytes().endswith(b"OK\n\n")


def test_gzip_text_is_what_plain_text_is(tmp_path):
    source = vcf_of(tmp_path / "in.vcf", "1 5 A C,*", "2 9 A G")
    for suffix in (".vcf", ".tsv", ".jsonl"):
        plain, packed = (write(source, tmp_path / f"out{suffix}{gz}") for gz in ("", ".gz"))
        assert gzip.decompress(packed.read_bytes()) == plain.read_bytes()
