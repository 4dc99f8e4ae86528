"""Variants written as one word, in every notation."""

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evo2cli.errors import UserError
from evo2cli.genome.reference import Reference
from evo2cli.genome.variant_names import is_variant_name, read_variant_name

BASES = st.text("ACGTacgtN", min_size=1, max_size=5)


@pytest.mark.parametrize("form", ["{}-{}-{}-{}", "{}:{}:{}>{}", "{}:g.{}{}>{}", "{}:{}:{}:{}"])
@given(
    contig=st.sampled_from(["chr22", "22", "NC_001422.1", "HLA-A*01:01:01"]),
    position=st.integers(1, 10**9),
    reference=BASES,
    alternate=BASES,
)
def test_all_notations_are_read_alike(form, contig, position, reference, alternate):
    text = form.format(contig, position, reference, alternate)
    assert is_variant_name(text)
    record = read_variant_name(text)
    assert (record.contig, record.start) == (contig, position - 1)
    assert (record.reference, record.alternates) == (reference.encode(), (alternate.encode(),))


def test_alternates_may_be_several():
    assert read_variant_name("1-5-A-C,GT").alternates == (b"C", b"GT")


@pytest.mark.parametrize(
    "text",
    ["x.vcf", "rs", "chr1:5", "chr1-A-C-5", "1-0-A-C", "1-5-A-<DEL>", "", f"1-{'9' * 5000}-A-C"],
)
def test_other_text_is_refused(text):
    with pytest.raises(UserError, match="not a variant; write variants as"):
        read_variant_name(text)


CONTIG = "ACGTTTGACCA"


@pytest.fixture(scope="module")
def genome(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reference]:
    path = tmp_path_factory.mktemp("g") / "g.fa"
    path.write_text(f">chr17\n{CONTIG}\n")
    with Reference.open(path) as opened:
        yield opened


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("5T>A", "ACGTATGACCA"),
        ("5del", "ACGTTGACCA"),
        ("1del", "CGTTTGACCA"),
        ("1_3delACG", "TTTGACCA"),
        ("11del", "ACGTTTGACC"),
        ("2_10del", "AA"),
        ("7_8insCC", "ACGTTTGCCACCA"),
        ("10_11insC", "ACGTTTGACCCA"),
        ("2_3delinsTTT", "ATTTTTTGACCA"),
        ("1_2dup", "ACACGTTTGACCA"),
        ("6dupT", "ACGTTTTGACCA"),
        ("7_9inv", "ACGTTTGTCCA"),
    ],
)
def test_hgvs_describes_the_right_sequence(genome: Reference, change: str, expected: str) -> None:
    text = f"NC_000017.11:g.{change}"
    assert is_variant_name(text)
    record = read_variant_name(text, genome)
    [alternate] = record.alternates
    assert CONTIG[record.start : record.end] == record.reference.decode()
    assert CONTIG[: record.start] + alternate.decode() + CONTIG[record.end :] == expected


def test_a_change_of_hgvs_is_left_aligned(genome: Reference) -> None:
    assert read_variant_name("17:g.6del", genome).start == 2  # G before TTT
    assert read_variant_name("17:g.6dup", genome).line.startswith(b"chr17\t3\t.\tG\tGT\t")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rs80357906", "an rs number of dbSNP.*NC_000017.11:g.43044295G>A"),
        ("NM_007294.4:c.5266C>T", "a position in a transcript"),
        ("NM_007294.4:c.5266-1G>A", "a position in a transcript"),
        ("NM_007294.4:c.-12G>A", "a position in a transcript"),
        ("NP_009225.1:p.Tyr1853Ter", "a position in a protein"),
        ("VCV000017677.5", "an accession of ClinVar"),
        ("17:g.4_5[3]", "only substitutions, del, ins"),
        ("17:g.4_6insA", "between two neighbouring bases"),
        ("17:g.4_12del", "where chr17 ends"),
        ("17:g.4delG", "the reference has T there"),
        ("17:g.1_11del", "nothing would be left"),
        ("NC_000016.10:g.1del", "has no contig NC_000016.10.*is chromosome 16 of GRCh38"),
    ],
)
def test_names_that_need_more_than_the_genome_are_refused(
    genome: Reference, text: str, message: str
) -> None:
    assert is_variant_name(text)
    with pytest.raises(UserError, match=message):
        read_variant_name(text, genome)
