"""Labels of variants: their INFO key, and which values are positive or negative."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

_SEPARATORS = re.compile(r"[/|,&]")  # between the terms of one value


@dataclass(frozen=True)
class Labels:
    """Labels of two classes.

    Attributes:
        key: INFO key.
        positive: Values of variants that should score high.
        negative: Values of variants that should score low.
    """

    key: str
    positive: tuple[str, ...]
    negative: tuple[str, ...]

    @property
    def in_both(self) -> list[str]:
        """Values that are listed as both positive and negative, an error."""
        return sorted(_normalized(self.positive) & _normalized(self.negative))

    def classify(self, value: str | None) -> bool | None:
        """Whether an INFO value is positive; None if it is neither positive nor negative, or both.

        A value may hold several terms, e.g. "Pathogenic/Likely_pathogenic|drug_response".
        """
        terms = _normalized(_SEPARATORS.split(value or ""))
        is_positive = not terms.isdisjoint(_normalized(self.positive))
        is_negative = not terms.isdisjoint(_normalized(self.negative))
        return None if is_positive == is_negative else is_positive


def _normalized(terms: Iterable[str]) -> set[str]:
    return {term.strip("_ ").lower() for term in terms}


@dataclass(frozen=True)
class Allele:
    """A scored and labelled allele, and the groups (kind, name) that it belongs to."""

    delta: float
    positive: bool
    groups: tuple[tuple[str, str], ...]


class Preset(StrEnum):
    """Data sets with predefined labels.

    BRCA1: saturation genome editing. Findlay et al. 2018 (doi:10.1038/s41586-018-0461-z) call a
        variant functional (FUNC), intermediate (INT) or loss of function (LOF); positives are LOF,
        negatives the other two, as in the Evo 2 paper.
    CLINVAR: (likely) pathogenic against (likely) benign.
    """

    BRCA1 = "brca1"
    CLINVAR = "clinvar"

    @property
    def labels(self) -> Labels:
        """The labels of the data set."""
        return _LABELS[self]


_LABELS = {
    Preset.BRCA1: Labels("CLASS", ("LOF",), ("FUNC", "INT")),
    Preset.CLINVAR: Labels(
        "CLNSIG", ("Pathogenic", "Likely_pathogenic"), ("Benign", "Likely_benign")
    ),
}
