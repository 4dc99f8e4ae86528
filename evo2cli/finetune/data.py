"""The examples of a run: read from its tables, cut to the window, divided, and free of leaks."""

import hashlib
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
from evo2cli.finetune.splits import FRACTIONS, Split, split
from evo2cli.finetune.tasks import Cut, Labels, SplitBy, Task
from evo2cli.genome.reference import Reference
from evo2cli.training.recipe import Recipe

CUT_WINDOW = 1024  # bases of windows that are cut from a genome, unless the user says otherwise


@dataclass(frozen=True)
class Data:
    """The examples of a run.

    Attributes:
        examples: All of them.
        labels: What their labels mean.
        split: Which of them are for what.
        leaks: What these parts share.
    """

    examples: Examples
    labels: Labels
    split: Split
    leaks: Leaks

    @property
    def train(self) -> Examples:
        """Those that the model is trained on."""
        return self.examples.take(self.split.train)

    @property
    def valid(self) -> Examples:
        """Those by which the best weights are chosen."""
        return self.examples.take(self.split.valid)

    @property
    def test(self) -> Examples:
        """Those that nothing is chosen by."""
        return self.examples.take(self.split.test)

    @property
    def longest(self) -> int:
        """Bases of the longest sequence."""
        sequences = [*self.examples.sequences, *(self.examples.pairs or [])]
        return max(map(len, sequences))

    @property
    def sizes(self) -> dict[str, int]:
        """Number of examples of each part."""
        return {part: len(rows) for part, rows in self.split.parts.items()}

    @property
    def digest(self) -> str:
        """A short hash of sequences, labels and their division."""
        found = hashlib.sha256()
        for text in (*self.examples.sequences, *(self.examples.pairs or [])):
            found.update(text.encode() + b"\n")
        for values in _arrays(self.examples.labels):
            found.update(values.tobytes())
        for rows in self.split.parts.values():
            found.update(np.asarray(rows, np.int64).tobytes())
        return found.hexdigest()[:16]


def _arrays(labels: Any) -> list[Any]:
    return labels if isinstance(labels, list) else [] if labels is None else [labels]


@dataclass(frozen=True)
class Source:
    """Where the examples of a run come from, and how they are divided.

    Attributes:
        train: A table.
        valid: A table for validation.
        test: A table for testing.
        task: The task; None to infer it from the labels.
        labels: Columns with labels.
        group: Column with groups.
        reference: Genome of a table of variants.
        split: What decides on which side an example is.
        valid_contigs: Contigs whose examples are for validation, instead of `split`.
        test_contigs: Contigs whose examples are for testing, likewise.
        fractions: Sizes of train, valid and test.
        cut: What is kept of sequences longer than the window.
        seed: Of the division.
        features: BED or GFF whose features label the bases of `train`, which is then a FASTA.
        feature_types: Their types.
        regions: BED or GFF of the parts of the FASTA that are used.
        region_type: Their type.

    Raises:
        UserError: It is divided in two ways at once, or has further tables beside a FASTA.
    """

    train: Path
    valid: Path | None = None
    test: Path | None = None
    task: Task | None = None
    labels: tuple[str, ...] = ()
    group: str | None = None
    reference: Path | None = None
    split: SplitBy | None = None
    valid_contigs: tuple[str, ...] = ()
    test_contigs: tuple[str, ...] = ()
    fractions: tuple[float, ...] = FRACTIONS
    cut: Cut = Cut.CENTRE
    seed: int = 0
    features: Path | None = None
    feature_types: tuple[str, ...] = ()
    regions: Path | None = None
    region_type: str | None = None

    def __post_init__(self) -> None:
        contigs = ",".join((*self.valid_contigs, *self.test_contigs))
        tables = {"--valid": self.valid, "--test": self.test}
        option, table = next((pair for pair in tables.items() if pair[1]), (None, None))
        if contigs and self.split is not None:
            raise UserError(
                f"--split {self.split}: the data are already divided by contigs ({contigs}); "
                "use only one of the two"
            )
        if contigs and option:
            raise UserError(
                f"{option} {table}: the data are already divided by contigs ({contigs}); use "
                "only one of the two"
            )
        if self.features is not None and option:
            raise UserError(
                f"{option} {table}: not with --features, which labels the bases of one FASTA; "
                f"divide {self.train} with --valid-contigs and --test-contigs"
            )

    @classmethod
    def of_recipe(cls, recipe: Recipe) -> "Source":
        """As a recipe says.

        Raises:
            UserError: It has several tables for one part.
        """
        tuning = recipe.finetune
        assert tuning is not None
        tables, valid = [source.path for source in recipe.data.sources], recipe.data.valid
        if len(tables) > 1 or len(valid) > 1:
            raise UserError(
                "data.sources and data.valid: can name only one table each; join "
                f"{[*tables, *valid][-1]} with the others"
            )
        return cls(
            train=tables[0],
            valid=valid[0] if valid else None,
            test=tuning.test,
            task=Task(tuning.task),
            labels=tuple(tuning.labels),
            group=tuning.group,
            reference=tuning.reference,
            split=SplitBy(tuning.split) if tuning.split else None,
            valid_contigs=tuple(tuning.valid_contigs),
            test_contigs=tuple(tuning.test_contigs),
            fractions=tuning.fractions,
            cut=Cut(tuning.cut),
            seed=recipe.seed,
            features=tuning.features,
            feature_types=comma_list(tuning.feature_type),
            regions=tuning.regions,
            region_type=tuning.region_type,
        )


def comma_list(text: str | None) -> tuple[str, ...]:
    """Words separated by commas; none for None."""
    return tuple(text.split(",")) if text else ()


def read_data(source: Source, length: int | None = None, *, quiet: bool = False) -> Data:
    """Read and divide examples.

    Args:
        source: Where they come from.
        length: Bases that sequences are cut to; None for no limit.
        quiet: Whether nothing is said about what was found.

    Raises:
        UserError: A table cannot be read, a part is empty, or parts share examples.
    """
    examples, labels, cut_line = _read(source, length)
    divided = split(
        examples,
        labels,
        by=source.split,
        contigs={"valid": source.valid_contigs, "test": source.test_contigs},
        fractions=source.fractions,
        seed=source.seed,
    )
    leaks = find_leaks(examples, divided)
    found = Data(examples, labels, divided, leaks)
    if not quiet:
        sizes = ", ".join(f"{count:,} for {part}" for part, count in found.sizes.items())
        for line in (
            labels.explanation,
            cut_line,
            f"{sizes}: {divided.explanation}",
            *leaks.report,
        ):
            if line:
                console.say(line)
    leaks.refuse()
    return found


def _read(source: Source, length: int | None) -> tuple[Examples, Labels, str | None]:
    """The examples, what their labels mean, and what to say about those that were cut."""
    if source.features is not None:
        examples, labels = read_annotated(
            source.train,
            source.features,
            length or CUT_WINDOW,
            kinds=source.feature_types,
            regions=source.regions,
            region_kind=source.region_type,
        )
        return examples, labels, None
    others = {"valid": source.valid, "test": source.test}
    given = {part: path for part, path in others.items() if path is not None}
    opened = Reference.open(source.reference) if source.reference else nullcontext(None)
    with opened as reference:
        examples, labels = read_examples(
            {"train": source.train, **given} if given else source.train,
            task=source.task,
            label_columns=source.labels,
            group_column=source.group,
            genome=None if reference is None else Genome(reference, length or CUT_WINDOW),
        )
    if length is None:
        return examples, labels, None
    examples, cut_line = fit_length(examples, length, source.cut)
    return examples, labels, cut_line
