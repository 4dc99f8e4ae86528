"""Variants written as one word: chr22-1024-A-C, chr22:1024:A>C, or HGVS: NC_000022.11:g.1024A>C.

Positions are 1-based. Of HGVS all genomic changes of known bases are read (substitution, deletion,
duplication, insertion, deletion-insertion, inversion); what needs another source than the genome,
such as positions in a transcript or rs numbers, is refused.
"""

import re

from evo2cli.errors import UserError
from evo2cli.genome.alphabet import LETTERS, reverse_complement, upper_dna
from evo2cli.genome.interval import Interval
from evo2cli.genome.reference import Reference
from evo2cli.genome.vcf import VariantRecord

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
# What does not name a place of the genome: how it is written, and what it is.
_ELSEWHERE = {
    re.compile(r"rs\d+"): "an rs number of dbSNP",
    re.compile(r"[VRS]CV\d+(\.\d+)?"): "an accession of ClinVar",
    re.compile(r"\S+:[cnr]\.\S+"): "a position in a transcript",
    re.compile(r"\S+:p\.\S+"): "a position in a protein",
}


def is_variant_name(text: str) -> bool:
    """Whether `text` names a variant, also one that `read_variant_name` refuses."""
    return any(form.fullmatch(text) for form in (_VARIANT, _OTHER_HGVS, *_ELSEWHERE))


def read_variant_name(text: str, genome: Reference | None = None) -> VariantRecord:
    """Read a variant from one word.

    Args:
        text: The word.
        genome: The genome, which has the bases that HGVS leaves out.

    Raises:
        UserError: It is written in another way, or needs another genome.
    """
    for form, what in _ELSEWHERE.items():
        if form.fullmatch(text):
            raise UserError(
                f"{text}: is {what}, which needs more than the genome; give the place in the "
                "genome, as NC_000017.11:g.43044295G>A or chr17-43044295-G-A (Ensembl's VEP, "
                "VariantValidator and ClinVar tell it)"
            )
    if hgvs := _HGVS.fullmatch(text):
        return _read_hgvs(text, hgvs, genome)
    found = _VARIANT.fullmatch(text)
    if found is not None and int(found["position"]) > 0:
        return VariantRecord.from_columns(
            found["contig"], int(found["position"]), found["reference"], found["alternates"]
        )
    if found is None and _OTHER_HGVS.fullmatch(text):
        raise UserError(
            f"{text}: of HGVS only substitutions, del, ins, delins, dup and inv of written bases "
            "are read; write others as chr22-1024-A-C, with 1-based positions"
        )
    raise UserError(
        f"{text}: neither a file nor a variant; write variants as chr22-1024-A-C, chr22:1024:A>C "
        "or NC_000022.11:g.1024A>C, with 1-based positions"
    )


def _read_hgvs(text: str, found: re.Match[str], genome: Reference | None) -> VariantRecord:
    """A change of HGVS as a record of a VCF: left-aligned, with the base before what is missing.

    Raises:
        UserError: The genome is missing, does not have the bases, or has others than are written.
    """
    if genome is None:
        raise UserError(f"{text}: needs the genome, to know the bases that change")
    contig = genome.contig(found["contig"], text)
    length = genome.length(contig)
    first = int(found["first"])
    last = int(found["last"] or first)
    if not 1 <= first <= last <= length:
        raise UserError(f"{text}: needs 1 <= from <= to <= {length:,}, where {contig} ends")
    kind = found["kind"] or found["changed"]
    if kind == "ins" and last != first + 1:
        raise UserError(f"{text}: an insertion lies between two neighbouring bases, e.g. 7_8insA")

    def bases(start: int, end: int) -> bytes:
        return upper_dna(genome.fetch(Interval(contig, start, end)))

    start, old = first - 1, bases(first - 1, last)
    if found["old"] and upper_dna(found["old"].encode()) != old:
        raise UserError(f"{text}: the reference has {old.decode()} there; is it the right build?")
    new = upper_dna((found["new"] or "").encode())
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
        # As VCF asks, at the first base of a contig it is the base after the change.
        after = b"" if start else bases(len(old), min(len(old) + 1, length))
        start, old, new = start - len(before), before + old + after, before + new + after
    if not new:
        raise UserError(f"{text}: nothing would be left of {contig}")
    return VariantRecord.from_columns(contig, start + 1, old.decode(), new.decode())
