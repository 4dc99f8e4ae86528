"""Variants written as one word: chr22-1024-A-C, chr22:1024:A>C, chr22:g.1024A>C (1-based)."""

import re

from evo2cli.errors import UserError
from evo2cli.genome.alphabet import LETTERS
from evo2cli.genome.vcf import VariantRecord

_BASES = f"[Uu{LETTERS.decode()}]+"
_VARIANT = re.compile(
    rf"(?P<contig>\S+)[-:](?:g\.)?(?P<position>\d{{1,18}})[-:]?"
    rf"(?P<reference>{_BASES})[->:](?P<alternates>{_BASES}(?:,{_BASES})*)"
)


def is_variant_name(text: str) -> bool:
    """Whether `read_variant_name` can read `text`."""
    return _VARIANT.fullmatch(text) is not None


def read_variant_name(text: str) -> VariantRecord:
    """Read a variant from one word.

    Raises:
        UserError: It is written in another way.
    """
    found = _VARIANT.fullmatch(text)
    if found is None or int(found["position"]) < 1:
        raise UserError(
            f"{text}: neither a file nor a variant; write variants as chr22-1024-A-C or "
            "chr22:1024:A>C, with 1-based positions"
        )
    return VariantRecord.from_columns(
        found["contig"], int(found["position"]), found["reference"], found["alternates"]
    )
