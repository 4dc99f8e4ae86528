"""`evo2 predict`: sequences in batches through a fine-tuned model, to a table, a VCF or a track.

N sequences, L positions, C classes or numbers.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice, pairwise
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evo2cli import __version__, console
from evo2cli.errors import TooManySkippedError, UntrustedNumericsError, UserError, counted
from evo2cli.files import open_output
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
from evo2cli.options import DType, ModelOptions
from evo2cli.predict.options import VCFS, PredictOptions
from evo2cli.score.alleles import VariantScorer
from evo2cli.score.options import AlleleOptions, Layout
from evo2cli.score.output import index_output
from evo2cli.score.report import status_table
from evo2cli.tables import cell, table_line
from evo2cli.track.formats import check_track, open_track
from stripedhyena2.dna import reverse_complement
from stripedhyena2.progress import Progress, ignore_progress

T = TypeVar("T")

STATUS = "EVO2_PREDICT_STATUS"
BLOCK = 1_024  # sequences, or variants, that are read before they are predicted


class Piece(NamedTuple):
    """A sequence of the input: one, or the two of a pair, and where it lies."""

    name: str
    letters: tuple[bytes, ...]
    contig: str
    start: int


def blocks(items: Iterable[T]) -> Iterator[list[T]]:
    """Items in lists of `BLOCK`."""
    source = iter(items)
    while block := list(islice(source, BLOCK)):
        yield block


def labels_of(run: Path) -> Labels:
    """What the labels of a run mean.

    Raises:
        UserError: It is no run.
    """
    return read_description(find_tuned(run)).labels


def predict_table(
    run: Path, examples: Examples, *, device: str = "auto", dtype: DType | str = DType.AUTO
) -> Predictions:
    """Predictions for labelled or unlabelled sequences.

    Args:
        run: The folder of a run of `evo2 finetune`.
        examples: The sequences.
        device: Where the model runs.
        dtype: Its precision.

    Returns:
        classify, multilabel: calibrated probabilities [N, C]; regress: numbers [N, C] in their
        units; tokens: probabilities [L, C] for each sequence.

    Raises:
        UserError: The run cannot be loaded, or sequences and run do not fit each other.
        UntrustedNumericsError: A prediction is not finite.
    """
    tuned = open_tuned(run, ModelOptions(device=device, dtype=DType(dtype)))
    description = tuned.description
    if description.labels.task is not Task.TOKENS:
        examples, cut_line = fit_length(examples, description.length, Cut(description.cut))
        if cut_line:
            console.say(cut_line)
    with console.progress("predict", len(examples), "sequences") as bar:
        return _predict(tuned, examples.letters, bar.advance)


def predict(options: PredictOptions) -> None:
    """Predict, and write the output.

    Raises:
        UserError: The run or the input cannot be read, or do not fit each other or the output.
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
    elif options.is_track:
        _predict_track(options, tuned)
    else:
        _predict_sequences(options, tuned)


def _predict(
    tuned: Tuned, sequences: Sequence[tuple[bytes, ...]], progress: Progress = ignore_progress
) -> Predictions:
    """Predictions for sequences of any length."""
    description = tuned.description
    if description.labels.task is Task.TOKENS:
        outputs = _token_outputs(tuned, [group[0] for group in sequences], progress)
    else:
        outputs = tuned.outputs(sequences, progress)
    for output in outputs:
        if not bool(torch.isfinite(output).all()):
            raise UntrustedNumericsError("a prediction is NaN or infinite; try --dtype fp32")
    return predictions(description, outputs)


def _token_outputs(tuned: Tuned, sequences: Sequence[bytes], progress: Progress) -> list[Tensor]:
    """Outputs [L, C] for the bases of sequences of any length.

    A sequence longer than the windows of the training is read in windows that overlap by half, and
    each base takes the output of the window in which it lies nearest to the middle.
    """
    window = tuned.description.length
    pieces = [
        (index, *part) for index, each in enumerate(sequences) for part in tiles(len(each), window)
    ]
    outputs = tuned.outputs([(sequences[i][start:end],) for i, start, end, *_ in pieces], progress)
    found: list[list[Tensor]] = [[] for _ in sequences]
    for (index, start, _, first, last), output in zip(pieces, outputs, strict=True):
        found[index].append(output[first - start : last - start])
    return [torch.cat(parts) for parts in found]


