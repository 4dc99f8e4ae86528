"""Variants as people write them: chr22-1024-A-C, chr22:1024:A>C, chr22:g.1024A>C."""

import re

from evo2cli.errors import UserError
from evo2cli.genome.alphabet import LETTERS
from evo2cli.genome.vcf import VariantRecord

_BASES = f"[Uu{LETTERS.decode()}]+"
_VARIANT = re.compile(
    rf"(?P<contig>\S+)[-:](?:g\.)?(?P<position>\d+)[-:]?"
    rf"(?P<reference>{_BASES})[->:](?P<alternates>{_BASES}(?:,{_BASES})*)"
)


def is_variant_name(text: str) -> bool:
    """Whether `text` is a variant as `read_variant_name` takes it."""
    return _VARIANT.fullmatch(text) is not None


def read_variant_name(text: str) -> VariantRecord:
    """Read a variant; its position is 1-based.

    Raises:
        UserError: It is written in no way known here.
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
