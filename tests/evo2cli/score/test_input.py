"""Variants from every kind of input, and the filters."""

from dataclasses import replace
from functools import partial

import pytest

from evo2cli.errors import UserError
from evo2cli.genome.htslib import write_bcf
from evo2cli.genome.reference import Reference
from evo2cli.genome.vcf import Header
from evo2cli.score.input import (
    check_contigs,
    check_regions,
    count_shard,
    holds_variants,
    read_variants,
)
from evo2cli.score.options import ScoreOptions
from evo2cli.score.run import score

VCF = """##fileformat=VCFv4.2
##contig=<ID=chr1>
##FILTER=<ID=q10,Description="x">
#CHROM	POS	ID	REF	ALT	QUAL	FILTER	INFO
chr1	5	a	A	C	50	PASS	.
chr1	9	b	ACG	A	9.5	q10	.
chr1	20	c	A	<DEL>	.	.	.

chrM	5	d	A	C	1e3	PASS	.
"""


@pytest.fixture
def vcf(tmp_path) -> ScoreOptions:
    path = tmp_path / "some.vcf"
    path.write_text(VCF)
    return ScoreOptions(inputs=(path,))


def selected(options: ScoreOptions) -> str:
    return "".join(record.identifier for record in read_variants(options).records)


def count(options: ScoreOptions) -> int | None:
    shard = count_shard(options, partial(read_variants, options))
    return None if shard is None else len(shard)


@pytest.mark.parametrize(
    ("filters", "left"),
    [
        ({}, "abcd"),
        ({"regions": ("chr1",)}, "abc"),
        ({"regions": ("1:5-5", "MT")}, "ad"),
        ({"regions": ("1:11-11",)}, "b"),
        ({"regions": ("1:12-19",)}, ""),
        ({"min_qual": 9.5}, "abd"),
        ({"pass_only": True}, "ad"),
        ({"limit": 2}, "ab"),
        ({"limit": 1, "pass_only": True, "regions": ("chrM",)}, "d"),
    ],
)
def test_filters_select_the_records_that_bcftools_would(vcf, filters, left):
    assert selected(replace(vcf, **filters)) == left
    binary = vcf.source.with_suffix(".bcf")
    vcf.source.write_text(VCF.replace("\n\n", "\n"))
    write_bcf(vcf.source, binary)
    assert selected(replace(vcf, inputs=(binary,), **filters)) == left


def test_a_bed_selects_by_its_intervals_and_regions_are_a_second_filter(vcf, tmp_path):
    bed = tmp_path / "some.bed"
    bed.write_text("1\t4\t5\nchr1\t19\t20\n")
    assert selected(replace(vcf, bed=bed)) == "ac"
    assert selected(replace(vcf, bed=bed, regions=("chr1:1-10",))) == "a"


def test_the_number_of_selected_records_is_printed_and_none_is_a_warning(vcf, capsys):
    assert count(replace(vcf, pass_only=True)) == 2
    assert "2 records are chosen by --pass-only" in capsys.readouterr().err
    assert count(replace(vcf, regions=("chr7",))) == 0
    assert "warning: 0 records" in capsys.readouterr().err
    assert count(replace(vcf, inputs=("-",))) is None


def test_a_quality_that_is_not_a_number_is_refused(vcf):
    vcf.source.write_text(VCF.replace("9.5", "high"))
    with pytest.raises(UserError, match="chr1:9 ACG>A: its QUAL"):
        selected(replace(vcf, min_qual=1.0))


def test_a_table_has_no_quality(vcf, tmp_path):
    table = tmp_path / "some.tsv"
    table.write_text("chrom\tpos\tref\talt\nchr1\t5\tA\tC\n")
    with pytest.raises(UserError, match="--pass-only is for VCF"):
        read_variants(replace(vcf, inputs=(table,), pass_only=True))
    assert len(list(read_variants(replace(vcf, inputs=(table,), regions=("1",))).records)) == 1


def test_arguments_are_variants_unless_they_name_a_file(vcf, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ScoreOptions(inputs=("chr1-5-A-C", "chr1:9:G>T"))
    assert holds_variants(words.inputs)
    assert [str(r) for r in read_variants(words).records] == ["chr1:5 A>C", "chr1:9 G>T"]
    assert not read_variants(words).is_vcf
    with pytest.raises(UserError, match="only one file can be scored at a time"):
        holds_variants((*vcf.inputs, "chr1:9:G>T"))
    with pytest.raises(UserError, match="neither a file nor a variant"):
        list(read_variants(replace(words, inputs=("chr1-5-A-C", "none.vcf"))).records)
    with pytest.raises(UserError, match="cannot be read"):
        holds_variants(("none.vcf",))


def test_filters_are_not_for_sequences(tmp_path):
    source = tmp_path / "some.fa"
    source.write_text(">a\nACGT\n")
    with pytest.raises(UserError, match="--limit: only for variants"):
        score(ScoreOptions(inputs=(source,), limit=5))


def test_different_lengths_cause_one_warning(tmp_path, capsys):
    (tmp_path / "g.fa").write_text(">1\nACGT\n>2\nACGT\n")
    header = Header(
        (
            b"##contig=<ID=chr1,length=249250621>\n",
            b"##contig=<length=4,ID=2>\n",
            b"##contig=<ID=x>\n",
        )
    )
    with Reference.open(tmp_path / "g.fa") as genome:
        check_contigs(header, genome)
    assert capsys.readouterr().err.splitlines()[-1] == (
        "evo2: warning: contig 1 has 249,250,621 bases in the VCF, but 4 in the reference: "
        "the VCF looks like GRCh37 (hg19)"
    )


def test_regions_of_missing_contigs_are_refused(tmp_path):
    (tmp_path / "g.fa").write_text(">1\nACGT\n>A*01:01\nACGT\n>MT\nACGT\n")
    bed = tmp_path / "g.bed"
    bed.write_text("chr7\t0\t2\nchr1\t0\t2\n")
    asked = partial(ScoreOptions, inputs=("x.vcf",))
    with Reference.open(tmp_path / "g.fa") as genome:
        check_regions(asked(regions=("chr1:1-2", "1", "A*01:01", "chrM:3")), genome)
        told = r"--regions chr7:1-2: the genome has no contig chr7; it has 1, A\*01:01, MT"
        with pytest.raises(UserError, match=told):
            check_regions(asked(regions=("1", "chr7:1-2")), genome)
        check_regions(asked(bed=bed), genome)
        bed.write_text("chr7\t0\t2\nchr8\t0\t2\n")
        with pytest.raises(
            UserError, match=r"--bed .*g\.bed: the genome has no contig chr7; it has"
        ):
            check_regions(asked(bed=bed), genome)
        bed.write_text("")
        check_regions(asked(bed=bed), genome)
