"""Read labelled sequences from tables, recognizing the usual column names of DNA data sets.

A table has a column `sequence` (or `seq`), or two for a pair: `sequence_a` and `sequence_b`, or
`ref_seq` and `alt_seq` (also `var_seq`; or `ref` and `alt`, if they hold whole windows). Variants
(`chrom`, `pos`, `ref` and `alt`) become pairs of windows of a genome. Labels are in `label`,
`labels`, `target` or `y`, or in columns named by the user. `name` or `id`, `chrom`, `group` and
`split` are optional. Column names are case-insensitive.
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
    """N labelled sequences or pairs, in the order of their files.

    Attributes:
        names: Name of each example; its line number if the table has no names.
        sequences: Upper case, T for U.
        pairs: The second sequence of each pair; None for single sequences.
        labels: classify: int64 [N]; multilabel and regress: float32 [N, C]; tokens: a list of int64
            [L], with -100 for bases without a label. None for lm.
        chromosomes: Chromosome of each example, or None.
        groups: Group of each example, or None.
        split: "train", "valid" or "test" for each example, or None.
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
        """The sequence of each example, or both of a pair."""
        if self.pairs is None:
            return [(sequence,) for sequence in self.sequences]
        return list(zip(self.sequences, self.pairs, strict=True))

    @property
    def letters(self) -> list[tuple[bytes, ...]]:
        """As `entries`, but in bytes."""
        return [tuple(text.encode() for text in entry) for entry in self.entries]

    def take(self, rows: Iterable[int]) -> "Examples":
        """Select rows, in the given order."""
        chosen = [int(row) for row in rows]

        def take_from(values: list[str] | None) -> list[str] | None:
            return None if values is None else [values[row] for row in chosen]

        labels = self.labels
        if isinstance(labels, list):
            labels = [labels[row] for row in chosen]
        elif labels is not None:
            labels = labels[chosen]
        return Examples(
            [self.names[row] for row in chosen],
            [self.sequences[row] for row in chosen],
            take_from(self.pairs),
            labels,
            take_from(self.chromosomes),
            take_from(self.groups),
            take_from(self.split),
        )


@dataclass(frozen=True)
class Genome:
    """A genome, to extract windows around variants from.

    Attributes:
        reference: The genome.
        window: Window length in bases; the variant is at the centre.
    """

    reference: Reference
    window: int

    def cut(self, chrom: str, pos: str, ref: str, alt: str, *, origin: str) -> list[bytes]:
        """The windows of both alleles; `pos` is 1-based, as in a VCF.

        Raises:
            UserError: The alleles do not match the genome, or do not fit the window.
        """
        contig = self.reference.contig(chrom, origin)
        for allele in (ref, alt):
            require_letters(origin, allele.encode(errors="replace"))
        start = int(pos) - 1 if pos.isascii() and pos.isdigit() else -1
        end = start + len(ref)
        if not (ref and alt and 0 <= start < end <= self.reference.length(contig)):
            raise UserError(f"{origin}: {chrom}:{pos} {ref}>{alt} is not a variant of the genome")
        variant = Interval(contig, start, end)
        bases = upper_dna(self.reference.fetch(variant))
        if not agrees(upper_dna(ref.encode()), bases):
            raise UserError(
                f"{origin}: ref is {ref}, but the genome has {bases.decode()} at {chrom}:{pos}; "
                "is it the right build?"
            )
        pair = cut_windows(self.reference, variant, alt.encode(), self.window)
        if pair is None:
            raise UserError(
                f"{origin}: the variant is too long for a window of {self.window:,} bases; "
                "raise --length or remove the row"
            )
        return [pair.reference.sequence, pair.alternate.sequence]


