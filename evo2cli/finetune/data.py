"""Load the examples of a run: read tables, crop to the window, split, and check for leaks."""

import hashlib
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from evo2cli import console
from evo2cli.errors import UserError
from evo2cli.finetune.annotations import read_annotated
from evo2cli.finetune.examples import Examples, Genome, fit_length, read_examples
from evo2cli.finetune.leaks import Leaks, find_leaks
from evo2cli.finetune.splits import Split, split
from evo2cli.finetune.tasks import Cut, Labels, SplitBy, Task
from evo2cli.genome.reference import Reference
from evo2cli.training.recipe import Count, Data, LabelledData, Recipe, Seed, Table

CUT_WINDOW = 1024  # default length, in bases, of windows from a genome


@dataclass(frozen=True)
class DataSet:
    """The examples of a run, and their split.

    Attributes:
        examples: All examples.
        labels: Task and classes.
        split: The rows of the training, validation and test sets.
        leaks: Sequences that these sets share.
    """

    examples: Examples
    labels: Labels
    split: Split
    leaks: Leaks

    @property
    def train(self) -> Examples:
        """The training set."""
        return self.examples.take(self.split.train)

    @property
    def valid(self) -> Examples:
        """The validation set, by which the best weights are chosen."""
        return self.examples.take(self.split.valid)

    @property
    def test(self) -> Examples:
        """The test set, by which nothing is chosen."""
        return self.examples.take(self.split.test)

    @property
    def longest(self) -> int:
        """Bases of the longest sequence."""
        sequences = [*self.examples.sequences, *(self.examples.pairs or [])]
        return max(map(len, sequences))

    @property
    def sizes(self) -> dict[str, int]:
        """Number of examples in each set."""
        return {part: len(rows) for part, rows in self.split.parts.items()}

    @property
    def digest(self) -> str:
        """A short hash of sequences, labels and split."""
        digest = hashlib.sha256()
        for text in (*self.examples.sequences, *(self.examples.pairs or [])):
            digest.update(text.encode() + b"\n")
        for values in _arrays(self.examples.labels):
            digest.update(values.tobytes())
        for rows in self.split.parts.values():
            digest.update(np.asarray(rows, np.int64).tobytes())
        return digest.hexdigest()[:16]


def _arrays(labels: Any) -> list[Any]:
    return labels if isinstance(labels, list) else [] if labels is None else [labels]


class Window(Table, extra="ignore"):
    """The keys of [batch] that concern the window."""

    length: Count | None = None  # bases; None for the default


class DataRecipe(Table, extra="ignore"):
    """The part of a recipe that is needed to read the examples; the rest may depend on them."""

    seed: Seed = 0
    data: Data
    batch: Window = Window()
    finetune: LabelledData = LabelledData()

    @classmethod
    def of(cls, recipe: Recipe) -> "DataRecipe":
        """Extract it from a whole recipe."""
        return cls.model_validate(recipe.model_dump())


def comma_list(text: str | None) -> tuple[str, ...]:
    """Parse comma-separated words; empty for None."""
    return tuple(text.split(",")) if text else ()


def read_data(recipe: DataRecipe, limit: int | None = None, *, quiet: bool = False) -> DataSet:
    """Read and split examples.

    Args:
        recipe: Sources of the examples, and how to split them.
        limit: Maximum length in bases if the recipe has no `batch.length`; None for no limit.
        quiet: Do not report task, split and leaks.

    Raises:
        UserError: A table cannot be read, a set is empty, sets share examples, or the recipe splits
            them in two ways at once.
    """
    tuning, tables = recipe.finetune, _tables(recipe)
    examples, labels, cut_line = _read(tuning, tables, recipe.batch.length or limit)
    parts = split(
        examples,
        labels,
        by=SplitBy(tuning.split) if tuning.split else None,
        contigs={"valid": tuning.valid_contigs, "test": tuning.test_contigs},
        fractions=tuning.fractions,
        seed=recipe.seed,
    )
    leaks = find_leaks(examples, parts)
    data = DataSet(examples, labels, parts, leaks)
    if not quiet:
        sizes = ", ".join(f"{count:,} for {part}" for part, count in data.sizes.items())
        for line in (
            labels.explanation,
            cut_line,
            f"{sizes}: {parts.explanation}",
            *leaks.report,
        ):
            if line:
                console.say(line)
    leaks.refuse()
    return data


def _tables(recipe: DataRecipe) -> dict[str, Path]:
    """The training table, and those of validation and test if there are any.

    Raises:
        UserError: A set has several tables, or the recipe splits examples in two ways at once.
    """
    train, valid = [source.path for source in recipe.data.sources], recipe.data.valid
    if len(train) > 1 or len(valid) > 1:
        raise UserError(
            "data.sources and data.valid: can name only one table each; join "
            f"{[*train, *valid][-1]} with the others"
        )
    tuning = recipe.finetune
    tables = {"train": train[0]}
    if valid:
        tables["valid"] = valid[0]
    if tuning.test is not None:
        tables["test"] = tuning.test
    contigs = ",".join((*tuning.valid_contigs, *tuning.test_contigs))
    if contigs and tuning.split is not None:
        raise UserError(
            f"--split {tuning.split}: the data are already split by contigs ({contigs}); "
            "use only one of the two"
        )
    part = next((part for part in ("valid", "test") if part in tables), None)
    if contigs and part:
        raise UserError(
            f"--{part} {tables[part]}: the data are already split by contigs ({contigs}); use "
            "only one of the two"
        )
    if tuning.features is not None and part:
        raise UserError(
            f"--{part} {tables[part]}: not with --features, which labels the bases of one FASTA; "
            f"split {train[0]} with --valid-contigs and --test-contigs"
        )
    return tables


def _read(
    tuning: LabelledData, tables: Mapping[str, Path], length: int | None
) -> tuple[Examples, Labels, str | None]:
    """The examples, their task and classes, and a message about those that were cropped."""
    if tuning.features is not None:
        examples, labels = read_annotated(
            tables["train"],
            tuning.features,
            length or CUT_WINDOW,
            kinds=comma_list(tuning.feature_type),
            regions=tuning.regions,
            region_kind=tuning.region_type,
        )
        return examples, labels, None
    opened = Reference.open(tuning.reference) if tuning.reference else nullcontext(None)
    with opened as reference:
        examples, labels = read_examples(
            tables if len(tables) > 1 else tables["train"],
            task=Task(tuning.task) if tuning.task else None,
            label_columns=tuning.labels,
            group_column=tuning.group,
            genome=None if reference is None else Genome(reference, length or CUT_WINDOW),
        )
    if length is None:
        return examples, labels, None
    examples, cut_line = fit_length(examples, length, Cut(tuning.cut))
    return examples, labels, cut_line
