"""`evo2 predict`: apply a fine-tuned model, and write a table, a VCF or a track.

N sequences, L positions, C classes or numbers.
"""

import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import chain, islice, pairwise
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from evo2cli import __version__, console
from evo2cli.errors import TooManySkippedError, UntrustedNumericsError, UserError, counted
from evo2cli.files import locks_output, open_output
from evo2cli.finetune.examples import Examples, fit_length, read_sequences
from evo2cli.finetune.folder import Description, Tuned, find_tuned, open_tuned, read_description
from evo2cli.finetune.heads import Reading
from evo2cli.finetune.predictions import Predictions, predictions
from evo2cli.finetune.tasks import Cut, Labels, Task
from evo2cli.genome.alphabet import upper_dna
from evo2cli.genome.fasta import read_records, require_nucleotides
from evo2cli.genome.features import is_gff, locate_features
from evo2cli.genome.reference import Reference
from evo2cli.genome.source import first_bytes
from evo2cli.genome.vcf import Header, Status, VariantRecord, is_scored, is_variants, read_vcf
from evo2cli.journal import Recall, open_journal, recall_all
from evo2cli.models import precision_name
from evo2cli.options import DType, ModelOptions, Strand
from evo2cli.predict.options import VCFS, PredictOptions
from evo2cli.score.alleles import VariantScorer
from evo2cli.score.options import AlleleOptions, Layout
from evo2cli.score.output import index_output
from evo2cli.score.report import status_table
from evo2cli.tables import cell, table_line
from evo2cli.track.formats import check_track, open_track
from stripedhyena2.dna import reverse_complement
from stripedhyena2.fingerprint import fingerprint
from stripedhyena2.progress import Progress, ignore_progress

T = TypeVar("T")

BLOCK = 1_024  # sequences or VCF records that are read at a time


class InputSequence(NamedTuple):
    """A sequence of the input.

    Attributes:
        name: Name of the record, row or region.
        letters: Upper-case DNA: one sequence, or both of a pair.
        contig: Contig of the region; for other inputs, the name.
        start: 0-based position of its first base in the contig.
    """

    name: str
    letters: tuple[bytes, ...]
    contig: str
    start: int


def blocks(items: Iterable[T]) -> Iterator[list[T]]:
    """Split a stream of items into lists of up to `BLOCK`.

    The first list is read at once, so that an input that is not valid can be refused before
    anything is written.
    """
    source = iter(items)

    def read() -> list[T]:
        return list(islice(source, BLOCK))

    return chain([read()], iter(read, []))


def labels_of(run: Path) -> Labels:
    """Task and classes of a fine-tuned model.

    Raises:
        UserError: `run` is not a folder written by `evo2 finetune`.
    """
    return read_description(find_tuned(run)).labels


def predict_table(
    run: Path, examples: Examples, *, device: str = "auto", dtype: DType | str = DType.AUTO
) -> Predictions:
    """Predict the labels of sequences, which may have labels already.

    Args:
        run: Folder written by `evo2 finetune`.
        examples: The sequences.
        device: Device of the model, e.g. "cpu" or "cuda:1".
        dtype: Precision of the model, e.g. "bf16".

    Returns:
        classify, multilabel: calibrated probabilities [N, C]; regress: numbers [N, C] in their
        units; tokens: probabilities [L, C] for each sequence.

    Raises:
        UserError: The model cannot be loaded; or it was trained on pairs and these are single
            sequences, or the reverse.
        UntrustedNumericsError: A prediction is not finite.
    """
    choices: dict[str, Any] = {"dtype": dtype}  # may be text, which the options convert
    tuned = open_tuned(run, ModelOptions(device=device, **choices))
    _check_pairs(run, tuned, is_pair=examples.pairs is not None)
    description = tuned.description
    if description.labels.task is not Task.TOKENS:
        examples, cut_line = fit_length(examples, description.length, Cut(description.cut))
        if cut_line:
            console.say(cut_line)
    with console.progress("predict", len(examples), "sequences") as bar:
        return _predict(tuned, examples.letters, progress=bar.advance)


