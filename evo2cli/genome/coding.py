"""Coding sequences, and what changes of their protein are in codons of the standard genetic code.

A change of amino acids is written as in ProteinGym: A123T puts threonine in the place of the
alanine at 123, 1-based; several changes are joined by ':'.
"""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from Bio.Data import CodonTable

from evo2cli.errors import UserError, counted
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
_SHOWN = 5  # names in a message


@dataclass(frozen=True)
class Change:
    """A new amino acid.

    Attributes:
        site: 0-based codon.
        old: The amino acid that is there; * for a stop.
        new: The one that takes its place.
    """

    site: int
    old: str
    new: str


@dataclass(frozen=True)
class CodingSequence:
    """A coding sequence, alone or in its genome.

    Attributes:
        origin: What messages call it.
        bases: Whole codons of A, C, G and T, as they are translated.
        contig: Contig of the genome; empty for a sequence alone.
        positions: 0-based position of each base in the contig.
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
        """The codons that a change may put in the place of the one that is there.

        Args:
            change: The change.
            nearest: Only the one that changes the fewest bases; of several, the first in the
                alphabet.

        Returns:
            Codons of the new amino acid other than the one that is there, at least one.

        Raises:
            ValueError: The sequence does not have the site, or another amino acid there; or no
                other codon stands for the new one.
        """
        own = self.codon(change.site)
        number = change.site + 1
        if not own:
            raise ValueError(f"{self.origin} has {counted(len(self.bases) // 3, 'codon')}")
        if AMINO_ACIDS[own] != change.old:
            raise ValueError(
                f"codon {number} of {self.origin} is {own.decode()} ({AMINO_ACIDS[own]}), not "
                f"{change.old}; is this its coding sequence? --shift adds to all positions"
            )
        others = [codon for codon in CODONS[change.new] if codon != own]
        if not others:
            raise ValueError(f"no other codon than {own.decode()} stands for {change.new}")
        if not nearest:
            return others
        return [min(others, key=lambda codon: sum(a != b for a, b in zip(codon, own, strict=True)))]

    def windows(
        self, codons: Mapping[int, bytes], genome: Reference | None, width: int
    ) -> tuple[Window, Window] | None:
        """What the model reads without and with new codons, as the gene is read.

        Alone, the whole sequence is read; in a genome, a centred window. The allele is all that is
        between the first and the last of the codons, which all choices for a site share.

        Args:
            codons: The new codon of each site.
            genome: Has the contig; None for a sequence alone.
            width: Bases of a window of the genome.

        Returns:
            The windows; None if the codons are farther apart than half a window.
        """
        if genome is None:
            first, last = 3 * min(codons), 3 * max(codons) + 3
            new = bytearray(self.bases[first:last])
            for site, codon in codons.items():
                new[3 * site - first : 3 * site - first + 3] = codon
            before, after = self.bases[:first], self.bases[last:]
            return Window(before, self.bases[first:last], after), Window(before, bytes(new), after)
        places = {
            self.positions[3 * site + index]: base
            for site, codon in codons.items()
            for index, base in enumerate(codon)
        }
        variant = Interval(self.contig, min(places), max(places) + 1)
        new = bytearray(upper_dna(genome.fetch(variant)))
        for place, base in places.items():
            [letter] = reverse_complement(bytes([base])) if self.is_reverse else [base]
            new[place - variant.start] = letter
        pair = cut_windows(genome, variant, bytes(new), width)
        if pair is None:
            return None
        if self.is_reverse:
            return pair.reference.reverse_complement(), pair.alternate.reverse_complement()
        return pair.reference, pair.alternate


def parse_mutant(text: str, shift: int = 0) -> list[Change]:
    """Read A123T, or several changes joined by ':'; ascending by their sites.

    Args:
        text: The changes.
        shift: What to add to every position.

    Raises:
        ValueError: It is not of this form, is shifted to before the first site, or changes a site
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
        name: Of the record or the CDS; None if there is only one.
        genome: The genome of a GFF3.

    Raises:
        UserError: The file cannot be read, does not have the sequence, or this is not whole codons
            of A, C, G and T.
    """
    if is_gff(path) is not (genome is not None):
        raise UserError(
            f"--cds {path}: a GFF3 needs its genome, --reference"
            if genome is None
            else f"--cds {path}: with --reference, it must be a GFF3 with lines of the type CDS"
        )
    if genome is None:
        record = _chosen(path, name, [(record.name, record) for record in read_records(path)])
        return _checked(CodingSequence(f"{path}: {record.name}", upper_dna(record.sequence)))
    features = [(feature.name, feature) for feature in read_features(path, "CDS")]
    return _in_genome(path, _chosen(path, name, features), genome)


def _in_genome(path: Path, feature: Feature, genome: Reference) -> CodingSequence:
    origin = f"{path}: {feature.name}"
    if feature.strand not in ("+", "-"):
        raise UserError(f"{origin}: has no strand")
    contig = genome.contig(feature.contig, origin)
    if feature.end > genome.length(contig):
        raise UserError(f"{origin}: reaches beyond base {genome.length(contig):,} of {contig}")
    spans = [Interval(contig, start, end) for start, end in feature.spans]
    bases = upper_dna(b"".join(map(genome.fetch, spans)))
    positions = [place for span in spans for place in range(span.start, span.end)]
    is_reverse = feature.strand == "-"
    if is_reverse:
        bases, positions = reverse_complement(bases), positions[::-1]
    return _checked(CodingSequence(origin, bases, contig, positions, is_reverse))


def _chosen(path: Path, name: str | None, named: Sequence[tuple[str, T]]) -> T:
    """The only one, or the one of the name."""
    found = [one for own, one in named if name in (None, own)]
    if len(found) == 1:
        return found[0]
    names = list(dict.fromkeys(own for own, _ in named))
    shown = ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
    count = counted(len(found), "coding sequence") if found else "no coding sequence"
    what = f"{count} named {name!r}" if name else count
    way_out = "give one" if name and found else "choose one by --cds-name"
    raise UserError(f"--cds {path}: has {what}; {way_out}: {shown}")


def _checked(sequence: CodingSequence) -> CodingSequence:
    length = len(sequence.bases)
    if not length or length % 3:
        raise UserError(f"{sequence.origin}: {length:,} bases are not whole codons")
    if others := sequence.bases.translate(None, ACGT):
        raise UserError(
            f"{sequence.origin}: holds {others[:1].decode('latin-1')!r}; codons are of A, C, G, T"
        )
    return sequence