def tiles(length: int, window: int) -> list[tuple[int, int, int, int]]:
    """Windows that cover a sequence: start and end, and the bases whose outputs are taken."""
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
    description = tuned.description
    classes, task = description.labels.classes, description.labels.task
    is_tokens, has_classes = task is Task.TOKENS, task in (Task.CLASSIFY, Task.TOKENS)
    columns = ["name", *(["position", "base"] if is_tokens else [])]
    columns += [*(["prediction"] if has_classes else []), *_value_names(description)]
    num_cut = total = 0
    source = blocks(_sequences(options, tuned))
    first = list(islice(source, 1))  # so that an input that cannot be read leaves no output
    with (
        open_output(options.output) as write,
        console.progress("predict", None, "sequences") as bar,
    ):
        write(table_line(columns))
        for block in chain(first, source):
            letters = [sequence.letters for sequence in block]
            if not is_tokens:
                cut = Cut(description.cut)
                letters = [
                    tuple(cut.shorten(sequence, description.length) for sequence in group)
                    for group in letters
                ]
                num_cut += sum(
                    len(group[0]) < len(piece.letters[0])
                    for group, piece in zip(letters, block, strict=True)
                )
            total += len(block)
            for sequence, values in zip(block, _predict(tuned, letters, bar.advance), strict=True):
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


def _value_names(description: Description) -> list[str]:
    """The columns of the values."""
    classes = description.labels.classes
    if description.labels.task is Task.REGRESS:
        return list(classes)
    return [f"p_{name}" for name in classes]


def _sequences(options: PredictOptions, tuned: Tuned) -> Iterator[Piece]:
    """The sequences of the input: records, rows of a table, or regions."""
    reading = tuned.model.reading
    if options.reference is not None:
        yield from _regions(options)
        return
    path = options.source
    if is_gff(path) or ".bed" in path.suffixes:
        raise UserError(f"{path}: give the genome of these regions with --reference")
    if not first_bytes(path).lstrip().startswith(b">"):
        for name, letters in read_sequences(path):
            if (len(letters) > 1) != reading.is_pair:
                wanted = "pairs of sequences" if reading.is_pair else "single sequences"
                raise UserError(f"{path}: the model was trained on {wanted}")
            yield Piece(name, letters, name, 0)
        return
    if reading.is_pair:
        raise UserError(f"{path}: the model was trained on pairs; give a table with both sequences")
    for record in read_records(path):
        require_nucleotides(path, record)
        if not record.sequence:
            raise UserError(f"{path}: record {record.name!r} is empty; remove it")
        yield Piece(record.name, (upper_dna(record.sequence),), record.name, 0)


def _regions(options: PredictOptions) -> Iterator[Piece]:
    assert options.reference is not None
    with Reference.open(options.reference) as genome:
        for region, found in locate_features(options.source, genome):
            bases = upper_dna(genome.fetch(found))
            if region.strand == "-" and not options.is_track:
                bases = reverse_complement(bases)
            yield Piece(region.name, (bases,), found.name, found.start)


def _predict_track(options: PredictOptions, tuned: Tuned) -> None:
    """Write the probability of a class for each base, in the order of the input."""
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
    with (
        open_track(options.output, lengths) as put,
        console.progress("predict", len(sequences), "sequences") as bar,
    ):
        for sequence in sequences:
            [values] = _predict(tuned, [sequence.letters])
            put(sequence.contig, sequence.start, values[:, column].tolist())
            bar.advance(1)
    number = counted(len(sequences), "sequence")
    console.say(f"wrote the probability of {name} for each base of {number}")


class _Allele(NamedTuple):
    """The predictions for an allele: with REF, with ALT, and the difference; or only a status."""

    status: str
    values: tuple[NDArray[np.float64], ...] = ()


