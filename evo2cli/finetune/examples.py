"""Labelled sequences, read from tables with the columns that data sets of DNA usually have.

A table has a column `sequence` (or `seq`), or two for a pair: `sequence_a` and `sequence_b`, or
`ref_seq` and `alt_seq` (also `var_seq`; or `ref` and `alt`, if they hold whole windows). Variants
(`chrom`, `pos`, `ref` and `alt`) are pairs of windows that are cut from a genome. Labels are in
`label`, `labels`, `target` or `y`, or in the columns that the user names. `name` or `id`, `chrom`,
`group` and `split` are read where they exist. Names of columns match in any case.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from evo2cli.errors import UserError, counted, listed
from evo2cli.finetune.tasks import (
    NO_LABEL,
    UNLABELLED,
    Cut,
    Labels,
    Task,
    check_cells,
    class_name,
    infer_labels,
    parse_names,
    parse_numbers,
    parse_tokens,
)
from evo2cli.genome.alphabet import upper_dna
from evo2cli.genome.fasta import require_letters
from evo2cli.genome.interval import Interval
from evo2cli.genome.reference import Reference
from evo2cli.genome.table import cell_text, open_table
from evo2cli.genome.windows import agrees, cut_windows
from stripedhyena2.dna import as_read

SEQUENCE = ("sequence", "seq")
PAIRS = (("sequence_a", "sequence_b"), ("ref_seq", "alt_seq"), ("ref_seq", "var_seq"))
ALLELES = ("ref", "alt")
LABEL = ("label", "labels", "target", "y")
NAME = ("name", "id")
CHROMOSOME = ("chrom", "chromosome", "contig")
GROUP = ("group",)
SPLIT = ("split",)
POSITION = ("pos", "position")
SPLITS = {
    "train": ("train", "training"),
    "valid": ("valid", "validation", "val", "dev", "eval"),
    "test": ("test", "testing"),
}

# Labels: int64 [N] of classes, float32 [N, C] of flags or numbers, or int64 [L] for each sequence.
LabelArrays = NDArray[Any] | list[NDArray[np.int64]]


@dataclass(frozen=True)
class Examples:
    """Labelled sequences, in the order of their files; N of them.

    Attributes:
        names: A name each; the number of its line where the table gives none.
        sequences: Upper case, T for U.
        pairs: The second sequence of each pair, or None.
        labels: classify: int64 [N]; multilabel and regress: float32 [N, C]; tokens: an int64 [L]
            each, -100 for a base without a label. None if nothing is labelled.
        chromosomes: The chromosome of each, or None.
        groups: The group of each, or None.
        split: "train", "valid" or "test" of each, or None.
    """

    names: list[str]
    sequences: list[str]
    pairs: list[str] | None = None
    labels: LabelArrays | None = None
    chromosomes: list[str] | None = None
    groups: list[str] | None = None
    split: list[str] | None = None

    def __len__(self) -> int:
        return len(self.sequences)

    @property
    def entries(self) -> list[tuple[str, ...]]:
        """The sequence of each, or the two of a pair."""
        if self.pairs is None:
            return [(sequence,) for sequence in self.sequences]
        return list(zip(self.sequences, self.pairs, strict=True))

    @property
    def letters(self) -> list[tuple[bytes, ...]]:
        """As `entries`, in bytes."""
        return [tuple(text.encode() for text in entry) for entry in self.entries]

    def take(self, rows: Iterable[int]) -> "Examples":
        """The examples of these rows, in their order."""
        chosen = [int(row) for row in rows]

        def of(values: list[str] | None) -> list[str] | None:
            return None if values is None else [values[row] for row in chosen]

        labels = self.labels
        if isinstance(labels, list):
            labels = [labels[row] for row in chosen]
        elif labels is not None:
            labels = labels[chosen]
        return Examples(
            [self.names[row] for row in chosen],
            [self.sequences[row] for row in chosen],
            of(self.pairs),
            labels,
            of(self.chromosomes),
            of(self.groups),
            of(self.split),
        )


@dataclass(frozen=True)
class Genome:
    """A genome that windows of variants are cut from.

    Attributes:
        reference: The genome.
        window: Bases of a window; the variant is in its middle.
    """

    reference: Reference
    window: int

    def cut(self, chrom: str, pos: str, ref: str, alt: str, *, origin: str) -> list[bytes]:
        """The windows of both alleles; `pos` is 1-based, as in a VCF.

        Raises:
            UserError: They are not an allele of this genome, or too long for the window.
        """
        contig = self.reference.contig(chrom, origin)
        for allele in (ref, alt):
            require_letters(origin, allele.encode(errors="replace"))
        start = int(pos) - 1 if pos.isascii() and pos.isdigit() else -1
        end = start + len(ref)
        if not (ref and alt and 0 <= start < end <= self.reference.length(contig)):
            raise UserError(f"{origin}: {chrom}:{pos} {ref}>{alt} is not a variant of the genome")
        variant = Interval(contig, start, end)
        found = upper_dna(self.reference.fetch(variant))
        if not agrees(upper_dna(ref.encode()), found):
            raise UserError(
                f"{origin}: ref is {ref}, but the genome has {found.decode()} at {chrom}:{pos}; "
                "is it the right build?"
            )
        pair = cut_windows(self.reference, variant, alt.encode(), self.window)
        if pair is None:
            raise UserError(
                f"{origin}: the variant is too long for a window of {self.window:,} bases; "
                "raise --length or remove the row"
            )
        return [pair.reference.sequence, pair.alternate.sequence]


Reader = Callable[[Sequence[str], str], list[bytes]]  # from the cells of a row, and its origin


def read_examples(
    source: Path | Mapping[str, Path],
    *,
    task: Task | None = None,
    label_columns: Sequence[str] = (),
    group_column: str | None = None,
    labels: Labels | None = None,
    genome: Genome | None = None,
) -> tuple[Examples, Labels]:
    """Read tables of labelled sequences.

    Args:
        source: A table, or one for each of "train", "valid" and "test".
        task: The task; inferred from the labels if None.
        label_columns: The columns of labels; found by their names if empty.
        group_column: The column of groups; `group` if None.
        labels: What labels mean, if a model is known already: then they are read as its own.
        genome: What windows of variants are cut from.

    Raises:
        UserError: A file cannot be read, a column is missing, or a row is not valid.
    """
    paths = source if isinstance(source, Mapping) else {None: source}
    tables = [_read_rows(path, label_columns, group_column, genome) for path in paths.values()]
    first, (labelled_by, first_rows) = next(iter(paths.values())), tables[0]
    for path, (columns, rows) in zip(paths.values(), tables, strict=True):
        if not rows:
            raise UserError(f"{path}: has no rows")
        if columns != labelled_by or len(rows[0].sequences) != len(first_rows[0].sequences):
            raise UserError(
                f"{path}: its sequence or label columns differ from those of {first}; give all "
                "tables the same columns"
            )
    every = [row for _, rows in tables for row in rows]
    splits = [
        split or row.split for split, (_, rows) in zip(paths, tables, strict=True) for row in rows
    ]
    cells = [row.labels for row in every]
    lengths = [len(row.sequences[0]) for row in every]

    def origin(index: int) -> str:
        return every[index].origin

    for row in every:
        check_cells(row.labels, labelled_by, row.origin)
    if labels is None:
        labels = infer_labels(cells, labelled_by, lengths, origin, task)
    return (
        Examples(
            names=[row.name for row in every],
            sequences=[row.sequences[0] for row in every],
            pairs=_whole([row.sequences[-1] for row in every if len(row.sequences) > 1]),
            labels=_encode(cells, lengths, labels, origin),
            chromosomes=_whole([row.chromosome for row in every]),
            groups=_whole([row.group for row in every]),
            split=_whole(splits),
        ),
        labels,
    )


def read_sequences(
    path: Path, genome: Genome | None = None
) -> Iterator[tuple[str, tuple[bytes, ...]]]:
    """Stream the name of each row and its sequence, or the two of a pair; no labels are needed.

    Args:
        path: The table.
        genome: What windows of variants are cut from.

    Raises:
        UserError: The file cannot be read, has no column of sequences, or a row is not valid.
    """
    table = open_table(path)
    find = _Finder(path, table.names)
    read, name = find.reader(genome), find.any(NAME)
    for number, cells in table.rows:
        texts = [cell_text(cell) for cell in cells]
        sequences = read(texts, table.origin(number))
        yield str(number) if name is None else texts[name], tuple(sequences)


def fit_length(examples: Examples, window: int, cut: Cut) -> tuple[Examples, str | None]:
    """Cut sequences, and labels of their bases, to at most `window` bases.

    Returns:
        The examples, and a sentence that says how many were cut and how; None if none was.
    """
    lengths = [len(sequence) for sequence in examples.sequences]
    pairs = examples.pairs
    longest = max(lengths + [len(sequence) for sequence in pairs or []], default=0)
    if longest <= window:
        return examples, None

    shorten = partial(cut.shorten, window=window)
    labels = examples.labels
    count = sum(
        max(len(sequence), len(other)) > window
        for sequence, other in zip(examples.sequences, pairs or examples.sequences, strict=True)
    )
    kept = {Cut.CENTRE: "central", Cut.START: "first", Cut.END: "last"}[cut]
    return (
        replace(
            examples,
            sequences=[shorten(sequence) for sequence in examples.sequences],
            pairs=None if pairs is None else [shorten(sequence) for sequence in pairs],
            labels=[shorten(tokens) for tokens in labels] if isinstance(labels, list) else labels,
        ),
        f"{count:,} of {counted(len(examples), 'sequence')}: longer than the window of {window:,} "
        f"bases (up to {longest:,}); only the {kept} {window:,} bases are used",
    )


class _Row(NamedTuple):
    origin: str
    name: str
    sequences: list[str]  # one, or the two of a pair
    labels: tuple[str, ...]
    chromosome: str | None
    group: str | None
    split: str | None


def _read_rows(
    path: Path, label_columns: Sequence[str], group_column: str | None, genome: Genome | None
) -> tuple[tuple[str, ...], list[_Row]]:
    """The names of the columns of labels, and the rows of a table."""
    table = open_table(path)
    find = _Finder(path, table.names)
    read = find.reader(genome)
    labels = [find.required(name) for name in label_columns] or [find.label()]
    name, chromosome, split = find.any(NAME), find.any(CHROMOSOME), find.any(SPLIT)
    group = find.any(GROUP) if group_column is None else find.required(group_column)
    rows = []
    for number, cells in table.rows:
        origin = table.origin(number)
        texts = [cell_text(cell) for cell in cells]
        rows.append(
            _Row(
                origin,
                str(number) if name is None else texts[name],
                [sequence.decode() for sequence in read(texts, origin)],
                tuple(texts[column] for column in labels),
                None if chromosome is None else texts[chromosome],
                None if group is None else texts[group],
                None if split is None else _split_name(texts[split], origin),
            )
        )
    return tuple(table.names[column] for column in labels), rows


class _Finder:
    """Finds columns of a table by their names, in any case."""

    def __init__(self, path: Path, names: Sequence[str]) -> None:
        self._path, self._names = path, names
        self._lower = [name.lower() for name in names]

    def any(self, aliases: Sequence[str]) -> int | None:
        """The first column that has one of these names."""
        return next((self._lower.index(name) for name in aliases if name in self._lower), None)

    def required(self, name: str) -> int:
        """The column of this name."""
        if name.lower() not in self._lower:
            raise self._error(f"has no column {name!r}")
        return self._lower.index(name.lower())

    def reader(self, genome: Genome | None) -> Reader:
        """What reads the sequence of a row, or the two of a pair, from its cells."""
        single = self.any(SEQUENCE)
        columns = [] if single is None else [single]
        if single is None:
            pair = next((p for p in (*PAIRS, ALLELES) if set(p) <= set(self._lower)), None)
            if pair is None:
                raise self._error(
                    "has no column 'sequence' (or seq), and no pair such as sequence_a and "
                    "sequence_b"
                )
            columns = [self._lower.index(name) for name in pair]
            position = self.any(POSITION)
            if pair == ALLELES and position is not None:
                if genome is None:
                    raise self._error(
                        "ref and alt hold alleles; give the genome with --reference, or the "
                        "windows of both as ref_seq and alt_seq"
                    )
                chromosome = self.any(CHROMOSOME)
                if chromosome is None:
                    raise self._error(f"has no column {CHROMOSOME[0]!r}")
                allele = [chromosome, position, *columns]
                return lambda texts, origin: genome.cut(*(texts[c] for c in allele), origin=origin)
        return lambda texts, origin: [_read_bases(texts[column], origin) for column in columns]

    def label(self) -> int:
        """The column of labels."""
        found = [name for name in LABEL if name in self._lower]
        if not found:
            raise self._error(f"has no column {LABEL[0]!r} (or {', '.join(LABEL[1:])})")
        if len(found) > 1:
            raise self._error(f"has both {found[0]} and {found[1]}; choose by --label-cols")
        return self._lower.index(found[0])

    def _error(self, problem: str) -> UserError:
        return UserError(f"{self._path}: {problem}; its columns: {', '.join(self._names)}")


def _read_bases(text: str, origin: str) -> bytes:
    """A sequence as the model reads it."""
    if not text:
        raise UserError(f"{origin}: the sequence is empty; remove the row")
    sequence = as_read(text.encode(errors="replace"))
    require_letters(origin, sequence)
    return sequence


def _split_name(text: str, origin: str) -> str:
    for split, aliases in SPLITS.items():
        if text.lower() in aliases:
            return split
    raise UserError(f"{origin}: split {text!r} is not train, valid (or val, dev) or test")


def _whole(values: Sequence[str | None]) -> list[str] | None:
    """The values, or None if there are none."""
    found = [value for value in values if value is not None]
    return found if found and len(found) == len(values) else None


def _encode(
    rows: Sequence[Sequence[str]],
    lengths: Sequence[int],
    labels: Labels,
    origin: Callable[[int], str],
) -> LabelArrays | None:
    """The labels of all rows as arrays.

    Raises:
        UserError: A label is not one of these classes, or not a number.
    """
    codes = {name: index for index, name in enumerate(labels.classes)}

    def code(index: int, name: str) -> int:
        if name not in codes:
            raise UserError(
                f"{origin(index)}: label {name!r} is not one of the classes "
                f"{listed(labels.classes)}"
            )
        return codes[name]

    if labels.task is Task.LM:
        return None
    if labels.task is Task.CLASSIFY:
        return np.array(
            [code(index, class_name(cells[0])) for index, cells in enumerate(rows)], np.int64
        )
    if labels.task is Task.TOKENS:
        known = codes | dict.fromkeys(UNLABELLED, NO_LABEL)
        return [
            np.array(
                [
                    known[token] if token in known else code(index, token)
                    for token in parse_tokens(cells[0], length, origin(index))
                ],
                np.int64,
            )
            for index, (cells, length) in enumerate(zip(rows, lengths, strict=True))
        ]
    values = np.zeros((len(rows), len(codes)), np.float32)
    for index, cells in enumerate(rows):
        if labels.task is Task.MULTILABEL and _are_names(cells, codes):
            values[index, [code(index, name) for name in parse_names(cells[0])]] = 1
            continue
        numbers = parse_numbers(cells, origin(index))
        if len(numbers) != len(codes):
            found = counted(len(numbers), "number")
            raise UserError(f"{origin(index)}: {found} for {', '.join(labels.classes)}")
        values[index] = numbers
    return values


def _are_names(cells: Sequence[str], codes: Mapping[str, int]) -> bool:
    """Whether the single cell of a row names classes, rather than holding a flag for each."""
    if len(cells) > 1:
        return False
    names = parse_names(cells[0])
    are_flags = len(names) == len(codes) and set(names) <= {"0", "1"}
    return "0" in codes or not are_flags
