"""Split examples into training, validation and test sets.

Examples of the same chromosome, group or cluster form a unit, which is never divided. Units are
assigned greedily in a random order, each to the split that lacks the most examples, so that the
sizes come close to the requested fractions.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from evo2cli.errors import UserError, counted, listed
from evo2cli.finetune.examples import SPLITS, Examples
from evo2cli.finetune.similarity import cluster, number_copies
from evo2cli.finetune.tasks import Labels, SplitBy, Task
from evo2cli.genome.contig_names import plain_name

FRACTIONS = (0.8, 0.1, 0.1)  # of train, valid and test
MIN_CHROMOSOMES = 5  # with fewer, splitting by chromosome is too coarse to be the default
NO_CONTIGS: Mapping[str, Sequence[str]] = MappingProxyType({})

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Split:
    """The rows of each split, ascending; each row is in exactly one split.

    Attributes:
        train: Rows to train on.
        valid: Rows to choose the best checkpoint by.
        test: Rows to report metrics on; may be empty if the data define their own split.
        explanation: A message about how the rows were split.
    """

    train: Indices
    valid: Indices
    test: Indices
    explanation: str = ""

    @property
    def parts(self) -> dict[str, Indices]:
        """The rows by the name of their split."""
        return {"train": self.train, "valid": self.valid, "test": self.test}


def split(
    examples: Examples,
    labels: Labels,
    *,
    by: SplitBy | None = None,
    contigs: Mapping[str, Sequence[str]] = NO_CONTIGS,
    fractions: Sequence[float] = FRACTIONS,
    seed: int = 0,
) -> Split:
    """Split examples.

    Args:
        examples: The examples.
        labels: Task and classes.
        by: How to split; None for `usual_split`.
        contigs: Contigs, under any of their names, of "valid" and of "test". If there are any, they
            define the split, and all other examples are for train.
        fractions: Requested fractions of train, valid and test; their sum is 1.
        seed: Random seed; has no effect on a split by column.

    Raises:
        UserError: The data have no column to split by, or a split is empty or lacks classes.
    """
    if by is None:
        by = usual_split(examples)
    if any(contigs.values()):
        listing = ", ".join(
            f"{','.join(names)} for {part}" for part, names in contigs.items() if names
        )
        parts_by_contig = _parts_by_contig(examples, contigs)
        explanation = f"split by contig: {listing}"
        result = _as_named(examples, parts_by_contig, explanation, fractions, seed)
    elif by is SplitBy.COLUMN:
        if examples.split is None:
            raise UserError("--split column: the table has no column 'split'")
        result = _as_named(examples, examples.split, "split by column", fractions, seed)
    else:
        units, summary = units_of(examples, by)
        strata = _strata(examples, labels) if by is SplitBy.RANDOM else None
        parts = _assign(units, fractions, seed, strata)
        train, valid, test = (np.flatnonzero(parts == part) for part in range(len(SPLITS)))
        for name, fraction, rows in zip(SPLITS, fractions, (train, valid, test), strict=True):
            if fraction > 0 and not len(rows):
                raise UserError(
                    f"--split {by}: {summary} are too few for a {name} split; choose another "
                    "--split"
                )
        result = Split(train, valid, test, f"split by {by} (seed {seed}): {summary}")
    check_split(examples, labels, result)
    return result


def usual_split(examples: Examples) -> SplitBy:
    """The default: by column, else group, else enough chromosomes, else cluster."""
    if examples.split is not None:
        return SplitBy.COLUMN
    if examples.groups is not None:
        return SplitBy.GROUP
    if examples.chromosomes is not None and len(set(examples.chromosomes)) >= MIN_CHROMOSOMES:
        return SplitBy.CHROMOSOME
    return SplitBy.CLUSTER


def units_of(examples: Examples, by: SplitBy) -> tuple[Indices, str]:
    """The unit number [N] of each example, and a description of the units.

    Raises:
        UserError: The column is missing or has empty cells.
    """
    if by is SplitBy.RANDOM:
        return number_copies(examples.entries)[0], f"{len(examples):,} sequences"
    if by is SplitBy.CLUSTER:
        units = cluster(examples.entries)
        counts = np.bincount(units)
        share = counts.max() / len(units)
        clusters = counted(len(counts), "cluster")
        return units, f"{clusters}, the largest with {share:.1%} of the sequences"
    names = examples.groups
    if by is SplitBy.CHROMOSOME:
        chromosomes = examples.chromosomes
        names = None if chromosomes is None else [plain_name(name) for name in chromosomes]
    if names is None or "" in names:
        column = "chrom" if by is SplitBy.CHROMOSOME else "group"
        raise UserError(f"--split {by}: the table has no column {column!r}, or it has empty cells")
    numbers: dict[str, int] = {}
    units = np.array([numbers.setdefault(name, len(numbers)) for name in names], np.int64)
    return units, f"{len(numbers):,} {by}s ({listed(numbers)})"


def check_split(examples: Examples, labels: Labels, proposed: Split) -> None:
    """Refuse a split that cannot be trained or evaluated on.

    Raises:
        UserError: Train or valid is empty, train lacks a class, or a split has only one class.
    """
    for name, rows in proposed.parts.items():
        if not len(rows):
            if name == "test":
                continue
            raise UserError(f"the {name} split is empty; {proposed.explanation}")
        counts = class_counts(examples, labels, rows)
        missing = [label for label, count in counts.items() if not count]
        if name == "train" and missing:
            raise UserError(
                f"the training split has no example of {listed(missing)}; add examples, or "
                "split in another way (--split, --seed)"
            )
        if labels.task is not Task.MULTILABEL and counts and len(missing) == len(counts) - 1:
            present = next(label for label, count in counts.items() if count)
            raise UserError(
                f"the {name} split has only examples of {present}, and none of "
                f"{listed(missing)}; split in another way (--split, --seed)"
            )
    if labels.task is Task.REGRESS and isinstance(examples.labels, np.ndarray):
        for name, values in zip(labels.classes, examples.labels[proposed.train].T, strict=True):
            if (values == values[0]).all():
                raise UserError(
                    f"{name} is {values[0]:g} in all training examples; there is nothing to learn"
                )


def class_counts(examples: Examples, labels: Labels, rows: Sequence[int] | Indices) -> Counter[str]:
    """Number of examples, or bases, of each class in these rows; empty for numbers."""
    values = examples.labels
    counts = np.zeros(len(labels.classes), np.int64)
    if labels.task is Task.TOKENS and isinstance(values, list):
        for row in rows:
            counts += np.bincount(values[row][values[row] >= 0], minlength=len(counts))
    elif labels.task is Task.CLASSIFY and isinstance(values, np.ndarray):
        counts = np.bincount(values[rows], minlength=len(counts))
    elif labels.task is Task.MULTILABEL and isinstance(values, np.ndarray):
        counts = values[rows].sum(axis=0).astype(np.int64)
    else:
        return Counter()
    return Counter(dict(zip(labels.classes, counts.tolist(), strict=True)))


def _parts_by_contig(examples: Examples, contigs: Mapping[str, Sequence[str]]) -> list[str]:
    """The split of each example: the one that its contig was given for, otherwise train.

    Raises:
        UserError: The examples have no contigs, or not this one; or it is given for two splits.
    """
    names = examples.chromosomes or []
    plain_names = [plain_name(name) for name in names]
    known = set(plain_names)
    of_contig: dict[str, str] = {}
    for part, name in ((part, name) for part, given in contigs.items() for name in given):
        option, plain = f"--{part}-contigs {name}", plain_name(name)
        if not known or "" in known:
            raise UserError(f"{option}: the table has no column 'chrom', or it has empty cells")
        if plain not in known:
            distinct = listed(dict.fromkeys(names))
            raise UserError(f"{option}: no sequence is on this contig; they are on {distinct}")
        if of_contig.setdefault(plain, part) != part:
            raise UserError(f"{option}: is already used for {of_contig[plain]}; give it only once")
    return [of_contig.get(plain, "train") for plain in plain_names]


def _as_named(
    examples: Examples,
    given: Sequence[str],
    explanation: str,
    fractions: Sequence[float],
    seed: int,
) -> Split:
    """The split by the name of each example; if none is "valid", it is taken from train."""
    names = np.array(given)
    train, valid, test = (np.flatnonzero(names == name) for name in SPLITS)
    if not len(valid) and len(train):
        rest = examples.take(train)
        by = SplitBy.CLUSTER if rest.groups is None else SplitBy.GROUP
        units, summary = units_of(rest, by)
        share = fractions[1] / (fractions[0] + fractions[1])
        parts = _assign(units, [1 - share, share], seed, None)
        explanation += (
            f"; it has no validation split, so {share:.0%} of the training split are used, "
            f"by {by} (seed {seed}): {summary}"
        )
        train, valid = train[parts == 0], train[parts == 1]
    return Split(train, valid, test, explanation)


def _strata(examples: Examples, labels: Labels) -> Indices | None:
    """The class of each example, if it has one."""
    if labels.task is Task.CLASSIFY and isinstance(examples.labels, np.ndarray):
        return examples.labels
    return None


def _assign(
    units: Indices, fractions: Sequence[float], seed: int, strata: Indices | None
) -> Indices:
    """The split [N] of each row; units are not divided, and strata have the same fractions.

    A unit belongs to the stratum of its first row.
    """
    sizes = np.bincount(units)
    _, firsts = np.unique(units, return_index=True)
    stratum = np.zeros(len(sizes), np.int64) if strata is None else strata[firsts]
    parts = np.zeros(len(sizes), np.int64)
    generator = np.random.default_rng(seed)
    for chosen in np.unique(stratum):
        members = generator.permutation(np.flatnonzero(stratum == chosen))
        lacking = np.array(fractions) * sizes[members].sum()
        is_empty = lacking > 0
        for index, unit in enumerate(members):
            remaining = len(members) - index
            open_to = is_empty if remaining <= is_empty.sum() else lacking > -np.inf
            part = int(np.argmax(np.where(open_to, lacking, -np.inf)))
            parts[unit] = part
            lacking[part] -= sizes[unit]
            is_empty[part] = False
    return parts[units]
