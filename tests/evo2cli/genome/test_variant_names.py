"""Variants as people write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evo2cli.errors import UserError
from evo2cli.genome.variant_names import is_variant_name, read_variant_name

BASES = st.text("ACGTacgtN", min_size=1, max_size=5)


@pytest.mark.parametrize("form", ["{}-{}-{}-{}", "{}:{}:{}>{}", "{}:g.{}{}>{}", "{}:{}:{}:{}"])
@given(
    contig=st.sampled_from(["chr22", "22", "NC_001422.1", "HLA-A*01:01:01"]),
    position=st.integers(1, 10**9),
    reference=BASES,
    alternate=BASES,
)
def test_every_form_says_the_same(form, contig, position, reference, alternate):
    text = form.format(contig, position, reference, alternate)
    assert is_variant_name(text)
    record = read_variant_name(text)
    assert (record.contig, record.start) == (contig, position - 1)
    assert (record.reference, record.alternates) == (reference.encode(), (alternate.encode(),))


def test_alternates_may_be_several():
    assert read_variant_name("1-5-A-C,GT").alternates == (b"C", b"GT")


@pytest.mark.parametrize(
    "text",
    ["x.vcf", "chr1:5", "chr1-A-C-5", "1-0-A-C", "1-5-A-<DEL>", "", f"1-{'9' * 5000}-A-C"],
)
def test_what_is_no_variant_is_refused(text):
    with pytest.raises(UserError, match="neither a file nor a variant"):
        read_variant_name(text)
