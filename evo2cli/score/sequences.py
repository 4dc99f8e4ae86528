"""Scoring of sequences: the log-likelihood of each record of a FASTA.

A sequence of n bases has n - 1 predictions, one for each base given all bases before it. After a
lineage tag, which is read but not scored, it has n. `sum_logprob` is the sum of their
log-probabilities, and `mean_logprob` their mean, in nats.
"""

import zlib
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate, islice
from pathlib import Path
from typing import Any, Protocol

from evo2cli import __version__, console
from evo2cli.data.tags import read_tag, split_tag
from evo2cli.devices import Part, open_parts, pick_devices
from evo2cli.errors import UserError, counted, names_arguments
from evo2cli.files import locks_output, open_output
from evo2cli.genome.alphabet import ACGT
from evo2cli.genome.fasta import Record, read_records
from evo2cli.journal import Recall, keep_journal, open_journals
from evo2cli.models import memory_explained, open_model, pick_device, ready_model
from evo2cli.options import Strand
from evo2cli.score.context_parallel import ContextParallelScorer
from evo2cli.score.options import Layout, ScoreOptions, StrandOptions
from evo2cli.score.report import check_skipped
from evo2cli.tables import Row, json_line, rounded, table_line
from evo2cli.training.ranks import Ranks
from stripedhyena2 import StripedHyena2
from stripedhyena2.dna import strand_of
from stripedhyena2.errors import InputError
from stripedhyena2.fingerprint import fingerprint
from stripedhyena2.progress import Progress, ignore_progress
from stripedhyena2.scoring import mean_logprob, sequence_logprob

COLUMNS = ("name", "length", "sum_logprob", "mean_logprob")


class Logprob(Protocol):
    """A function that computes the log-likelihood of upper-case bases, as `sequence_logprob`."""

    def __call__(self, bases: bytes, progress: Progress, /, *, context: bytes) -> float:
        """The sum over all bases, or without context over all but the first, in nats."""


@dataclass(frozen=True)
class InputSequence:
    """A sequence to score.

    Attributes:
        name: Its name.
        tag: Lineage tag with its '|', read before the bases; may be empty.
        bases: Upper-case DNA.
    """

    name: str
    tag: bytes
    bases: bytes

    @property
    def num_predictions(self) -> int:
        """Number of bases that the model predicts."""
        return len(self.bases) if self.tag else max(len(self.bases) - 1, 0)


@names_arguments
def score_sequences(
    sequences: Iterable[Record | tuple[str, str | bytes]] | str | Path,
    model: StripedHyena2 | str | Path = "nano",
    *,
    strand: Strand | str = Strand.FORWARD,
    tag: str | None = None,
    max_memory: float | None = None,
    device: str = "auto",
    dtype: str = "auto",
    progress: Progress = ignore_progress,
) -> Iterator[Row]:
    """Score sequences: yield one row for each, in the order of the input.

    The row of a sequence is a dict: `name`; `length` in bases; `sum_logprob`, the log-likelihood of
    the sequence in nats; and `mean_logprob`, that divided by the number of predictions: length - 1,
    or length after a tag. Both are None without a prediction. Rows are equal to those of
    `evo2 score`.

    Args:
        sequences: A FASTA file; or an iterable of its records, or of names and sequences. Lower
            case and U are read as upper case and T. A sequence may begin with a lineage tag, e.g.
            |D__BACTERIA;P__BACILLOTA|, which is read, but not scored.
        model: Name of a model, checkpoint folder or file, or a loaded model.
        strand: "fwd", "rc" (the reverse complement) or "both", the mean of the two.
        tag: Lineage to read before every sequence.
        max_memory: Maximum bytes of weights and activations on the device; None for the free
            memory.
        device: Device for a model that is not loaded yet, e.g. "cpu" or "cuda:1".
        dtype: Its precision, e.g. "bf16".
        progress: Called with the number of bases that have been computed since the last call.

    Raises:
        UserError: An argument is not valid (here), or a sequence is not DNA or RNA (while rows are
            read).
        InputError: A sequence does not fit the memory, however small the pieces.
        NonFiniteError: A log-likelihood is NaN or infinite.
    """
    choices: dict[str, Any] = {"strand": strand}  # may be text, which the options convert
    strands = StrandOptions(**choices).strand
    assert strands is not None
    source: str | Path = "sequences"
    records: Iterable[Record | tuple[str, str | bytes]] = ()
    if isinstance(sequences, str | Path):
        source, records = sequences, read_records(sequences)
    else:
        records = sequences
    loaded = ready_model(model, device=device, dtype=dtype)
    logprob = partial(sequence_logprob, loaded, max_memory=max_memory)
    read = _read_dna(source, records, b"" if tag is None else read_tag(tag))

    def rows() -> Iterator[Row]:
        for sequence in read:
            yield score_sequence(loaded, logprob, sequence, strands.single, progress)

    return rows()


