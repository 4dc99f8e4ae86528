"""Features of BED, GFF3 and GTF: their intervals and names."""

import gzip
from pathlib import Path

import pytest

from evo2cli.errors import UserError
from evo2cli.genome.features import Feature, read_features, read_gff_lines


def line(contig: str, kind: str, start: int, end: int, attributes: str) -> str:
    return f"{contig}\tsource\t{kind}\t{start}\t{end}\t.\t-\t.\t{attributes}\n"


def test_lines_of_a_gff3_that_share_an_id_are_one_feature(tmp_path: Path) -> None:
    path = tmp_path / "x.gff3.gz"
    text = "##gff-version 3\n\n# remark\n" + "".join(
        [
            line("chr1", "CDS", 31, 40, "ID=cds%3B1;Parent=rna1"),
            line("chr1", "gene", 11, 40, "Name=second;ID=gene1"),
            line("chr1", "CDS", 11, 20, "ID=cds%3B1;Parent=rna1"),
            line("chr1", "CDS", 20, 24, "ID=cds%3B1;Parent=rna1"),  # a frameshift: 20 is read twice
            line("chr2", "CDS", 1, 1, "ID=cds%3B1"),
            line("chr1", "exon", 1, 5, "Parent=rna1"),
            line("chr1", "exon", 1, 5, "Parent=rna1"),
        ]
    )
    path.write_bytes(gzip.compress(f"{text}##FASTA\n>chr1\nACGT\n".encode()))
    coding = Feature("cds;1", "chr1", ((10, 24), (30, 40)), "CDS", "-")
    assert (coding.start, coding.end) == (10, 40)
    exon = Feature("chr1:0-5", "chr1", ((0, 5),), "exon", "-")
    gene = Feature("gene1", "chr1", ((10, 40),), "gene", "-")
    other = Feature("cds;1", "chr2", ((0, 1),), "CDS", "-")
    assert read_features(path) == [coding, gene, other, exon, exon]
    assert read_features(path, "gene") == [gene]
    with pytest.raises(UserError, match="has no feature of type tRNA"):
        read_features(path, "tRNA")


def test_a_quoted_value_of_a_gtf_may_hold_separators(tmp_path: Path) -> None:
    """NCBI writes notes such as this one; a GFF3 escapes semicolons, but may have single quotes."""
    attributes = 'note "spliced; gene_id B; ID = C"; gene_id "A"; level 2;'
    gtf, gff3 = tmp_path / "x.gtf", tmp_path / "x.gff3"
    gtf.write_text(line("1", "exon", 1, 9, attributes))
    assert [(f.name, f.spans) for f in read_features(gtf)] == [("A", ((0, 9),))]
    assert [each.attributes for each in read_gff_lines(gtf)] == [
        {"note": "spliced; gene_id B; ID = C", "gene_id": "A", "level": "2"}
    ]
    gff3.write_text(line("1", "exon", 1, 9, 'Note=5" end%3B x;ID=A;flag;'))
    assert [each.attributes for each in read_gff_lines(gff3)] == [
        {"Note": '5" end; x', "ID": "A", "flag": ""}
    ]


def test_every_line_of_a_gtf_and_of_a_bed_is_a_feature(tmp_path: Path) -> None:
    path = tmp_path / "x.gtf"
    transcript = 'gene_id "G=1"; transcript_id "T 1"; exon_number "1";'
    path.write_text(
        line("1", "gene", 1, 90, 'gene_id "G=1";')
        + line("1", "CDS", 1, 10, transcript)
        + line("1", "CDS", 21, 30, transcript)
    )
    assert [(f.name, f.spans) for f in read_features(path)] == [
        ("G=1", ((0, 90),)),
        ("T 1", ((0, 10),)),
        ("T 1", ((20, 30),)),
    ]
    bed = tmp_path / "x.bed"
    bed.write_text("track name=all of it\tx\n1\t0\t9\tsome name\t0\t+\n1 3 4\n1\t3\t4\t.\n")
    assert [(f.name, f.spans, f.strand) for f in read_features(bed)] == [
        ("some name", ((0, 9),), "+"),
        ("1:3-4", ((3, 4),), "."),
        ("1:3-4", ((3, 4),), "."),
    ]
