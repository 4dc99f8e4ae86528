"""Regions of a command line and BED files."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evo2cli.errors import UserError
from evo2cli.genome.interval import Interval
from evo2cli.genome.regions import Regions, read_bed, read_region, read_regions

SPANS = st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 30), st.integers(0, 6)))


@given(SPANS, st.sampled_from("abc"), st.integers(0, 36), st.integers(1, 4))
def test_an_overlap_is_a_base_in_common(spans, name, start, length):
    intervals = [Interval(contig, begin, begin + size) for contig, begin, size in spans]
    covered = {(i.name, base) for i in intervals for base in range(i.start, i.end)}
    common = any((name, base) in covered for base in range(start, start + length))
    assert Regions(intervals).overlap(name, start, start + length) == common


@pytest.mark.parametrize(
    ("text", "name", "start", "end"),
    [
        ("chr1:5-9", "chr1", 4, 9),
        ("1:5", "1", 4, 5),
        ("chr17:43,044,295-43,125,483", "chr17", 43_044_294, 43_125_483),
        ("HLA-A*01:01:1-2", "HLA-A*01:01", 0, 2),
        ("{HLA-A*01:01}:1-2", "HLA-A*01:01", 0, 2),
    ],
)
def test_regions_are_one_based_and_include_their_ends(text, name, start, end):
    assert read_region(text) == Interval(name, start, end)


def test_a_name_with_colons_is_a_contig_too():
    for text in ("HLA-A*01:01", "{HLA-A*01:01}"):
        regions = Regions(read_regions([text]))
        assert regions.overlap("HLA-A*01:01", 9, 10)
    assert Regions(read_regions(["chr1:5"])).spans(["chr1"]) == [Interval("chr1", 4, 5)]


def test_open_regions_extend_to_the_end():
    assert read_region("chr1:7-").start == 6
    assert read_region("chr1:7-").end > 10**12
    assert read_region("chr1").start == 0


@pytest.mark.parametrize(
    "text",
    [
        *(
            "chr1:9-5",
            "chr1:0-5",
            "chr1:a-b",
            ":1-2",
            "",
            "chr1:",
            "1:,",
            "1:,-,",
            "1:\u0662-\u0665",
            "{a:1",
            "{}:2",
        ),
        *(f"chr1:1-{'9' * 22}", f"chr1:{'9' * 5000}"),
    ],
)
def test_an_invalid_region_is_refused(text):
    with pytest.raises(UserError, match=r"^--regions [^\n]+$"):
        read_region(text)


def test_one_contig_has_several_names():
    regions = Regions([Interval("chrM", 0, 5), Interval("7", 0, 5)])
    assert regions.overlap("MT", 4, 5)
    assert regions.overlap("chr7", 0, 1)
    assert not regions.overlap("chr7", 5, 6)


def test_comments_of_a_bed_are_skipped_and_a_bad_line_is_named(tmp_path):
    path = tmp_path / "some.bed"
    path.write_text("track name=x\n#c\n\nchr1\t4\t9\tname\n2 0 1\n")
    assert list(read_bed(path)) == [Interval("chr1", 4, 9), Interval("2", 0, 1)]
    huge = "chr1\t0\t" + "9" * 20
    for bad in ("chr1\t5", "chr1\tx\t9", "chr1\t9\t5", "chr1\t-1\t5", huge):
        path.write_text(f"chr1\t4\t9\n{bad}\n")
        with pytest.raises(UserError, match=r"some\.bed: line 2: "):
            list(read_bed(path))


def test_spans_close_to_each_other_are_joined_contig_by_contig():
    regions = Regions([Interval("1", 10, 20), Interval("1", 25, 30), Interval("chr2", 0, 5)])
    assert regions.spans(["2", "1"], join=5) == [Interval("2", 0, 5), Interval("1", 10, 30)]
    assert len(regions.spans(["1"], join=4)) == 2
