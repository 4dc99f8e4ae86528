"""Amino-acid changes become changes of codons, in a sequence alone and in a genome."""

from itertools import product
from pathlib import Path

import numpy as np
import pytest

from evo2cli.errors import UserError
from evo2cli.eval.draws import draw_bases
from evo2cli.genome.alphabet import reverse_complement
from evo2cli.genome.coding import (
    AMINO_ACIDS,
    CODONS,
    Change,
    CodingSequence,
    parse_mutant,
    read_coding_sequence,
)
from evo2cli.genome.interval import Interval
from evo2cli.genome.reference import Reference

# NCBI's table 1, with the bases of codons in the order T, C, A, G.
STANDARD = "FFLLSSSSYY**CC*WLLLLPPPPHHQQRRRRIIIMTTTTNNKKSSRRVVVVAAAADDEEGGGG"


def translated(bases: bytes) -> str:
    table = dict(zip(map("".join, product("TCAG", repeat=3)), STANDARD, strict=True))
    text = bases.decode()
    return "".join(table[text[at : at + 3]] for at in range(0, len(text), 3))


def protein(sequence: CodingSequence) -> str:
    return translated(sequence.bases)


def test_codons_are_those_of_the_standard_code() -> None:
    codons = ["".join(codon) for codon in product("TCAG", repeat=3)]
    assert {codon.encode(): amino for codon, amino in zip(codons, STANDARD, strict=True)} == (
        AMINO_ACIDS
    )
    assert sum(map(len, CODONS.values())) == 64


@pytest.mark.parametrize("old", range(0, 64, 7))
def test_the_nearest_codon_changes_the_fewest_bases(old: int) -> None:
    codon = sorted(AMINO_ACIDS)[old]
    sequence = CodingSequence("x", b"ATG" + codon)
    for new in CODONS:
        others = [other for other in CODONS[new] if other != codon]
        change = Change(1, AMINO_ACIDS[codon], new)
        if not others:
            with pytest.raises(ValueError, match="no other codon than"):
                sequence.new_codons(change, nearest=True)
            continue
        assert sequence.new_codons(change, nearest=False) == sorted(others)
        [nearest] = sequence.new_codons(change, nearest=True)
        differences = {
            other: sum(a != b for a, b in zip(other, codon, strict=True)) for other in others
        }
        least = min(differences.values())
        assert nearest == min(other for other in others if differences[other] == least)


def test_changes_are_read_in_the_order_of_their_sites() -> None:
    assert parse_mutant("A123T") == [Change(122, "A", "T")]
    assert parse_mutant("W3*:M1V", shift=10) == [Change(10, "M", "V"), Change(12, "W", "*")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "'' is not a change of amino acids such as A123T"),
        ("A0T", "'A0T' is not"),
        ("B1T", "'B1T' is not"),
        ("a1t", "'a1t' is not"),
        ("A1T,G2S", "'A1T,G2S' is not"),
        ("A1T:", "'' is not"),
        ("p.Ala1Thr", "is not"),
        ("A1T:A1S", "changes site 1 twice"),
        ("A\u0662T", "is not"),  # an Arabic digit
    ],
)
def test_an_invalid_change_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_mutant(text)


def test_a_shift_to_before_the_sequence_is_refused() -> None:
    assert parse_mutant("A6T", shift=-5) == [Change(0, "A", "T")]
    with pytest.raises(ValueError, match="'A5T' is at 0 by --shift -5; the first position is 1"):
        parse_mutant("A5T", shift=-5)


