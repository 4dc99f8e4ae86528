"""Variants written as one word: chr22-1024-A-C, chr22:1024:A>C, or HGVS: NC_000022.11:g.1024A>C.

Positions are 1-based. All genomic changes of HGVS with known bases are read: substitution,
deletion, duplication, insertion, deletion-insertion, inversion. Names that need another source than
the genome, such as positions in a transcript or rs numbers, are refused.
"""

import re

from evo2cli.errors import UserError
from evo2cli.genome.alphabet import LETTERS, reverse_complement, upper_dna
from evo2cli.genome.interval import Interval
from evo2cli.genome.reference import Reference
from evo2cli.genome.vcf import VariantRecord

NOTATIONS = (
    "write variants as chr22-1024-A-C, chr22:1024:A>C or NC_000022.11:g.1024A>C, with 1-based "
    "positions"
)
_BASES = f"[Uu{LETTERS.decode()}]+"
_VARIANT = re.compile(
    rf"(?P<contig>\S+)[-:](?:[gm]\.)?(?P<position>[0-9]{{1,18}})[-:]?"
    rf"(?P<reference>{_BASES})[->:](?P<alternates>{_BASES}(?:,{_BASES})*)"
)
_HGVS = re.compile(
    r"(?P<contig>\S+):[gm]\.(?P<first>[0-9]{1,18})(?:_(?P<last>[0-9]{1,18}))?"
    rf"(?:(?P<kind>del|dup|inv)(?P<old>{_BASES})?|(?P<changed>ins|delins)(?P<new>{_BASES}))"
)
_OTHER_HGVS = re.compile(r"\S+:[gm]\.\S+")
# Names without a position in the genome: their form, and what they are.
_NOT_GENOMIC = {
    re.compile(r"rs\d+"): "an rs number of dbSNP",
    re.compile(r"[VRS]CV\d+(\.\d+)?"): "an accession of ClinVar",
    re.compile(r"\S+:[cnr]\.\S+"): "a position in a transcript",
    re.compile(r"\S+:p\.\S+"): "a position in a protein",
}


def is_variant_name(text: str) -> bool:
    """Whether `text` looks like a variant, including those that `read_variant_name` refuses."""
    return any(form.fullmatch(text) for form in (_VARIANT, _OTHER_HGVS, *_NOT_GENOMIC))


def read_variant_name(text: str, genome: Reference | None = None) -> VariantRecord:
    """Parse a variant.

    Args:
        text: The variant as one word.
        genome: The genome, for the bases that HGVS leaves out.

    Raises:
        UserError: It is not a variant, or the genome does not have its bases.
    """
    for form, what in _NOT_GENOMIC.items():
        if form.fullmatch(text):
            raise UserError(
                f"{text}: is {what}, which needs more than the genome; give the place in the "
                "genome, as NC_000017.11:g.43044295G>A or chr17-43044295-G-A (Ensembl's VEP, "
                "VariantValidator and ClinVar show it)"
            )
    if hgvs := _HGVS.fullmatch(text):
        return _read_hgvs(text, hgvs, genome)
    match = _VARIANT.fullmatch(text)
    if match is not None and int(match["position"]) > 0:
        return VariantRecord.from_columns(
            match["contig"], int(match["position"]), match["reference"], match["alternates"]
        )
    if match is None and _OTHER_HGVS.fullmatch(text):
        raise UserError(
            f"{text}: of HGVS only substitutions, del, ins, delins, dup and inv of written bases "
            "are read; write others as chr22-1024-A-C, with 1-based positions"
        )
    raise UserError(f"{text}: not a variant; {NOTATIONS}")


def _read_hgvs(text: str, match: re.Match[str], genome: Reference | None) -> VariantRecord:
    """Convert HGVS to a VCF record: left-aligned, and anchored by the base before an indel.

    Raises:
        UserError: The genome is missing, does not have the bases, or has others than are written.
    """
    if genome is None:
        raise UserError(f"{text}: needs the genome, to know the bases that change")
    contig = genome.contig(match["contig"], text)
    length = genome.length(contig)
    first = int(match["first"])
    last = int(match["last"] or first)
    if not 1 <= first <= last <= length:
        raise UserError(f"{text}: needs 1 <= from <= to <= {length:,}, where {contig} ends")
    kind = match["kind"] or match["changed"]
    if kind == "ins" and last != first + 1:
        raise UserError(f"{text}: an insertion lies between two neighbouring bases, e.g. 7_8insA")

    def bases(start: int, end: int) -> bytes:
        return upper_dna(genome.fetch(Interval(contig, start, end)))

    start, old = first - 1, bases(first - 1, last)
    if match["old"] and upper_dna(match["old"].encode()) != old:
        raise UserError(f"{text}: the reference has {old.decode()} there; is it the right build?")
    new = upper_dna((match["new"] or "").encode())
    if kind == "inv":
        new = reverse_complement(old)
    elif kind == "dup":
        old, new = b"", old
    elif kind == "ins":
        start, old = first, b""
    if not (old and new):
        while start and bases(start - 1, start) == (old or new)[-1:]:
            start, old, new = start - 1, old[-1:] + old[:-1], new[-1:] + new[:-1]
        before = bases(start - 1, start) if start else b""
        # At the first base of a contig, the VCF specification takes the base after the change.
        after = b"" if start else bases(len(old), min(len(old) + 1, length))
        start, old, new = start - len(before), before + old + after, before + new + after
    if not new:
        raise UserError(f"{text}: nothing would be left of {contig}")
    return VariantRecord.from_columns(contig, start + 1, old.decode(), new.decode())