@locks_output
def predict(options: PredictOptions) -> None:
    """Predict the labels of the input and write them to the output.

    Raises:
        UserError: The model or the input cannot be read, or the model does not apply to the input,
            or the output format does not.
        TooManySkippedError: No allele of a VCF has a prediction; the output is complete.
        UntrustedNumericsError: A prediction is not finite.
    """
    check_track(options.output)
    tuned = open_tuned(options.run, ModelOptions(device=options.device, dtype=options.dtype))
    is_tokens = tuned.description.labels.task is Task.TOKENS
    if options.is_track and not is_tokens:
        raise UserError(
            f"--output {options.output}: a track needs a value for each base, but this "
            f"model's task is {tuned.description.labels.task}; write x.tsv"
        )
    if is_variants(options.source):
        _predict_variants(options, tuned)
        return
    if options.name is not None:
        raise UserError(f"--name {options.name}: only for a VCF, and {options.source} is not one")
    if options.output is not None and options.output.name.endswith(VCFS):
        raise UserError(
            f"--output {options.output}: only for a VCF, and {options.source} is not one; write "
            "x.tsv"
        )
    if options.is_track:
        _predict_track(options, tuned)
    else:
        _predict_sequences(options, tuned)


class Window(NamedTuple):
    """The input of one forward pass.

    Attributes:
        letters: A sequence, both of a pair, or a part of a long sequence.
        kept: The positions whose outputs are used, if the model labels bases.
    """

    letters: tuple[bytes, ...]
    kept: slice = slice(None)

    @property
    def key(self) -> str:
        """Its key in the journal: a checksum of everything that determines its outputs."""
        letters = b" ".join(self.letters)
        return f"{len(letters)} {zlib.crc32(letters):08x} {self.kept.start}-{self.kept.stop}"


def _predict(
    tuned: Tuned,
    sequences: Sequence[tuple[bytes, ...]],
    recall: Recall = lambda _, compute: compute(),
    progress: Progress = ignore_progress,
) -> Predictions:
    """Predictions for sequences of any length.

    A model that labels bases reads sequences longer than its training length in windows that
    overlap by half; the output for a base is that of the window whose middle is nearest to it.

    Args:
        tuned: The model.
        sequences: The sequences, or pairs of them.
        recall: As `open_journal` yields it.
        progress: Called with the number of sequences done since the last call.

    Raises:
        UntrustedNumericsError: A prediction is not finite.
    """
    description = tuned.description
    is_tokens = description.labels.task is Task.TOKENS
    windows = [
        _tiled(group[0], description.length) if is_tokens else [Window(group)]
        for group in sequences
    ]
    every = [*chain.from_iterable(windows)]
    outputs = recall_all(recall, every, partial(_outputs, tuned), key=attrgetter("key"))
    found = []
    for parts in windows:
        found.append(torch.cat([torch.tensor(next(outputs)) for _ in parts]))
        progress(1)
    return predictions(description, found)


def _outputs(tuned: Tuned, windows: Sequence[Window]) -> Iterator[list[Any]]:
    """The outputs of the head for each window, in order, as nested lists.

    Raises:
        UntrustedNumericsError: An output is not finite.
    """
    letters = [window.letters for window in windows]
    for window, output in zip(windows, tuned.outputs(letters), strict=True):
        if not bool(torch.isfinite(output).all()):
            raise UntrustedNumericsError("a prediction is NaN or infinite; try --dtype fp32")
        yield output[window.kept].tolist()


def _tiled(sequence: bytes, size: int) -> list[Window]:
    """Split a sequence into overlapping windows of up to `size` bases."""
    return [
        Window((sequence[start:end],), slice(first - start, last - start))
        for start, end, first, last in tiles(len(sequence), size)
    ]


