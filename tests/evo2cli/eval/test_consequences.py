"""Consequences and INFO values, as annotators write them."""

from pathlib import Path

import pytest

from evo2cli.errors import UserError
from evo2cli.eval.annotations import read_annotated
from evo2cli.eval.consequences import TERMS, Consequence, consequences, find_key

CHROM = "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"
DECLARED = {
    "CSQ": '##INFO=<ID=CSQ,Number=.,Type=String,Description="Consequence annotations from Ensembl '
    'VEP. Format: Allele|Consequence|IMPACT|SYMBOL">\n',
    "ANN": "##INFO=<ID=ANN,Number=.,Type=String,Description=\"Functional annotations: 'Allele | "
    "Annotation | Annotation_Impact | Gene_Name' \">\n",
    "BCSQ": '##INFO=<ID=BCSQ,Number=.,Type=String,Description="Haplotype-aware consequence '
    'annotation from BCFtools/csq. Format: Consequence|gene|transcript">\n',
    "MC": '##INFO=<ID=MC,Number=.,Type=String,Description="comma separated list of molecular '
    'consequence in the form of Sequence Ontology ID|molecular_consequence">\n',
    "EFFECT": '##INFO=<ID=EFFECT,Number=A,Type=String,Description="What the allele does">\n',
}


def read(tmp_path: Path, key: str, value: str, alleles: str = "A\tC") -> list[Consequence | None]:
    path = tmp_path / "v.vcf"
    path.write_text(DECLARED[key] + CHROM + f"c\t1\t.\t{alleles}\t.\t.\t{key}={value};DB\n")
    file = read_annotated(path)
    assert find_key(file.has) == key
    return consequences(file.records[0], key, file.declared.get(key))


@pytest.mark.parametrize(
    ("key", "value", "name", "coding"),
    [
        ("CSQ", "C|intron_variant|LOW|X,C|missense_variant|MODERATE|Y", "missense_variant", True),
        ("CSQ", "C|splice_region_variant&intron_variant||", "splice_region_variant", False),
        ("CSQ", "C|splice_region_variant|LOW|X", "splice_region_variant", None),
        ("ANN", "C|stop_gained|HIGH|X,C|upstream_gene_variant|MODIFIER|Y", "stop_gained", True),
        ("BCSQ", "synonymous|X|T", "synonymous", True),
        ("MC", "SO:0001627|intron_variant,SO:0001587|nonsense", "nonsense", True),
        ("EFFECT", "Canonical_splice", "Canonical_splice", False),
        ("EFFECT", "5p_UTR", "5p_UTR", False),
        ("EFFECT", "something_else", "something_else", None),
    ],
)
def test_the_most_severe_entry_names_the_allele(
    tmp_path: Path, key: str, value: str, name: str, coding: bool | None
) -> None:
    assert read(tmp_path, key, value) == [Consequence(name, coding)]


@pytest.mark.parametrize(
    ("key", "value", "alleles", "names"),
    [
        ("EFFECT", "missense,.", "A\tC,G", ["missense", None]),
        (
            "ANN",
            "G|missense_variant||,C|stop_gained||",
            "A\tC,G",
            ["stop_gained", "missense_variant"],
        ),
        (
            "CSQ",
            "-|frameshift_variant||,TC|intron_variant||",
            "AT\tA,ATC",
            ["frameshift_variant", "intron_variant"],
        ),
    ],
)
def test_every_allele_has_its_own(
    tmp_path: Path, key: str, value: str, alleles: str, names: list[str | None]
) -> None:
    found = read(tmp_path, key, value, alleles)
    assert [consequence and consequence.name for consequence in found] == names


def test_severity_falls() -> None:
    order = ["stop_gained", "missense", "synonymous", "intron", "intergenic"]
    assert [term for term in TERMS if term in order] == order


def test_what_is_no_vcf_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "v.vcf"
    for text, message in (
        (">x\nACGT\n", "is FASTA, which holds sequences; give a VCF or a table of variants"),
        ("##fileformat=VCFv4.2\n", "no #CHROM line"),
        (CHROM + "c\tx\t.\tA\tC\t.\t.\t.\n", "line 2: not a record"),
        (CHROM + "c\t1\t.\tA\tC\n", "line 2: not a record"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=message):
            read_annotated(path)
