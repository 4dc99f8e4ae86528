"""Labels of bases from BED and GFF: each base has the label that the annotation gives it."""

from pathlib import Path

import numpy as np
import pytest

from evo2cli.errors import UserError
from evo2cli.finetune.annotations import read_annotated
from evo2cli.finetune.tasks import Task
from tests.evo2cli.finetune.dna import draw, turned

CHR1, CHR2 = (draw(np.random.default_rng(seed), 100) for seed in (0, 1))


@pytest.fixture
def genome(tmp_path: Path) -> Path:
    path = tmp_path / "genome.fa"
    path.write_text(f">chr1\n{CHR1}\n>chr2\n{'N' * 40}{CHR2}\n")
    return path


def gff(path: Path, *lines: tuple[str, str, int, int, str]) -> Path:
    path.write_text(
        "".join(
            f"{c}\t.\t{kind}\t{start + 1}\t{end}\t.\t{strand}\t.\t.\n"
            for c, kind, start, end, strand in lines
        )
    )
    return path


def marked(length: int, *spans: tuple[int, int]) -> list[int]:
    labels = np.zeros(length, int)
    for start, end in spans:
        labels[start:end] = 1
    return labels.tolist()


def test_windows_of_whole_contigs_are_labelled_by_a_bed(genome: Path, tmp_path: Path) -> None:
    bed = tmp_path / "x.bed"
    bed.write_text("1\t5\t15\n1\t38\t42\n2\t130\t140\n")
    examples, labels = read_annotated(genome, bed, 40)
    assert (labels.task, labels.classes) == (Task.TOKENS, ("none", "feature"))
    assert examples.names[:2] == ["chr1:0-40", "chr1:40-80"]
    assert "".join(examples.sequences[:3]) == CHR1
    assert [list(map(int, tokens)) for tokens in examples.labels[:3]] == [
        marked(40, (5, 15), (38, 40)),
        marked(40, (0, 2)),
        marked(20),
    ]
    # The first window of chr2 is all N and left out.
    assert "".join(examples.sequences[3:]) == CHR2
    assert examples.chromosomes == ["chr1"] * 3 + ["chr2"] * 3
    assert examples.labels[-1].tolist() == marked(20, (10, 20))


def test_a_region_on_the_reverse_strand_reads_as_its_gene(genome: Path, tmp_path: Path) -> None:
    exons = gff(
        tmp_path / "x.gff",
        ("chr1", "exon", 10, 20, "-"),
        ("chr1", "exon", 30, 33, "-"),
        ("chr1", "exon", 25, 28, "+"),  # of another gene
        ("chr1", "exon", 50, 60, "+"),
    )
    genes = tmp_path / "genes.bed"
    genes.write_text("chr1\t10\t40\tminus\t0\t-\nchr1\t45\t70\tplus\t0\t+\nchr1\t10\t40\tboth\n")
    examples, _ = read_annotated(genome, exons, 1000, regions=genes)
    rows = dict(
        zip(examples.groups, zip(examples.sequences, examples.labels, strict=True), strict=True)
    )
    assert rows["minus"][0] == turned(CHR1[10:40])
    assert rows["minus"][1].tolist() == marked(30, (0, 10), (20, 23))[::-1]
    assert rows["plus"][0] == CHR1[45:70]
    assert rows["plus"][1].tolist() == marked(25, (5, 15))
    assert rows["both"][1].tolist() == marked(30, (0, 10), (15, 18), (20, 23))


def test_types_are_classes_and_the_later_one_counts(genome: Path, tmp_path: Path) -> None:
    path = gff(
        tmp_path / "x.gff",
        ("chr1", "CDS", 10, 15, "+"),
        ("chr1", "exon", 5, 20, "+"),
        ("chr1", "gene", 0, 50, "+"),
    )
    examples, labels = read_annotated(genome, path, 100, kinds=["exon", "CDS"])
    assert labels.classes == ("none", "exon", "CDS")
    wanted = np.array(marked(100, (5, 20))) + marked(100, (10, 15))
    assert examples.labels[0].tolist() == wanted.tolist()
    with pytest.raises(
        UserError, match="several types; choose among them with --feature-type; its types: CDS 1"
    ):
        read_annotated(genome, path, 100)
    with pytest.raises(
        UserError, match="no feature of type tRNA; its types: CDS 1, exon 1, gene 1"
    ):
        read_annotated(genome, path, 100, kinds=["tRNA"])


def test_an_annotation_of_another_genome_is_refused(genome: Path, tmp_path: Path) -> None:
    bed = tmp_path / "x.bed"
    bed.write_text("chr9\t5\t15\n")
    with pytest.raises(
        UserError, match=r"none of its features \(1\) is on a contig of .* chr1, chr2"
    ):
        read_annotated(genome, bed, 40)