def tiles(length: int, window: int) -> list[tuple[int, int, int, int]]:
    """Windows that cover a sequence and overlap by half.

    Returns:
        For each window its start and end, and the first and last base for which its outputs are
        used: 0-based and half-open, in positions of the sequence.
    """
    if length <= window:
        return [(0, length, 0, length)]
    step = max(1, window // 2)
    starts = [*range(0, length - window, step), length - window]
    borders = [
        0,
        *((first + window + second) // 2 for first, second in pairwise(starts)),
        length,
    ]
    return [
        (start, start + window, first, last)
        for start, (first, last) in zip(starts, pairwise(borders), strict=True)
    ]


def _predict_sequences(options: PredictOptions, tuned: Tuned) -> None:
    """Write a table with a row for each sequence, or for each base."""
    description = tuned.description
    classes, task = description.labels.classes, description.labels.task
    is_tokens, has_classes = task is Task.TOKENS, task in (Task.CLASSIFY, Task.TOKENS)
    columns = ["name", *(["position", "base"] if is_tokens else [])]
    columns += [*(["prediction"] if has_classes else []), *_value_names(description)]
    num_cut = total = 0
    sequences = blocks(_sequences(options, tuned))
    with (
        open_journal(options.output, _settings(tuned)) as recall,
        open_output(options.output) as write,
        console.progress("predict", None, "sequences") as bar,
    ):
        write(table_line(columns))
        for block in sequences:
            letters = [sequence.letters for sequence in block]
            if not is_tokens:
                cut = Cut(description.cut)
                letters = [
                    tuple(cut.shorten(sequence, description.length) for sequence in group)
                    for group in letters
                ]
                num_cut += sum(
                    group != piece.letters for group, piece in zip(letters, block, strict=True)
                )
            total += len(block)
            predicted = _predict(tuned, letters, recall, bar.advance)
            for sequence, values in zip(block, predicted, strict=True):
                if not is_tokens:
                    named = [classes[int(values.argmax())]] if has_classes else []
                    write(table_line([sequence.name, *named, *map(float, values)]))
                    continue
                for position, (base, row) in enumerate(
                    zip(sequence.letters[0].decode(), values, strict=True), start=1
                ):
                    best = classes[int(row.argmax())]
                    write(table_line([sequence.name, position, base, best, *map(float, row)]))
    if num_cut:
        console.say(
            f"{num_cut:,} of {counted(total, 'sequence')}: longer than the {description.length:,} "
            f"bases that the model was trained on; only the {description.cut} was used"
        )
    console.say(f"{counted(total, 'sequence')} predicted")


def _settings(tuned: Tuned) -> list[object]:
    """Everything besides the sequences that determines the outputs of the head."""
    return [
        "evo2 predict",
        __version__,
        fingerprint(tuned.trunk.config, tuned.model.state_dict()),
        precision_name(tuned.trunk),
        tuned.description.facts,
    ]


def _value_names(description: Description) -> list[str]:
    """Column names of probabilities or numbers."""
    classes = description.labels.classes
    if description.labels.task is Task.REGRESS:
        return list(classes)
    return [f"p_{name}" for name in classes]


def _sequences(options: PredictOptions, tuned: Tuned) -> Iterator[InputSequence]:
    """Read the sequences of the input: records, rows of a table, or regions.

    Raises:
        UserError: The input is not valid, or does not hold what the model takes.
    """
    path = options.source
    if options.reference is not None:
        _check_pairs(path, tuned, is_pair=False)
        yield from _regions(options)
        return
    if is_gff(path) or ".bed" in path.suffixes:
        raise UserError(f"{path}: give the genome of these regions with --reference")
    if not first_bytes(path).lstrip().startswith(b">"):
        for name, letters in read_sequences(path):
            _check_pairs(path, tuned, is_pair=len(letters) > 1)
            yield InputSequence(name, letters, name, 0)
        return
    _check_pairs(path, tuned, is_pair=False)
    for record in read_records(path):
        require_nucleotides(path, record)
        if not record.sequence:
            raise UserError(f"{path}: record {record.name!r} is empty; remove it")
        yield InputSequence(record.name, (upper_dna(record.sequence),), record.name, 0)


def _check_pairs(source: Path, tuned: Tuned, *, is_pair: bool) -> None:
    """Refuse pairs for a model of single sequences, and the reverse.

    Raises:
        UserError: The message begins with `source`.
    """
    if is_pair and not tuned.model.reading.is_pair:
        raise UserError(f"{source}: the model was trained on single sequences, not on pairs")
    if tuned.model.reading.is_pair and not is_pair:
        raise UserError(
            f"{source}: the model was trained on pairs; give a table with both sequences"
        )


def _regions(options: PredictOptions) -> Iterator[InputSequence]:
    """Read regions; those on the reverse strand are reverse-complemented, except for a track."""
    assert options.reference is not None
    with Reference.open(options.reference) as genome:
        for region, found in locate_features(options.source, genome):
            bases = upper_dna(genome.fetch(found))
            if region.strand == "-" and not options.is_track:
                bases = reverse_complement(bases)
            yield InputSequence(region.name, (bases,), found.name, found.start)


def _predict_track(options: PredictOptions, tuned: Tuned) -> None:
    """Write the probability of a class for each base.

    Regions come in the order of the genome, records in the order of the input.
    """
    classes = tuned.description.labels.classes
    name = options.of_class or classes[-1]
    if name not in classes:
        raise UserError(f"--class {name}: must be one of {', '.join(classes)}")
    column = classes.index(name)
    sequences = list(_sequences(options, tuned))
    if options.reference is not None:
        with Reference.open(options.reference) as genome:
            lengths = {contig: genome.length(contig) for contig in genome.names}
        order = {contig: index for index, contig in enumerate(lengths)}
        sequences.sort(key=lambda sequence: (order[sequence.contig], sequence.start))
        for before, after in pairwise(sequences):
            if before.contig == after.contig and after.start < before.start + len(
                before.letters[0]
            ):
                raise UserError(
                    f"{options.source}: {before.name} and {after.name} overlap; a track has one "
                    "value for each base"
                )
    else:
        lengths = {sequence.contig: len(sequence.letters[0]) for sequence in sequences}
        if len(lengths) < len(sequences):
            raise UserError(
                f"{options.source}: sequences share a name; a track needs different names"
            )
    with (
        open_journal(options.output, _settings(tuned)) as recall,
        open_track(options.output, lengths) as put,
        console.progress("predict", len(sequences), "sequences") as bar,
    ):
        for sequence in sequences:
            [values] = _predict(tuned, [sequence.letters], recall, bar.advance)
            put(sequence.contig, sequence.start, values[:, column].tolist())
    number = counted(len(sequences), "sequence")
    console.say(f"wrote the probability of {name} for each base of {number}")


class _Allele(NamedTuple):
    """The predictions for an allele.

    Attributes:
        status: "OK", "EDGE", or why there is no prediction.
        values: [C] each: with REF, with ALT, and the difference; or only those of the pair.
    """

    status: str
    values: tuple[NDArray[np.float64], ...] = ()


def _predict_variants(options: PredictOptions, tuned: Tuned) -> None:
    """Write the VCF with predictions as INFO fields; all else in its records is unchanged."""
    description, reading = tuned.description, tuned.model.reading
    if options.reference is None:
        raise UserError(f"{options.source}: give the genome of the variants with --reference")
    if reading.by_token:
        raise UserError(
            f"{options.source}: this model labels bases and has no prediction for a "
            "variant; give a FASTA or BED"
        )
    if options.output is not None and not options.output.name.endswith(VCFS):
        raise UserError(f"--output {options.output}: variants are written to x.vcf or x.vcf.gz")
    fields = _Fields.of(description, reading, options.name)
    vcf = read_vcf(options.source, scored=True)  # it may hold scores, too
    _check_keys(options.source, vcf.header, [*chain(*fields.values.values()), fields.status])
    record_blocks = blocks(vcf.records)
    counts: Counter[str] = Counter()
    missing = ""
    with (
        Reference.open(options.reference) as genome,
        open_journal(options.output, _settings(tuned)) as recall,
    ):
        window = AlleleOptions(window=max(2, description.length), strand=Strand.FORWARD)
        scorer = VariantScorer(tuned.trunk, genome, window)  # only for its windows
        with (
            open_output(options.output) as write,
            console.progress("predict", None, "records") as bar,
        ):
            write(vcf.header.with_lines(_header_lines(options, description, fields)))
            for records in record_blocks:
                predicted = _predict_alleles(tuned, scorer, records, recall)
                for record, alleles in zip(records, predicted, strict=True):
                    counts.update(allele.status for allele in alleles)
                    if alleles and not missing and genome.find(record.contig) is None:
                        missing = f": {genome.missing_contig(record.contig)}"
                    write(_with_info(record, alleles, fields))
                    bar.advance(1)
        if options.output is not None and options.output.suffix == ".gz":
            index_output(options.output, Layout.VCF)
    total = counts.total()
    done = sum(count for status, count in counts.items() if is_scored(status))
    console.say(f"{done:,} of {counted(total, 'allele')} predicted")
    if total:
        console.write_page(status_table(counts), stderr=True)
    if total and not done:
        raise TooManySkippedError(f"{options.source}: no allele could be predicted{missing}")
    if missing:
        console.warn(f"{options.source}{missing}")


def _predict_alleles(
    tuned: Tuned, scorer: VariantScorer, records: Iterable[VariantRecord], recall: Recall
) -> list[list[_Allele]]:
    """Predict the alleles of each record, all in one batch."""
    reading = tuned.model.reading
    found: list[list[tuple[str, int | None]]] = []  # status, and index of the first window
    inputs: list[tuple[bytes, ...]] = []
    for record in records:
        found.append([])
        for alternate in record.alternates:
            windows = scorer.windows(record, alternate)
            if isinstance(windows, Status):
                found[-1].append((str(windows), None))
                continue
            [pair] = windows
            found[-1].append((str(Status.EDGE if pair.at_edge else Status.OK), len(inputs)))
            sequences = (pair.reference.sequence, pair.alternate.sequence)
            inputs += [sequences] if reading.is_pair else [(sequence,) for sequence in sequences]
    values = _predict(tuned, inputs, recall)

    def allele(status: str, first: int | None) -> _Allele:
        if first is None:
            return _Allele(status)
        if reading.is_pair:
            return _Allele(status, (values[first],))
        ref, alt = values[first], values[first + 1]
        return _Allele(status, (ref, alt, alt - ref))

    return [[allele(*each) for each in alleles] for alleles in found]


class _Fields(NamedTuple):
    """Keys of the INFO fields that are added.

    Attributes:
        values: Keys of all classes, for each kind of value; the kind as the header describes it.
        status: Key of the status.
    """

    values: dict[str, list[str]]
    status: str

    @classmethod
    def of(cls, description: Description, reading: Reading, name: str | None) -> "_Fields":
        """The keys for the predictions of a model; `name` tells those of several models apart."""
        prefix = "EVO2_" if name is None else f"EVO2_{name}_"
        classes = [re.sub(r"[^A-Za-z0-9]+", "_", each) for each in description.labels.classes]
        if len(set(classes)) < len(classes):  # e.g. CD4+ and CD4-
            classes = [f"{each}_{number}" for number, each in enumerate(classes, start=1)]
        suffixes = {"with REF": "_REF", "with ALT": "_ALT", "with ALT minus that with REF": "_DIFF"}
        if reading.is_pair:
            suffixes = {"of the pair of windows": ""}
        values = {
            what: [f"{prefix}{each}{suffix}" for each in classes]
            for what, suffix in suffixes.items()
        }
        return cls(values, f"{prefix}PREDICT_STATUS")


def _check_keys(source: Path, header: Header, keys: Iterable[str]) -> None:
    """Refuse a VCF that already has one of the fields that will be added.

    Raises:
        UserError: It has one.
    """
    for key in keys:
        if any(f"ID={key},".encode() in line for line in header.lines):
            raise UserError(
                f"{source}: has {key} of an earlier run; give another --name to add the "
                "predictions of another model, or else the original file"
            )


def _header_lines(
    options: PredictOptions, description: Description, fields: _Fields
) -> Iterator[str]:
    """Header lines that describe the fields and the model that made them."""
    value = "value" if description.labels.task is Task.REGRESS else "probability"
    name = "" if options.name is None else f" --name {options.name}"
    yield f"##evo2Version={__version__}"
    yield (
        f"##evo2Predict={options.run.resolve().name}{name} ({description.labels.task} on "
        f"{description.base} {description.base_fingerprint})"
    )
    for what, keys in fields.values.items():
        for key, label in zip(keys, description.labels.classes, strict=True):
            escaped = label.replace("\\", r"\\").replace('"', r"\"")
            meaning = f"{value} of {escaped} {what}"
            yield f'##INFO=<ID={key},Number=A,Type=Float,Description="{meaning}">'
    yield (
        f'##INFO=<ID={fields.status},Number=A,Type=String,Description="OK, EDGE (the window is '
        'cut or shifted at an end of the contig), or why there is no prediction">'
    )


def _with_info(record: VariantRecord, alleles: Sequence[_Allele], fields: _Fields) -> bytes:
    """The line of a record with the predictions for its alleles."""
    if not alleles:  # a blank line
        return record.line
    entries = []
    for index, keys in enumerate(fields.values.values()):
        for column, key in enumerate(keys):
            cells = [cell(float(a.values[index][column]) if a.values else None) for a in alleles]
            entries.append(f"{key}={','.join(cells)}")
    entries.append(f"{fields.status}={','.join(allele.status for allele in alleles)}")
    return record.with_info(";".join(entries))
