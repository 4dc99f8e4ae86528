"""Coding sequences, and amino-acid changes as changes of codons by the standard genetic code.

Changes are written as in ProteinGym: A123T replaces the alanine at position 123 (1-based) by
threonine; ':' joins several changes.
"""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from Bio.Data import CodonTable

from evo2cli.errors import UserError, counted, listed
from evo2cli.genome.alphabet import ACGT, reverse_complement, upper_dna
from evo2cli.genome.fasta import read_records
from evo2cli.genome.features import Feature, is_gff, read_features
from evo2cli.genome.interval import Interval
from evo2cli.genome.reference import Reference
from evo2cli.genome.windows import Window, cut_windows

T = TypeVar("T")

STOP = "*"
_TABLE = CodonTable.unambiguous_dna_by_name["Standard"]
AMINO_ACIDS = {
    codon.encode(): amino_acid
    for codon, amino_acid in sorted(
        [*_TABLE.forward_table.items(), *((codon, STOP) for codon in _TABLE.stop_codons)]
    )
}
CODONS: dict[str, list[bytes]] = defaultdict(list)
for _codon, _amino_acid in AMINO_ACIDS.items():
    CODONS[_amino_acid].append(_codon)
_LETTERS = re.escape("".join(CODONS))
_CHANGE = re.compile(rf"([{_LETTERS}])([0-9]{{1,9}})([{_LETTERS}])")


@dataclass(frozen=True)
class Change:
    """A change of one amino acid.

    Attributes:
        site: 0-based index of the codon.
        old: Amino acid of the wild type; * for a stop.
        new: Amino acid of the mutant; * for a stop.
    """

    site: int
    old: str
    new: str


@dataclass(frozen=True)
class CodingSequence:
    """A coding sequence, alone or in its genome.

    Attributes:
        origin: Its name in messages.
        bases: Whole codons of A, C, G and T, in the direction of translation.
        contig: Contig of the genome; empty for a sequence alone.
        positions: 0-based position of each base in the contig; empty for a sequence alone.
        is_reverse: Whether the gene is on the reverse strand.
    """

    origin: str
    bases: bytes
    contig: str = ""
    positions: Sequence[int] = ()
    is_reverse: bool = False

    def codon(self, site: int) -> bytes:
        """The codon at a site."""
        return self.bases[3 * site : 3 * site + 3]

    def new_codons(self, change: Change, *, nearest: bool) -> list[bytes]:
        """The codons of the new amino acid, without the codon of the wild type; at least one.

        Args:
            change: The change.
            nearest: Return only the codon that differs in the fewest bases; of several, the first
                in the alphabet.

        Raises:
            ValueError: The sequence has no such site, or another amino acid there; or the new amino
                acid has no other codon.
        """
        old = self.codon(change.site)
        number = change.site + 1
        if not old:
            raise ValueError(f"{self.origin} has {counted(len(self.bases) // 3, 'codon')}")
        if AMINO_ACIDS[old] != change.old:
            raise ValueError(
                f"codon {number} of {self.origin} is {old.decode()} ({AMINO_ACIDS[old]}), not "
                f"{change.old}; is this its coding sequence? --shift adds to all positions"
            )
        others = [codon for codon in CODONS[change.new] if codon != old]
        if not others:
            raise ValueError(f"{change.new} has no other codon than {old.decode()}")
        if not nearest:
            return others
        return [min(others, key=lambda codon: sum(a != b for a, b in zip(codon, old, strict=True)))]

    def windows(
        self, codons: Mapping[int, bytes], genome: Reference | None, width: int
    ) -> tuple[Window, Window] | None:
        """The windows of the wild type and of the mutant, on the strand of the gene.

        Of a sequence alone they are the whole sequence, in a genome centred windows. The allele
        reaches from the first to the last of the codons, so it is the same for all codons of a
        site.

        Args:
            codons: The new codon of each site.
            genome: The genome with the contig; None for a sequence alone.
            width: Bases of a window of the genome.

        Returns:
            Both windows; None if the codons are farther apart than half a window.
        """
        if genome is None:
            first, last = 3 * min(codons), 3 * max(codons) + 3
            new = bytearray(self.bases[first:last])
            for site, codon in codons.items():
                new[3 * site - first : 3 * site - first + 3] = codon
            before, after = self.bases[:first], self.bases[last:]
            return Window(before, self.bases[first:last], after), Window(before, bytes(new), after)
        new_bases = {
            self.positions[3 * site + index]: base
            for site, codon in codons.items()
            for index, base in enumerate(codon)
        }
        variant = Interval(self.contig, min(new_bases), max(new_bases) + 1)
        new = bytearray(upper_dna(genome.fetch(variant)))
        for position, base in new_bases.items():
            [letter] = reverse_complement(bytes([base])) if self.is_reverse else [base]
            new[position - variant.start] = letter
        pair = cut_windows(genome, variant, bytes(new), width)
        if pair is None:
            return None
        if self.is_reverse:
            return pair.reference.reverse_complement(), pair.alternate.reverse_complement()
        return pair.reference, pair.alternate


