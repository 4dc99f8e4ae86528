"""The consequence of each allele, from what annotators write into INFO.

VEP (CSQ), SnpEff (ANN), bcftools csq (BCSQ) and ClinVar (MC) write one entry per transcript, with
fields separated by `|`; other files write only the term. The most severe term of all entries is the
consequence of the allele.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

from evo2cli.eval.annotations import Annotated, Declaration

KEYS = ("CSQ", "ANN", "BCSQ", "MC", "CONSEQUENCE", "Consequence", "EFFECT")
_FIELDS = re.compile(r"(?:Format:|annotations:)\s*'?\s*(.+)", re.IGNORECASE)
_TERM_FIELDS = ("consequence", "annotation")  # names of the field that holds the terms
_CLINVAR_FIELD = 1  # its index in MC=SO:0001583|missense_variant

# Terms of the Sequence Ontology without `_variant` and other common spellings, from the most to the
# least severe in the order of Ensembl. The value says whether the allele lies in a coding sequence;
# None where the term does not tell: a splice region, for example, reaches into the exon.
TERMS: dict[str, bool | None] = {
    "transcript_ablation": None,
    "splice_acceptor": False,
    "splice_donor": False,
    "canonical_splice": False,
    "stop_gained": True,
    "nonsense": True,
    "frameshift": True,
    "stop_lost": True,
    "start_lost": True,
    "transcript_amplification": None,
    "inframe_insertion": True,
    "inframe_deletion": True,
    "inframe_indel": True,
    "missense": True,
    "protein_altering": True,
    "splice_donor_5th_base": False,
    "splice_region": None,
    "splice_donor_region": False,
    "splice_polypyrimidine_tract": False,
    "incomplete_terminal_codon": True,
    "start_retained": True,
    "stop_retained": True,
    "synonymous": True,
    "coding_sequence": True,
    "mature_mirna": False,
    "5_prime_utr": False,
    "5p_utr": False,
    "3_prime_utr": False,
    "3p_utr": False,
    "non_coding_transcript_exon": False,
    "intron": False,
    "intronic": False,
    "nmd_transcript": False,
    "non_coding_transcript": False,
    "genic_upstream_transcript": False,
    "genic_downstream_transcript": False,
    "upstream_gene": False,
    "downstream_gene": False,
    "tf_binding_site": False,
    "regulatory_region": False,
    "intergenic": False,
}
_RANKS = {term: rank for rank, term in enumerate(TERMS)}


@dataclass(frozen=True)
class Consequence:
    """The consequence of an allele.

    Attributes:
        name: Its most severe term, as written.
        coding: Whether it lies in a coding sequence; None if no term tells.
    """

    name: str
    coding: bool | None


def find_key(has: Callable[[str], bool], *, beside: str | None = None) -> str | None:
    """The first key of consequences that a file has, other than `beside`; None without one."""
    return next((key for key in KEYS if key != beside and has(key)), None)


def consequences(
    record: Annotated, key: str, declared: Declaration | None
) -> list[Consequence | None]:
    """The consequence of each alternate allele; None where it is not annotated."""
    text = record.info.get(key, ".")
    if "|" not in text:
        values = record.values(key, declared)
        return [None if value is None else _most_severe([value]) for value in values]
    # The header names the fields: "... Format: Allele|Consequence|IMPACT".
    listed = _FIELDS.search(declared.description) if declared else None
    names = [name.strip().lower() for name in listed[1].strip(" '\"").split("|")] if listed else []
    field = next((names.index(name) for name in _TERM_FIELDS if name in names), None)
    if field is None:
        field = _CLINVAR_FIELD if text.startswith("SO:") else 0
    allele = names.index("allele") if "allele" in names else None
    entries = [entry.split("|") for entry in text.split(",")]
    entries = [entry for entry in entries if len(entry) > max(field, allele or 0)]
    found: list[Consequence | None] = []
    for alternate in record.alternates:
        # SnpEff writes the allele as ALT has it, VEP without the first base that all alleles share.
        spellings = alternate, alternate[1:] or "-"
        own = [entry for entry in entries if allele is None or entry[allele] in spellings]
        terms = [entry[field] for entry in own or entries]
        found.append(_most_severe(terms) if terms else None)
    return found


def _most_severe(entries: list[str]) -> Consequence:
    """The most severe term of all entries; an entry may join several terms by `&`."""
    terms = [term.strip() for entry in entries for term in entry.split("&")]
    plain = [term.lower().removesuffix("_variant") for term in terms]
    ranks = [_RANKS.get(term, len(TERMS)) for term in plain]
    answers = {TERMS.get(term) for term in plain}
    coding = True if True in answers else False if False in answers else None
    return Consequence(terms[ranks.index(min(ranks))], coding)