def _predict_variants(options: PredictOptions, tuned: Tuned) -> None:
    """Add predictions to the INFO of variants, whose lines stay as they are otherwise."""
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
    fields = _info_fields(description.labels.classes, reading)
    vcf = read_vcf(options.source, scored=True)  # scores and predictions stand side by side
    _check_names(options.source, vcf.header, [STATUS, *chain.from_iterable(fields)])
    source = blocks(vcf.records)
    first = list(islice(source, 1))  # so that an input that cannot be read leaves no output
    counts: Counter[str] = Counter()
    missing = ""
    with (
        Reference.open(options.reference) as genome,
        open_output(options.output) as write,
        console.progress("predict", None, "records") as bar,
    ):
        assert tuned.model.trunk is not None
        window = AlleleOptions(window=max(2, description.length), strand="fwd")  # type: ignore[arg-type] # made a Strand
        cutter = VariantScorer(tuned.model.trunk, genome, window)
        write(vcf.header.with_lines(_header_lines(options, description, fields)))
        for records in chain(first, source):
            for record, alleles in zip(
                records, _predict_alleles(tuned, cutter, records), strict=True
            ):
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
        raise TooManySkippedError(f"{options.source}: nothing could be predicted{missing}")
    if missing:
        console.warn(f"{options.source}{missing}")


def _predict_alleles(
    tuned: Tuned, cutter: VariantScorer, records: Iterable[VariantRecord]
) -> list[list[_Allele]]:
    """The alleles of some records, predicted together."""
    reading = tuned.model.reading
    found: list[list[tuple[str, int | None]]] = []  # status, and index of the first window
    inputs: list[tuple[bytes, ...]] = []
    for record in records:
        found.append([])
        for alternate in record.alternates:
            windows = cutter.windows(record, alternate)
            if isinstance(windows, Status):
                found[-1].append((str(windows), None))
                continue
            [pair] = windows
            found[-1].append((str(Status.EDGE if pair.at_edge else Status.OK), len(inputs)))
            sequences = (pair.reference.sequence, pair.alternate.sequence)
            inputs += [sequences] if reading.is_pair else [(sequence,) for sequence in sequences]
    values = _predict(tuned, inputs)

    def allele(status: str, first: int | None) -> _Allele:
        if first is None:
            return _Allele(status)
        if reading.is_pair:
            return _Allele(status, (values[first],))
        ref, alt = values[first], values[first + 1]
        return _Allele(status, (ref, alt, alt - ref))

    return [[allele(*each) for each in alleles] for alleles in found]


def _info_fields(classes: Sequence[str], reading: Reading) -> list[list[str]]:
    """The names of the INFO fields: of each class those of REF, ALT and the difference."""
    kinds = ("",) if reading.is_pair else ("_REF", "_ALT", "_DIFF")
    return [
        [f"EVO2_{re.sub(r'[^A-Za-z0-9]+', '_', name)}{kind}" for name in classes] for kind in kinds
    ]


def _check_names(source: Path, header: Header, names: Iterable[str]) -> None:
    """Refuse a VCF that has one of the fields that will be added.

    Raises:
        UserError: It has.
    """
    for name in names:
        if any(f"ID={name},".encode() in line for line in header.lines):
            raise UserError(f"{source}: has {name} of an earlier run; give the original file")


def _header_lines(
    options: PredictOptions, description: Description, fields: list[list[str]]
) -> list[str]:
    what = "value" if description.labels.task is Task.REGRESS else "probability"
    told = {"REF": "with REF", "ALT": "with ALT", "DIFF": "with ALT minus that with REF"}
    lines = [
        f"##evo2cli={__version__}",
        f"##evo2Predict={options.run.resolve().name} ({description.labels.task} on "
        f"{description.base} {description.base_fingerprint})",
    ]
    for names in fields:
        for name, label in zip(names, description.labels.classes, strict=True):
            where = told.get(name.rpartition("_")[2], "of the pair of windows")
            lines.append(
                f'##INFO=<ID={name},Number=A,Type=Float,Description="{what} of {label} {where}">'
            )
    lines.append(
        f'##INFO=<ID={STATUS},Number=A,Type=String,Description="OK, EDGE (the window is '
        'cut or shifted at an end of the contig), or why there is no prediction">'
    )
    return lines


def _with_info(record: VariantRecord, alleles: Sequence[_Allele], fields: list[list[str]]) -> bytes:
    if not alleles:  # a blank line
        return record.line
    entries = []
    for index, names in enumerate(fields):
        for column, name in enumerate(names):
            cells = [cell(float(a.values[index][column]) if a.values else None) for a in alleles]
            entries.append(f"{name}={','.join(cells)}")
    entries.append(f"{STATUS}={','.join(allele.status for allele in alleles)}")
    return record.with_info(";".join(entries))
