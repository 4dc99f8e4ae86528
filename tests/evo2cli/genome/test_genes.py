"""Genes of GFF3 and GTF: all dialects give the same genes, and a search finds all of them."""

import random
from pathlib import Path

import pytest
from Bio.Seq import Seq

from evo2cli.errors import UserError
from evo2cli.genome.genes import Gene, Genes, read_genes
from evo2cli.genome.interval import Interval
from evo2cli.genome.reference import Reference

EXAMPLES = Path(__file__).parents[3] / "examples"

WANTED = Gene("ABC1", "chr1", "-", ((99, 500),), ((99, 200), (299, 500)), ((149, 200), (299, 400)))
GFF3 = [
    ("exon", 100, 200, "Parent=t1"),  # children may come before their parents
    ("gene", 100, 500, "ID=g1;Name=ABC1;biotype=protein_coding"),
    ("mRNA", 100, 500, "ID=t1;Parent=g1;Name=ABC1-201"),
    ("mRNA", 100, 500, "ID=t2;Parent=g1;Name=ABC1-202"),
    ("exon", 300, 500, "Parent=t1,t2"),
    ("exon", 150, 200, "Parent=t2"),
    ("CDS", 150, 200, "ID=p1;Parent=t1;Name=NP_1"),
    ("CDS", 300, 400, "ID=p1;Parent=t1;Name=NP_1"),
    ("five_prime_UTR", 401, 500, "Parent=t1"),
]
GTF = [
    ("gene", 100, 500, 'gene_id "g1"; gene_name "ABC1";'),
    ("transcript", 100, 500, 'gene_id "g1"; transcript_id "t1"; gene_name "ABC1";'),
    ("exon", 100, 200, 'gene_id "g1"; transcript_id "t1"; gene_name "ABC1";'),
    ("exon", 300, 500, 'gene_id "g1"; transcript_id "t1"; gene_name "ABC1";'),
    ("CDS", 150, 200, 'gene_id "g1"; transcript_id "t1"; gene_name "ABC1";'),
    ("CDS", 300, 400, 'gene_id "g1"; transcript_id "t1"; gene_name "ABC1";'),
]
BACTERIA = [("CDS", 150, 200, "ID=x1;gene=ABC1"), ("CDS", 300, 400, "ID=x1;gene=ABC1")]


def write(path: Path, lines: list[tuple[str, int, int, str]]) -> Path:
    text = [f"chr1\tx\t{kind}\t{a}\t{b}\t.\t-\t.\t{more}\n" for kind, a, b, more in lines]
    path.write_text("##gff-version 3\n" + "".join(text))
    return path


def test_every_dialect_gives_the_same_gene(tmp_path: Path) -> None:
    for name, lines in (("x.gff3", GFF3), ("x.gtf", GTF)):
        genes = read_genes(write(tmp_path / name, lines))
        assert genes.overlapping("1", 0, 1000) == [WANTED], name
        assert len(genes) == 1
    coding = WANTED.coding
    (alone,) = read_genes(write(tmp_path / "b.gff3", BACTERIA)).overlapping("chr1", 0, 1000)
    assert alone == Gene("ABC1", "chr1", "-", coding, (), coding)


def test_parents_without_a_gene_and_in_a_cycle_end(tmp_path: Path) -> None:
    lines = [
        ("mRNA", 1, 9, "ID=a;Parent=b"),
        ("mRNA", 1, 9, "ID=b;Parent=a"),
        ("CDS", 1, 9, "ID=p;Parent=a"),
        ("CDS", 11, 19, "ID=q;Parent=orphan;gene=Q"),
    ]
    found = read_genes(write(tmp_path / "x.gff3", lines)).overlapping("chr1", 0, 99)
    assert [(gene.name, gene.coding) for gene in found] == [("a", ((0, 9),)), ("Q", ((10, 19),))]


def test_an_interval_finds_all_of_its_genes() -> None:
    draw = random.Random(0)  # noqa: S311 - no secret
    genes = []
    for index in range(300):
        spans = sorted(draw.sample(range(1000), 4))
        genes.append(
            Gene(str(index), f"chr{index % 3}", "+", ((spans[0], spans[1]),), (), ())
            if index % 5
            else Gene(str(index), "chr1", "+", ((spans[0], spans[1]), (spans[2], spans[3])), (), ())
        )
    index = Genes(genes)
    for _ in range(500):
        contig, start = f"chr{draw.randrange(4)}", draw.randrange(1000)
        end = start + draw.randrange(1, 60)
        found = index.overlapping(contig, start, end)
        expected = {
            gene.name
            for gene in genes
            if gene.contig == contig and any(a < end and start < b for a, b in gene.spans)
        }
        assert {gene.name for gene in found} == expected
        assert len(found) == len(expected)


def test_the_example_is_an_annotation_of_the_example() -> None:
    """Every coding sequence is an open reading frame, also across the origin."""
    genes = read_genes(EXAMPLES / "phix174.gff3")
    with Reference.open(EXAMPLES / "phix174.fa") as genome:
        (name,) = genome.names
        whole = genome.fetch(Interval(name, 0, genome.length(name))).decode()
        found = genes.overlapping(name, 0, len(whole))
    assert len(found) == len(genes) == 11
    for gene in found:
        spans = gene.coding if len(gene.coding) == 1 else gene.coding[::-1]
        protein = str(Seq("".join(whole[start:end] for start, end in spans)).translate())
        assert protein.startswith("M"), gene.name
        assert protein.index("*") == len(protein) - 1, gene.name


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("chr1\tx\tregion\t1\t9\t.\t+\t.\tID=r\n", "has no gene"),
        (">chr1\n", "is FASTA, which holds sequences; give a GFF3 or GTF file"),
        ("chr1\tx\t9\n", "line 1: 'chr1"),
    ],
)
def test_what_has_no_gene_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "x.gff3"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        read_genes(path)
