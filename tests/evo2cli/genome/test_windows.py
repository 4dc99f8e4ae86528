"""The two windows of an allele."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evo2cli.genome.interval import Interval
from evo2cli.genome.reference import Reference
from evo2cli.genome.windows import (
    Placing,
    WindowPair,
    agrees,
    anchored,
    centred,
    cut_windows,
    ending,
    upper_dna,
)

CONTIG = (b"acgTTGCAnnGATTACAcatgRYACGTTTGACCAGTAGGCATCGATTAGCCATGGATCCA" * 3)[:170]


@pytest.fixture(scope="module")
def genome(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    path: Path = tmp_path_factory.mktemp("genome") / "one.fa"
    path.write_bytes(b">one\n" + CONTIG + b"\n")
    return Reference.open(path)


@pytest.fixture(scope="module")
def mirrored_genome(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    path: Path = tmp_path_factory.mktemp("mirrored") / "one.fa"
    path.write_bytes(b">one\n" + CONTIG[::-1] + b"\n")
    return Reference.open(path)


@st.composite
def placed_alleles(draw: st.DrawFn) -> tuple[Interval, bytes, int]:
    start = draw(st.integers(0, len(CONTIG) - 1))
    end = min(start + draw(st.integers(1, 12)), len(CONTIG))
    alternate = draw(st.text("ACGTacgtN", min_size=1, max_size=12)).encode()
    return Interval("one", start, end), alternate, draw(st.integers(2, 240))


def applied(variant: Interval, alternate: bytes) -> bytes:
    return upper_dna(CONTIG[: variant.start] + alternate + CONTIG[variant.end :])


def test_an_allele_as_long_as_its_contig_has_no_windows(tmp_path: Path) -> None:
    (tmp_path / "short.fa").write_text(">one\nACGTACGTAC\n")
    genome = Reference.open(tmp_path / "short.fa")
    for size in range(1, 13):
        inserted = cut_windows(genome, Interval("one", 4, 5), b"A" * size, 240)
        assert (inserted is None) == (size >= 10)
    for size in range(1, 11):
        replaced = Interval("one", 0, size)
        assert (cut_windows(genome, replaced, b"A", 240, equally_long=False) is None) == (
            size == 10
        )


@given(width=st.integers(2, 40), start=st.integers(0, 200))
def test_anchored_windows_start_at_the_last_anchor_that_leaves_half(width: int, start: int) -> None:
    """Anchors are a quarter of a window apart, and in windows of less than 8 bases 1 base."""
    step = width // 4 if width >= 8 else 1
    last = max(at for at in range(-step * 50, 201, step) if start - at >= width // 2)
    assert anchored(start, start + 1, width) == last


@given(placed_alleles())
def test_both_windows_have_the_same_length_and_the_bases_of_their_genomes(genome, placed):
    variant, alternate, width = placed
    pair = cut_windows(genome, variant, alternate, width)
    if pair is None:
        return
    assert len(pair.reference.sequence) == len(pair.alternate.sequence) == len(pair.interval)
    assert pair.reference.sequence == upper_dna(CONTIG[pair.interval.start : pair.interval.end])
    assert pair.reference.allele == upper_dna(CONTIG[variant.start : variant.end])
    assert pair.alternate.allele == upper_dna(alternate)
    start = variant.start - len(pair.alternate.before)
    whole = applied(variant, alternate)
    assert start >= 0
    assert pair.alternate.sequence == whole[start : start + len(pair.interval)]


@given(placed_alleles())
def test_windows_have_the_requested_length_or_that_of_the_shorter_genome(genome, placed):
    variant, alternate, width = placed
    pair = cut_windows(genome, variant, alternate, width)
    room = min(len(CONTIG), len(applied(variant, alternate)))
    if pair is not None:
        assert len(pair.interval) == min(width, room)


@given(placed_alleles())
def test_a_pair_is_refused_only_for_an_allele_beyond_half_a_window(genome, placed):
    variant, alternate, width = placed
    longest = max(len(variant), len(alternate))
    refused = cut_windows(genome, variant, alternate, width) is None
    room = min(width, len(CONTIG), len(applied(variant, alternate)))
    assert refused == (longest > min(width // 2, room - 1))


@given(placed_alleles())
def test_away_from_the_ends_the_variant_is_in_the_middle_and_the_left_is_shared(genome, placed):
    variant, alternate, width = placed
    pair = cut_windows(genome, variant, alternate, width)
    growth = len(alternate) - len(variant)
    left, right = variant.start - width // 2, variant.start - width // 2 + width
    if pair is None or left < 0 or max(right, right - growth) > len(CONTIG):
        return
    assert not pair.at_edge
    assert pair.interval == Interval("one", left, right)
    assert pair.reference.before == pair.alternate.before
    assert len(pair.reference.before) == width // 2


@given(placed_alleles(), st.booleans())
def test_fixed_borders_give_one_interval_of_the_genome_with_the_allele_applied(
    genome, placed, from_right
):
    variant, alternate, width = placed
    options = {"from_right": from_right, "equally_long": False}
    pair = cut_windows(genome, variant, alternate, width, **options)
    if pair is None:
        return
    assert pair.interval == pair.alternate_interval
    assert len(pair.interval) == min(width, len(CONTIG))
    assert pair.reference.before == pair.alternate.before
    assert pair.reference.after == pair.alternate.after
    assert pair.reference.sequence == upper_dna(CONTIG[pair.interval.start : pair.interval.end])
    assert pair.alternate.allele == upper_dna(alternate)
    if len(alternate) == len(variant):
        assert pair == cut_windows(genome, variant, alternate, width, from_right=from_right)


@given(placed_alleles(), st.booleans())
def test_the_alternate_window_covers_its_interval(genome, placed, from_right):
    variant, alternate, width = placed
    pair = cut_windows(genome, variant, alternate, width, from_right=from_right)
    if pair is None:
        return
    start, end = pair.alternate_interval.start, pair.alternate_interval.end
    assert pair.alternate.sequence == upper_dna(
        CONTIG[start : variant.start] + alternate + CONTIG[variant.end : end]
    )


@given(placed_alleles(), st.integers(0, 30), st.booleans())
def test_both_windows_end_after_the_given_number_of_bases(genome, placed, after, from_right):
    variant, alternate, width = placed
    placing = ending(after)
    pair = cut_windows(genome, variant, alternate, width, placing, from_right=from_right)
    if pair is None or pair.at_edge:
        return
    for window in (pair.reference, pair.alternate):
        assert len(window.sequence) == width
        assert len(window.before if from_right else window.after) == after


@pytest.mark.parametrize(
    ("start", "end", "alternate", "reference", "alternate_before", "edge"),
    [
        (100, 101, b"A", (80, 120), (80, 100), False),
        (100, 101, b"ACGT", (80, 120), (80, 100), False),
        (100, 104, b"A", (80, 120), (80, 100), False),
        (5, 6, b"A", (0, 40), (0, 5), True),
        (165, 166, b"A", (130, 170), (130, 165), True),
        (160, 169, b"A", (130, 170), (122, 160), True),
    ],
    ids=["snv", "insertion", "deletion", "left end", "right end", "deletion at right end"],
)
def test_intervals_of_windows(genome, start, end, alternate, reference, alternate_before, edge):
    pair = cut_windows(genome, Interval("one", start, end), alternate, 40)
    assert isinstance(pair, WindowPair)
    assert (pair.interval.start, pair.interval.end) == reference
    assert pair.alternate.before == upper_dna(CONTIG[slice(*alternate_before)])
    assert pair.at_edge is edge


@given(placed_alleles())
def test_the_reverse_complement_is_an_involution(genome, placed):
    pair = cut_windows(genome, *placed)
    if pair is not None:
        assert pair.alternate.reverse_complement().reverse_complement() == pair.alternate


def test_rna_and_lower_case_are_read_as_upper_case_dna():
    assert upper_dna(b"acguUn") == b"ACGTTN"


@pytest.mark.parametrize(
    ("allele", "letters", "expected"),
    [
        (b"ACGT", b"ACGT", True),
        (b"A", b"C", False),
        (b"A", b"R", True),
        (b"R", b"R", True),
        (b"G", b"R", False),
        (b"A", b"N", False),
        (b"N", b"N", True),
        (b"N", b"R", True),
        (b"N", b"A", False),
        (b"CNAR", b"CRMR", True),
    ],
)
def test_ref_agrees_with_the_genome_or_with_n_or_the_first_base_of_a_code(
    allele, letters, expected
):
    assert agrees(allele, letters) is expected


@given(placed_alleles(), st.sampled_from([centred, anchored, ending(7)]), st.booleans())
def test_from_right_is_from_left_in_the_mirrored_genome(
    genome: Reference,
    mirrored_genome: Reference,
    placed: tuple[Interval, bytes, int],
    placing: Placing,
    equally_long: bool,
) -> None:
    variant, alternate, width = placed
    room = len(CONTIG)

    def mirrored(interval: Interval) -> Interval:
        return Interval("one", room - interval.end, room - interval.start)

    pair = cut_windows(
        genome,
        variant,
        alternate,
        width,
        placing,
        from_right=True,
        equally_long=equally_long,
    )
    image = cut_windows(
        mirrored_genome,
        mirrored(variant),
        alternate[::-1],
        width,
        placing,
        equally_long=equally_long,
    )
    if pair is None or image is None:
        assert pair is image
        return
    assert pair.at_edge == image.at_edge
    assert pair.interval == mirrored(image.interval)
    assert pair.alternate_interval == mirrored(image.alternate_interval)
    for window, other in ((pair.reference, image.reference), (pair.alternate, image.alternate)):
        assert window.sequence == other.sequence[::-1]
        assert window.before == other.after[::-1]
