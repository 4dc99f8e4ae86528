"""The consequence of each allele, from the INFO fields of variant annotators.

VEP (CSQ), SnpEff (ANN), bcftools csq (BCSQ) and ClinVar (MC) write one entry per transcript, with
fields separated by `|`; other files write only the term. The consequence of an allele is the most
severe term of all its entries.
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
# least severe in the order of Ensembl. The value is whether the allele is in a coding sequence, or
# None if the term does not imply it: a splice region, for example, extends into the exon.
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
        coding: Whether it is in a coding sequence; None if no term implies it.
    """

    name: str
    coding: bool | None


def find_key(has: Callable[[str], bool], *, beside: str | None = None) -> str | None:
    """The first consequence key in a file, other than `beside`; None if there is none."""
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
    result: list[Consequence | None] = []
    for alternate in record.alternates:
        # SnpEff writes the allele as ALT has it, VEP without the first base that all alleles share.
        spellings = alternate, alternate[1:] or "-"
        matching = [entry for entry in entries if allele is None or entry[allele] in spellings]
        terms = [entry[field] for entry in matching or entries]
        result.append(_most_severe(terms) if terms else None)
    return result


def _most_severe(entries: list[str]) -> Consequence:
    """The most severe term of all entries; `&` joins several terms of an entry."""
    terms = [term.strip() for entry in entries for term in entry.split("&")]
    plain = [term.lower().removesuffix("_variant") for term in terms]
    ranks = [_RANKS.get(term, len(TERMS)) for term in plain]
    is_coding = {TERMS.get(term) for term in plain}
    coding = True if True in is_coding else False if False in is_coding else None
    return Consequence(terms[ranks.index(min(ranks))], coding)