def score_sequence(
    model: StripedHyena2,
    logprob: Logprob,
    sequence: InputSequence,
    strands: Iterable[Strand],
    progress: Progress = ignore_progress,
) -> Row:
    """Score one sequence; the score of two strands is their mean.

    Args:
        model: The model, for messages.
        logprob: Computes log-likelihoods with the model.
        sequence: The sequence.
        strands: Single strands to read.
        progress: Called with the number of bases that have been computed since the last call.

    Returns:
        The `COLUMNS`; log-likelihoods are None without a prediction.

    Raises:
        NonFiniteError: The log-likelihood is NaN or infinite.
    """
    row: Row = dict(zip(COLUMNS, (sequence.name, len(sequence.bases), None, None), strict=True))
    if sequence.num_predictions:
        reads = [strand_of(sequence.bases, strand) for strand in strands]
        after_tag = partial(logprob, context=sequence.tag)
        total = mean_logprob(model, reads, sequence.name, after_tag, progress)
        row["sum_logprob"] = rounded(total)
        row["mean_logprob"] = rounded(total / sequence.num_predictions)
    return row


@locks_output
def score_fasta(options: ScoreOptions) -> None:
    """Score every record of a FASTA and write the rows to the output.

    Raises:
        UserError: The input is not a FASTA of DNA or RNA.
        TooManySkippedError: Too many records have no prediction; the output is complete.
        NonFiniteError: A log-likelihood is NaN or infinite.
    """
    layout = options.layout(Layout.TSV)
    devices = pick_devices(options.device)
    total, borders = None, list[int]()
    if not options.is_stdin:
        # Reading the file twice is fast, and an invalid record is found before hours of work.
        ends = [0, *accumulate(len(sequence.bases) for sequence in _read_fasta(options))]
        total = ends[-1]
        parts_before = range(1, len(devices))
        cuts = [bisect_left(ends, total * count / len(devices)) for count in parts_before]
        borders = [0, *cuts, len(ends) - 1]
    tally: Counter[str] = Counter()
    with (
        open_parts(options, devices, borders, score_part, (total, "bases")) as parts,
        _open_scorer(replace(options, device=devices[0])) as scorer,
    ):
        if scorer is None:
            return
        model, logprob = scorer
        records = _read_fasta(options)
        with (
            open_journals([part.journal for part in parts], _settings(options, model)) as recalls,
            open_output(options.output) as write,
            console.progress("score" if len(parts) == 1 else "write", total, "bases") as bar,
        ):
            if layout is Layout.TSV:
                write(table_line(COLUMNS))
            for part, recall in zip(parts, recalls, strict=True):
                of_part = islice(records, part.size)
                for sequence, row in _score_records(
                    of_part, model, logprob, options.sequence_strand, recall, bar.advance
                ):
                    write(json_line(row) if layout is Layout.JSONL else table_line(row.values()))
                    bases = sequence.bases
                    tally["records"] += 1
                    tally["skipped"] += not sequence.num_predictions
                    tally["empty"] += not bases
                    tally["long"] += len(sequence.tag) + len(bases) > model.config.context
                    tally["ambiguous"] += bool(bases.translate(None, ACGT))
    all_records = counted(tally["records"], "record")
    for key, warning in (
        ("empty", "empty"),
        (
            "long",
            "longer than the context the model was trained on; beyond it, it extrapolates",
        ),
        ("ambiguous", "with letters other than ACGT, which are scored like any other token"),
    ):
        if tally[key]:
            console.warn(f"{tally[key]:,} of {all_records}: {warning}")
    console.say(f"{tally['records'] - tally['skipped']:,} of {all_records} scored")
    check_skipped(options, tally["skipped"], tally["records"])