def parse_mutant(text: str, shift: int = 0) -> list[Change]:
    """Parse A123T, or several changes joined by ':', into changes sorted by site.

    Args:
        text: The changes.
        shift: Number to add to every position.

    Raises:
        ValueError: It is not of this form, a shifted position is below 1, or a site is changed
            twice.
    """
    changes = {}
    for word in text.split(":"):
        match = _CHANGE.fullmatch(word.strip())
        if match is None or int(match[2]) < 1:
            raise ValueError(f"{word[:40]!r} is not a change of amino acids such as A123T")
        change = Change(int(match[2]) + shift - 1, match[1], match[3])
        if change.site < 0:
            raise ValueError(
                f"{word!r} is at {change.site + 1} by --shift {shift}; the first position is 1"
            )
        if change.site in changes:
            raise ValueError(f"{text[:40]!r} changes site {match[2]} twice")
        changes[change.site] = change
    return [changes[site] for site in sorted(changes)]


def read_coding_sequence(
    path: Path, name: str | None = None, genome: Reference | None = None
) -> CodingSequence:
    """Read a coding sequence.

    Args:
        path: FASTA of coding sequences; or, with a genome, GFF3 with lines of the type CDS.
        name: Name of the record or the CDS; None if there is only one.
        genome: The genome of the GFF3.

    Raises:
        UserError: The file cannot be read, does not have the sequence, or the sequence is not whole
            codons of A, C, G and T.
    """
    if is_gff(path) is not (genome is not None):
        raise UserError(
            f"--cds {path}: a GFF3 needs its genome, --reference"
            if genome is None
            else f"--cds {path}: with --reference, it must be a GFF3 with lines of the type CDS"
        )
    if genome is None:
        record = _select(path, name, [(record.name, record) for record in read_records(path)])
        return _validated(CodingSequence(f"{path}: {record.name}", upper_dna(record.sequence)))
    features = [(feature.name, feature) for feature in read_features(path, "CDS")]
    return _in_genome(path, _select(path, name, features), genome)


def _in_genome(path: Path, feature: Feature, genome: Reference) -> CodingSequence:
    origin = f"{path}: {feature.name}"
    if feature.strand not in ("+", "-"):
        raise UserError(f"{origin}: has no strand")
    contig = genome.contig(feature.contig, origin)
    if feature.end > genome.length(contig):
        raise UserError(f"{origin}: reaches beyond base {genome.length(contig):,} of {contig}")
    spans = [Interval(contig, start, end) for start, end in feature.spans]
    bases = upper_dna(b"".join(map(genome.fetch, spans)))
    positions = [position for span in spans for position in range(span.start, span.end)]
    is_reverse = feature.strand == "-"
    if is_reverse:
        bases, positions = reverse_complement(bases), positions[::-1]
    return _validated(CodingSequence(origin, bases, contig, positions, is_reverse))


def _select(path: Path, name: str | None, named: Sequence[tuple[str, T]]) -> T:
    """The only one with this name, or the only one if there is no name.

    Raises:
        UserError: There is none, or there are several.
    """
    matches = [item for item_name, item in named if name in (None, item_name)]
    if len(matches) == 1:
        return matches[0]
    names = dict.fromkeys(item_name for item_name, _ in named)
    count = counted(len(matches), "coding sequence") if matches else "no coding sequence"
    what = f"{count} named {name!r}" if name else count
    way_out = "give one" if name and matches else "choose one by --cds-name"
    raise UserError(f"--cds {path}: has {what}; {way_out}: {listed(names)}")


def _validated(sequence: CodingSequence) -> CodingSequence:
    length = len(sequence.bases)
    if not length or length % 3:
        raise UserError(f"{sequence.origin}: {length:,} bases are not whole codons")
    if others := sequence.bases.translate(None, ACGT):
        raise UserError(
            f"{sequence.origin}: holds {others[:1].decode('latin-1')!r}; codons are of A, C, G, T"
        )
    return sequence
