"""Consequences that annotators write into INFO, one name an allele.

VEP (CSQ), SnpEff (ANN), bcftools csq (BCSQ) and ClinVar (MC) write one entry a transcript, fields
separated by `|`; other files write the term alone. The most severe of all entries names the allele.
"""

import re
from dataclasses import dataclass

from evo2cli.eval.annotations import Annotated, AnnotatedFile, Declaration

KEYS = ("CSQ", "ANN", "BCSQ", "MC", "CONSEQUENCE", "Consequence", "EFFECT")
_FIELDS = re.compile(r"(?:Format:|annotations:)\s*'?\s*(.+)", re.IGNORECASE)
_COLUMNS = ("consequence", "annotation")  # what annotators call the field that holds terms
_OF_CLINVAR = 1  # MC=SO:0001583|missense_variant

# Terms of the Sequence Ontology, `_variant` left out, and other spellings in use, from the most
# severe on, as Ensembl orders them. Each says whether the allele lies in a coding sequence, or
# nothing about it: a splice region reaches into the exon.
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
    """What an allele does.

    Attributes:
        name: Its most severe term, as written.
        coding: Whether a term says that it lies in a coding sequence; None where none can tell.
    """

    name: str
    coding: bool | None


def find_key(file: AnnotatedFile, *, beside: str = "") -> str | None:
    """The INFO key that holds consequences, another than `beside`, or None."""
    return next((key for key in KEYS if key != beside and file.has(key)), None)


def consequences(
    record: Annotated, key: str, declared: Declaration | None
) -> list[Consequence | None]:
    """The consequence of each allele, None where nothing is said of it."""
    text = record.info.get(key, ".")
    if "|" not in text:
        values = record.values(key, declared)
        return [None if value is None else _worst([value]) for value in values]
    names = [name.strip().lower() for name in _names(declared)]
    column = next((names.index(name) for name in _COLUMNS if name in names), None)
    if column is None:
        column = _OF_CLINVAR if text.startswith("SO:") else 0
    entries = [entry.split("|") for entry in text.split(",")]
    entries = [entry for entry in entries if len(entry) > column]
    allele = names.index("allele") if "allele" in names else None
    found: list[Consequence | None] = []
    for alternate in record.alternates:
        own = [e for e in entries if allele is None or e[allele] in _spellings(alternate)]
        terms = [entry[column] for entry in own or entries]
        found.append(_worst(terms) if terms else None)
    return found


def _names(declared: Declaration | None) -> list[str]:
    """The fields of an entry, as the header names them."""
    found = _FIELDS.search(declared.description) if declared else None
    return found[1].strip(" '\"").split("|") if found else []


def _spellings(alternate: str) -> tuple[str, ...]:
    """An allele as annotators write it: SnpEff whole, VEP without a first base that all share."""
    return alternate, alternate[1:] or "-"


def _worst(entries: list[str]) -> Consequence:
    """The most severe of the terms, which `&` may join."""
    terms = [term.strip() for entry in entries for term in entry.split("&")]
    plain = [term.lower().removesuffix("_variant") for term in terms]
    ranks = [_RANKS.get(term, len(TERMS)) for term in plain]
    told = {TERMS.get(term) for term in plain}
    coding = True if True in told else False if False in told else None
    return Consequence(terms[ranks.index(min(ranks))], coding)
