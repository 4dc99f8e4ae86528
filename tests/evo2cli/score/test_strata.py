"""Kinds of variants are the same on both strands, and random variants are of the given kind."""

from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from evo2cli.genome.alphabet import reverse_complement
from evo2cli.genome.reference import Reference
from evo2cli.genome.vcf import VariantRecord
from evo2cli.score.strata import random_variants, stratum

LETTERS = "".join(np.random.default_rng(0).choice(list("ACGTacgtN"), 3000))


@pytest.fixture
def genome(tmp_path: Path) -> Iterator[Reference]:
    """A contig and its reverse complement, with a short one between."""
    other = reverse_complement(LETTERS.encode()).decode()
    path = tmp_path / "g.fa"
    path.write_text(f">a\n{LETTERS}\n>short\nAC\n>b\n{other}\n")
    with Reference.open(path) as reference:
        yield reference


def kind(genome: Reference, record: VariantRecord) -> str | None:
    return stratum(genome, record, record.alternates[0])


def test_snvs_have_96_kinds_and_one_on_both_strands(genome: Reference) -> None:
    kinds = set()
    for position in range(1, len(LETTERS) - 1):
        around = LETTERS[position - 1 : position + 2].upper()
        for alternate in "ACGT":
            if alternate == around[1]:
                continue
            forward = VariantRecord.from_columns("a", position + 1, around[1], alternate)
            bases = [reverse_complement(b.encode()).decode() for b in (around[1], alternate)]
            backward = VariantRecord.from_columns("b", len(LETTERS) - position, *bases)
            found = kind(genome, forward)
            assert found == kind(genome, backward)
            assert (found is None) == ("N" in around)
            kinds.add(found)
    kinds.discard(None)
    assert len(kinds) == 96
    assert all(found[2] in "CT" for found in kinds)


@pytest.mark.parametrize(
    ("reference", "alternate", "expected"),
    [
        ("A", "AC", "insertion 1"),
        ("A", "ACG", "insertion 2-3"),
        ("ACGTACGTA", "A", "deletion 8-15"),
        ("ACG", "TT", "deletion 1"),
        ("AC", "GT", "MNV 2-3"),
        ("A", "<DEL>", None),
        ("A", "AN", None),
        ("A", "A", None),
    ],
)
def test_other_variants_have_kinds_by_length(
    genome: Reference, reference: str, alternate: str, expected: str | None
) -> None:
    assert kind(genome, VariantRecord.from_columns("a", 100, reference, alternate)) == expected


def test_snvs_without_a_context_have_no_kind(genome: Reference) -> None:
    assert kind(genome, VariantRecord.from_columns("short", 1, "A", "C")) is None
    assert kind(genome, VariantRecord.from_columns("nowhere", 5, "A", "C")) is None


@pytest.mark.parametrize(
    "wanted", ["A[C>T]G", "T[T>A]T", "insertion 1", "insertion 4-7", "deletion 2-3", "MNV 4-7"]
)
def test_random_variants_are_of_the_kind_and_in_the_genome(genome: Reference, wanted: str) -> None:
    found = list(islice(random_variants(genome, wanted), 100))
    assert [str(record) for record in islice(random_variants(genome, wanted), 100)] == [
        str(record) for record in found
    ]
    assert {kind(genome, record) for record in found} == {wanted}
    contigs = {"a": LETTERS.upper(), "b": reverse_complement(LETTERS.encode()).decode().upper()}
    for record in found:
        end = record.start + len(record.reference)
        assert contigs[record.contig][record.start : end] == record.reference.decode()
    assert len(Counter(record.contig for record in found)) == 2