@pytest.mark.parametrize("strand", ["+", "-"])
def test_a_change_in_the_genome_is_that_of_the_spliced_gene(tmp_path: Path, strand: str) -> None:
    """The gene has three exons, whose borders cut codons."""
    contig = draw_bases(900, "contig")
    spans = [(100, 137), (300, 362), (380, 431)]  # 150 bases
    (tmp_path / "g.fa").write_bytes(b">chr1\n" + contig.lower() + b"\n")
    gff = tmp_path / "g.gff3"
    gff.write_text(
        "".join(
            f"1\t.\tCDS\t{start + 1}\t{end}\t.\t{strand}\t0\tID=cds-a\n" for start, end in spans
        )
        + "1\t.\tgene\t1\t9\t.\t+\t.\tID=b\n"
    )

    def spliced(bases: bytes) -> bytes:
        joined = b"".join(bases[start:end] for start, end in spans)
        return joined if strand == "+" else reverse_complement(joined)

    draw = np.random.default_rng(0)
    with Reference.open(tmp_path / "g.fa") as genome:
        sequence = read_coding_sequence(gff, "cds-a", genome)
        assert sequence.bases == spliced(contig)
        assert read_coding_sequence(gff, None, genome) == sequence
        for sites in ([0], [12], [20], [49], [11, 13], [5, 40]):
            codons = {site: draw_bases(3, site, int(draw.integers(99))) for site in sites}
            windows = sequence.windows(codons, genome, 800)
            assert windows is not None
            reference, alternate = windows
            assert len(reference.sequence) == len(alternate.sequence) == 800
            assert (reference.before, reference.after) == (alternate.before, alternate.after)
            changed_at = [sequence.positions[3 * site + i] for site in sites for i in range(3)]
            assert len(reference.allele) == max(changed_at) - min(changed_at) + 1
            plain, changed = (
                window.sequence if strand == "+" else reverse_complement(window.sequence)
                for window in windows
            )
            start = contig.find(plain)
            assert start >= 0
            edited = contig[:start] + changed + contig[start + 800 :]
            expected = [sequence.codon(site) for site in range(50)]
            for site, codon in codons.items():
                expected[site] = codon
            assert spliced(edited) == b"".join(expected)
            assert sum(a != b for a, b in zip(edited, contig, strict=True)) == sum(
                a != b
                for site, codon in codons.items()
                for a, b in zip(codon, sequence.codon(site), strict=True)
            )
        near, far = {5: b"AAA", 6: b"CCC"}, {5: b"AAA", 40: b"CCC"}
        assert sequence.windows(near, genome, 60) is not None
        assert sequence.windows(far, genome, 60) is None


def test_alone_the_whole_sequence_is_read() -> None:
    sequence = CodingSequence("x", draw_bases(90, "cds"))
    windows = sequence.windows({3: b"AAA", 8: b"TTT"}, None, 8)
    assert windows is not None
    reference, alternate = windows
    assert reference.sequence == sequence.bases
    edited = bytearray(sequence.bases)
    edited[9:12], edited[24:27] = b"AAA", b"TTT"
    assert alternate.sequence == bytes(edited)
    assert (reference.before, reference.after) == (sequence.bases[:9], sequence.bases[27:])
    assert (alternate.before, alternate.after) == (sequence.bases[:9], sequence.bases[27:])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (Change(1, "W", "A"), r"codon 2 of x is AAA \(K\), not W; is this its coding sequence\?"),
        (Change(2, "K", "A"), "x has 2 codons"),
        (Change(0, "M", "M"), "M has no other codon than ATG"),
    ],
)
def test_a_change_of_another_sequence_is_told(change: Change, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CodingSequence("x", b"ATGAAA").new_codons(change, nearest=True)


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        (">a\nATGAA\n", None, "x.fa: a: 5 bases are not whole codons"),
        (">a\n\n", None, "x.fa: a: 0 bases are not whole codons"),
        (">a\nATGANA\n", None, "x.fa: a: holds 'N'"),
        (">a\nATG\n>b\nATG\n", None, "has 2 coding sequences; choose one by --cds-name: a, b"),
        (">a\nATG\n", "c", "has no coding sequence named 'c'; choose one by --cds-name: a"),
        (">a\nATG\n>a\nATG\n", "a", "has 2 coding sequences named 'a'; give one: a"),
    ],
)
def test_what_is_no_coding_sequence_is_one_line(
    tmp_path: Path, text: str, name: str | None, message: str
) -> None:
    path = tmp_path / "x.fa"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        read_coding_sequence(path, name)


def test_a_gff_and_a_genome_belong_together(tmp_path: Path) -> None:
    fasta, gff = tmp_path / "g.fa", tmp_path / "g.gff"
    fasta.write_text(">c\nACGTACGTAC\n")
    gff.write_text("c\t.\tCDS\t2\t7\t.\t.\t0\tID=a\n")
    with pytest.raises(UserError, match="a GFF3 needs its genome, --reference"):
        read_coding_sequence(gff)
    with Reference.open(fasta) as genome:
        with pytest.raises(UserError, match="with --reference, it must be a GFF3"):
            read_coding_sequence(fasta, None, genome)
        with pytest.raises(UserError, match="has no strand"):
            read_coding_sequence(gff, None, genome)
        gff.write_text("c\t.\tCDS\t2\t13\t.\t+\t0\tID=a\n")
        with pytest.raises(UserError, match="reaches beyond base 10 of c"):
            read_coding_sequence(gff, None, genome)
        gff.write_text("d\t.\tCDS\t2\t7\t.\t+\t0\tID=a\n")
        with pytest.raises(UserError, match="the genome has no contig d"):
            read_coding_sequence(gff, None, genome)
        assert genome.fetch(Interval("c", 0, 4)) == b"ACGT"