Reader = Callable[[Sequence[str], str], list[bytes]]  # cells and origin of a row -> sequences


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
        label_columns: Columns of labels; found by their usual names if empty.
        group_column: Column of groups; `group` if None.
        labels: Task and classes of an existing model, to encode the labels by; inferred if None.
        genome: Genome of variants.

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
    all_rows = [row for _, rows in tables for row in rows]
    splits = [
        split or row.split for split, (_, rows) in zip(paths, tables, strict=True) for row in rows
    ]
    cells = [row.labels for row in all_rows]
    lengths = [len(row.sequences[0]) for row in all_rows]

    def origin(index: int) -> str:
        return all_rows[index].origin

    for row in all_rows:
        check_cells(row.labels, labelled_by, row.origin)
    if labels is None:
        labels = infer_labels(cells, labelled_by, lengths, origin, task)
    return (
        Examples(
            names=[row.name for row in all_rows],
            sequences=[row.sequences[0] for row in all_rows],
            pairs=_if_complete([row.sequences[-1] for row in all_rows if len(row.sequences) > 1]),
            labels=_encode(cells, lengths, labels, origin),
            chromosomes=_if_complete([row.chromosome for row in all_rows]),
            groups=_if_complete([row.group for row in all_rows]),
            split=_if_complete(splits),
        ),
        labels,
    )


def read_sequences(
    path: Path, genome: Genome | None = None
) -> Iterator[tuple[str, tuple[bytes, ...]]]:
    """Stream the name and the sequence of each row, or both of a pair; labels are not needed.

    Args:
        path: The table.
        genome: Genome of variants.

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
    """Crop sequences, and labels of their bases, to at most `window` bases.

    Returns:
        The examples, and a message about how many were cropped and how; None if none was.
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
    sequences: list[str]  # one, or both of a pair
    labels: tuple[str, ...]
    chromosome: str | None
    group: str | None
    split: str | None


def _read_rows(
    path: Path, label_columns: Sequence[str], group_column: str | None, genome: Genome | None
) -> tuple[tuple[str, ...], list[_Row]]:
    """The names of the label columns, and the rows of a table."""
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
    """Finds columns of a table by name, ignoring case."""

    def __init__(self, path: Path, names: Sequence[str]) -> None:
        self._path, self._names = path, names
        self._lower = [name.lower() for name in names]

    def any(self, aliases: Sequence[str]) -> int | None:
        """Index of the first of these names that is a column; None if none is."""
        return next((self._lower.index(name) for name in aliases if name in self._lower), None)

    def required(self, name: str) -> int:
        """Index of the column of this name."""
        if name.lower() not in self._lower:
            raise self._error(f"has no column {name!r}")
        return self._lower.index(name.lower())

    def reader(self, genome: Genome | None) -> Reader:
        """A function that reads the sequence of a row, or both of a pair, from its cells."""
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
        """Index of the label column."""
        names = [name for name in LABEL if name in self._lower]
        if not names:
            raise self._error(f"has no column {LABEL[0]!r} (or {', '.join(LABEL[1:])})")
        if len(names) > 1:
            raise self._error(f"has both {names[0]} and {names[1]}; choose by --label-cols")
        return self._lower.index(names[0])

    def _error(self, problem: str) -> UserError:
        return UserError(f"{self._path}: {problem}; its columns: {', '.join(self._names)}")


def _read_bases(text: str, origin: str) -> bytes:
    """Convert a cell to a sequence as the model reads it."""
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


def _if_complete(values: Sequence[str | None]) -> list[str] | None:
    """The values if there are any and all rows have one, otherwise None."""
    present = [value for value in values if value is not None]
    return present if present and len(present) == len(values) else None


def _encode(
    rows: Sequence[Sequence[str]],
    lengths: Sequence[int],
    labels: Labels,
    origin: Callable[[int], str],
) -> LabelArrays | None:
    """Encode the labels of all rows as arrays.

    Raises:
        UserError: A label is not one of the classes, or not a number.
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
            count = counted(len(numbers), "number")
            raise UserError(f"{origin(index)}: {count} for {', '.join(labels.classes)}")
        values[index] = numbers
    return values


def _are_names(cells: Sequence[str], codes: Mapping[str, int]) -> bool:
    """Whether the single cell of a row names classes, rather than holding a flag for each."""
    if len(cells) > 1:
        return False
    names = parse_names(cells[0])
    are_flags = len(names) == len(codes) and set(names) <= {"0", "1"}
    return "0" in codes or not are_flags