def score_part(options: ScoreOptions, part: Part, progress: Progress) -> None:
    """Score a part of the records into a journal, from which the main process writes the output.

    Raises:
        UserError: As `score_fasta`.
        NonFiniteError: A log-likelihood is NaN or infinite.
    """
    records = _read_fasta(options)
    with _open_scorer(options) as scorer:
        assert scorer is not None
        model, logprob = scorer
        with keep_journal(part.journal, _settings(options, model)) as recall:
            of_part = islice(records, part.first, part.end)
            strand = options.sequence_strand
            for _ in _score_records(of_part, model, logprob, strand, recall, progress):
                pass


@contextmanager
def _open_scorer(options: ScoreOptions) -> Iterator[tuple[StripedHyena2, Logprob] | None]:
    """Yield the model and its log-likelihood; None on ranks other than the first."""

    def load(device: str) -> StripedHyena2:
        return open_model(replace(options, device=device))

    if options.context_parallel == 1:
        model = load(options.device)
        way_out = "let several GPUs share a sequence (--context-parallel), or cut it"
        with memory_explained(f"{options.source} on {options.device}", way_out):
            try:
                yield model, partial(sequence_logprob, model, max_memory=options.memory)
            except InputError as error:  # a sequence does not fit the memory
                raise UserError(f"{options.source}: {error}") from None
        return
    with Ranks.joined(pick_device(options.device)) as alone:
        ranks = alone.sharing(alone.world)
        model = load(str(ranks.device))
        scorer = ContextParallelScorer(model, ranks)
        if ranks.is_first:
            yield model, scorer.logprob
            scorer.stop()
        else:
            scorer.work()
            yield None


def _settings(options: ScoreOptions, model: StripedHyena2) -> list[object]:
    """Everything that the results depend on besides the records, for the journal."""
    return [
        "evo2 score FASTA",
        __version__,
        fingerprint(model.config, model.state_dict()),
        options.sequence_strand,
        *([options.context_parallel] if options.context_parallel > 1 else []),
    ]


def _score_records(
    records: Iterable[InputSequence],
    model: StripedHyena2,
    logprob: Logprob,
    strand: Strand,
    recall: Recall,
    progress: Progress,
) -> Iterator[tuple[InputSequence, Row]]:
    """Yield each record with its row."""
    for sequence in records:
        num_bases = len(sequence.bases)
        key = f"{sequence.name} {num_bases} {zlib.crc32(sequence.tag + sequence.bases):08x}"
        remaining = float(num_bases)

        def count_done(done: float) -> None:
            nonlocal remaining
            remaining -= done
            progress(done)

        compute = partial(score_sequence, model, logprob, sequence, strand.single, count_done)
        row = recall(key, compute)
        progress(remaining)  # all bases of a row from the journal; tags are not counted
        yield sequence, row


def _read_fasta(options: ScoreOptions) -> Iterator[InputSequence]:
    tag = b"" if options.tag is None else read_tag(options.tag)
    return _read_dna(options.source, read_records(options.source), tag)


def _read_dna(
    source: str | Path, records: Iterable[Record | tuple[str, str | bytes]], tag: bytes
) -> Iterator[InputSequence]:
    """Validate records and split off their tags; `source` begins error messages."""
    for index, record in enumerate(records):
        if not isinstance(record, Record):
            # A string of two letters would unpack into a name and a base.
            if isinstance(record, str | bytes):
                raise UserError(f"sequence {index}: give a pair (name, bases)")
            name, sequence = record
            bases = sequence.encode() if isinstance(sequence, str) else sequence
            record = Record(name, "", bases)
        origin = f"{source}: record {record.name!r}"
        yield InputSequence(record.name, *split_tag(origin, record.sequence, tag))
