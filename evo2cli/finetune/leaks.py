"""Detect leakage: validation or test sequences with copies or near copies in training.

Copies on either strand count. A model may memorize the label of a training sequence, so metrics on
its copies say nothing about new sequences. Exact copies are refused. Near copies (see
`evo2cli.finetune.similarity`) are reported: whether they are leaks depends on the application.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from evo2cli.errors import UserError, counted
from evo2cli.finetune.examples import Examples, LabelArrays
from evo2cli.finetune.similarity import NEAR, cluster, number_copies
from evo2cli.finetune.splits import Split


@dataclass(frozen=True)
class Leak:
    """The overlap of a split with earlier splits (train, valid, test in this order).

    Attributes:
        name: "valid" or "test".
        size: Number of its examples.
        identical: Number of examples with an identical copy in an earlier split.
        reverse: Number of further examples whose reverse complement is in an earlier split.
        near: Number of further examples with near copies, directly or through other sequences.
        first: Describes the first copy; empty if there is none.
        first_near: Describes the first near copy; empty if there is none.
    """

    name: str
    size: int
    identical: int
    reverse: int
    near: int
    first: str
    first_near: str


@dataclass(frozen=True)
class Leaks:
    """Leaks into the validation and test splits.

    Attributes:
        found: The overlap of each of them with earlier splits.
        contradictions: Number of sequences that have a copy, in any split, of a different class.
    """

    found: tuple[Leak, ...]
    contradictions: int = 0

    def refuse(self) -> None:
        """Refuse exact copies.

        Raises:
            UserError: There are exact copies.
        """
        for leak in self.found:
            if leak.identical or leak.reverse:
                raise UserError(
                    f"{leak.name}: {counted(leak.identical, 'copy', 'copies')} and "
                    f"{counted(leak.reverse, 'reverse complement')} of sequences in earlier "
                    f"splits, among {leak.size:,} (the first: {leak.first}); remove them, or "
                    "use --split cluster"
                )

    @property
    def report(self) -> list[str]:
        """A message for each of valid and test, and one for contradictions."""
        lines = []
        if self.contradictions:
            lines.append(
                f"{counted(self.contradictions, 'sequence has', 'sequences have')} copies (on "
                "either strand) with a different class, which no model can get right"
            )
        for leak in self.found:
            line = (
                f"{leak.name}: {counted(leak.identical, 'copy', 'copies')}, "
                f"{counted(leak.reverse, 'reverse complement')} and "
                f"{counted(leak.near, 'near copy', 'near copies')} (k-mer similarity {NEAR:g} or "
                f"more) of sequences in earlier splits, among {leak.size:,}"
            )
            lines.append(f"{line}; the first: {leak.first_near}" if leak.near else line)
        return lines


def find_leaks(examples: Examples, split: Split) -> Leaks:
    """Find validation sequences that are in train, and test sequences that are in either."""
    entries = examples.entries
    copies = number_copies(entries)[0].tolist()
    clusters = cluster(entries).tolist()
    earlier_copies: dict[int, list[int]] = defaultdict(list)
    earlier_clusters: dict[int, int] = {}
    names = {int(row): name for name, rows in split.parts.items() for row in rows}
    leaks = []

    def pair(name: str, row: int, other: int) -> str:
        return f"{examples.names[row]} of {name} and {examples.names[other]} of {names[other]}"

    for name, rows in split.parts.items():
        if name != "train" and len(rows):
            identical, reverse, near = [], [], []
            for row in rows.tolist():
                same = [
                    other for other in earlier_copies[copies[row]] if entries[other] == entries[row]
                ]
                if same:
                    identical.append((row, same[0]))
                elif earlier_copies[copies[row]]:
                    reverse.append((row, earlier_copies[copies[row]][0]))
                elif clusters[row] in earlier_clusters:
                    near.append((row, earlier_clusters[clusters[row]]))
            leaks.append(
                Leak(
                    name,
                    len(rows),
                    len(identical),
                    len(reverse),
                    len(near),
                    *(
                        pair(name, *pairs[0]) if pairs else ""
                        for pairs in (identical + reverse, near)
                    ),
                )
            )
        for row in rows.tolist():
            earlier_copies[copies[row]].append(row)
            earlier_clusters.setdefault(clusters[row], row)
    return Leaks(tuple(leaks), _count_contradictions(copies, examples.labels))


def _count_contradictions(copies: Sequence[int], labels: LabelArrays | None) -> int:
    """Number of sequences with copies of a different class; 0 if labels are not single classes."""
    if not isinstance(labels, np.ndarray) or labels.ndim != 1:
        return 0
    classes: dict[int, set[int]] = defaultdict(set)
    for number, label in zip(copies, labels.tolist(), strict=True):
        classes[number].add(label)
    return sum(len(classes[number]) > 1 for number in copies)
