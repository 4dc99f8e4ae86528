"""The examples of a run: read from its tables, cut to the window, divided, and free of leaks."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from evo2cli import console
from evo2cli.errors import UserError
from evo2cli.finetune.examples import Cut, Examples, fit_length, read_examples
from evo2cli.finetune.splits import Split, split
from evo2cli.finetune.tasks import Labels, Task
from evo2cli.training.recipe import Recipe


@dataclass(frozen=True)
class Data:
    """The examples of a run.

    Attributes:
        examples: All of them.
        labels: What their labels mean.
        split: Which of them are for what.
    """

    examples: Examples
    labels: Labels
    split: Split

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
        return {part: len(getattr(self.split, part)) for part in ("train", "valid", "test")}

    @property
    def digest(self) -> str:
        """A short hash of sequences, labels and their division."""
        found = hashlib.sha256()
        for text in (*self.examples.sequences, *(self.examples.pairs or [])):
            found.update(text.encode() + b"\n")
        for values in _arrays(self.examples.labels):
            found.update(values.tobytes())
        for part in ("train", "valid", "test"):
            found.update(np.asarray(getattr(self.split, part), np.int64).tobytes())
        return found.hexdigest()[:16]


def _arrays(labels: Any) -> list[Any]:
    return labels if isinstance(labels, list) else [] if labels is None else [labels]


def read_data(recipe: Recipe, length: int | None, *, quiet: bool = False) -> Data:
    """Read the tables of a recipe with [finetune].

    Args:
        recipe: The recipe.
        length: Bases that sequences are cut to; None for no limit.
        quiet: Whether nothing is said about what was found.

    Raises:
        UserError: A table cannot be read, a part is empty, or parts share examples.
    """
    tuning = recipe.finetune
    assert tuning is not None
    sources = [source.path for source in recipe.data.sources]
    others = {"valid": recipe.data.valid[:1], "test": [tuning.test] if tuning.test else []}
    given = {part: paths[0] for part, paths in others.items() if paths}
    if len(sources) > 1 or len(recipe.data.valid) > 1:
        raise UserError(
            f"data.sources and data.valid: a table each, but {sources[-1]} is one more; join them"
        )
    source: Path | dict[str, Path] = {"train": sources[0], **given} if given else sources[0]
    examples, labels = read_examples(
        source,
        task=Task(tuning.task) if tuning.task else None,
        label_columns=tuning.labels,
        group_column=tuning.group,
    )
    cut_line = None
    if length is not None:
        examples, cut_line = fit_length(examples, length, Cut(tuning.cut))
    divided = split(examples, by=tuning.split, fractions=tuning.fractions, seed=recipe.seed)
    found = Data(examples, labels, divided)
    if not quiet:
        for line in (labels.told, cut_line):
            if line:
                console.say(line)
        sizes = ", ".join(f"{count:,} {part}" for part, count in found.sizes.items())
        console.say(f"{len(examples):,} examples: {sizes}")
    return found
