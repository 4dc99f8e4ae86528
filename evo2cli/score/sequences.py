"""Scoring of sequences: the log-likelihood of each record of a FASTA.

A sequence of n bases has n - 1 predictions, one for each base given all bases before it. The sum of
their log-probabilities is `sum_logprob`, and sum_logprob / (n - 1) is `mean_logprob`, in nats.
"""

import zlib
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import accumulate, islice
from pathlib import Path
from typing import Any

from evo2cli import __version__, console
from evo2cli.devices import Part, open_parts, pick_devices
from evo2cli.errors import UserError
from evo2cli.files import locks_output, open_output
from evo2cli.genome.alphabet import ACGT
from evo2cli.genome.fasta import Record, read_records, require_nucleotides
from evo2cli.genome.windows import upper_dna
from evo2cli.journal import Recall, keep_journal, open_journals
from evo2cli.models import memory_explained, open_model, pick_device, ready_model
from evo2cli.options import Strand
from evo2cli.score.context_parallel import SharedScorer
from evo2cli.score.options import Layout, ScoreOptions, StrandOptions
from evo2cli.score.output import check_skipped
from evo2cli.tables import Row, json_line, rounded, table_line
from evo2cli.training.ranks import Ranks
from stripedhyena2 import StripedHyena2
from stripedhyena2.dna import strand_of
from stripedhyena2.fingerprint import fingerprint
from stripedhyena2.progress import Progress, ignore_progress
from stripedhyena2.scoring import mean_logprob, sequence_logprob

COLUMNS = ("name", "length", "sum_logprob", "mean_logprob")

# The log-likelihood of upper-case bases in nats; calls a function with the number of bases done.
Total = Callable[[bytes, Progress], float]


def score_sequences(
    sequences: Iterable[Record | tuple[str, str | bytes]] | str | Path,
    model: StripedHyena2 | str | Path = "nano",
    *,
    strand: Strand | str = Strand.FORWARD,
    max_memory: float | None = None,
    device: str = "auto",
    dtype: str = "auto",
    progress: Progress = ignore_progress,
) -> Iterator[Row]:
    """Score sequences: one row for each, in their order.

    The row of a sequence is a dict: `name`; `length` in bases; `sum_logprob`, the log-likelihood of
    the sequence in nats; and `mean_logprob`, that divided by its length - 1 predictions. Both are
    None for fewer than two bases. Rows are equal to those of `evo2 score`.

    Args:
        sequences: A FASTA file; or an iterable of its records, or of names and sequences. Lower
            case and U are read as upper case and T.
        model: Name of a model, checkpoint folder or file, or a loaded model.
        strand: "fwd", "rc" (the reverse complement) or "both", whose mean is taken.
        max_memory: Bytes that weights and computation may take on the device; None for what is
            free.
        device: Where a model that is not loaded yet will run, e.g. "cpu" or "cuda:1".
        dtype: Its precision, e.g. "bf16".
        progress: Called with the number of bases that have been computed since the last call.

    Raises:
        UserError: An argument is not valid (here), or a sequence is not DNA or RNA (while rows are
            read).
        InputError: A sequence does not fit the memory, however small the pieces.
        NonFiniteError: A log-likelihood is NaN or infinite.
    """
    choices: dict[str, Any] = {"strand": strand}  # text, which the options turn into a choice
    strands = StrandOptions(**choices).strand
    assert strands is not None
    source: str | Path = "sequences"
    records: Iterable[Record | tuple[str, str | bytes]] = ()
    if isinstance(sequences, str | Path):
        source, records = sequences, read_records(sequences)
    else:
        records = sequences
    loaded = ready_model(model, device=device, dtype=dtype)
    total = partial(sequence_logprob, loaded, max_memory=max_memory)

    def rows() -> Iterator[Row]:
        for name, bases in _read_dna(source, records):
            yield score_sequence(loaded, total, name, bases, strands.single, progress)

    return rows()


def score_sequence(
    model: StripedHyena2,
    total: Total,
    name: str,
    bases: bytes,
    strands: Sequence[Strand],
    progress: Progress = ignore_progress,
) -> Row:
    """Score one sequence of upper-case DNA; two strands give their mean.

    Args:
        model: Model that `total` runs, for messages.
        total: The log-likelihood of bases.
        name: Name of the sequence.
        bases: The sequence.
        strands: Single strands to read.
        progress: Called with the number of bases that have been computed since the last call.

    Returns:
        A value for each of `COLUMNS`; None for log-likelihoods of fewer than two bases.

    Raises:
        NonFiniteError: The log-likelihood is NaN or infinite.
    """
    row: Row = dict(zip(COLUMNS, (name, len(bases), None, None), strict=True))
    if len(bases) >= 2:
        reads = [strand_of(bases, strand) for strand in strands]
        logprob = mean_logprob(model, reads, name, total, progress)
        row["sum_logprob"] = rounded(logprob)
        row["mean_logprob"] = rounded(logprob / (len(bases) - 1))
    return row


@locks_output
def score_fasta(options: ScoreOptions) -> None:
    """Score every record of a FASTA and write the rows to the output.

    Raises:
        UserError: The input is not a FASTA of DNA or RNA.
        TooManySkippedError: Too many records have fewer than two bases; the output is complete.
        NonFiniteError: A log-likelihood is NaN or infinite.
    """
    source = options.source
    layout = options.layout(Layout.TSV)
    devices = pick_devices(options.device)
    total, borders = None, list[int]()
    if not options.is_stdin:
        # Reading the file once more is fast, and an invalid record is found before hours of work.
        ends = [0, *accumulate(len(bases) for _, bases in _read_dna(source, read_records(source)))]
        total = ends[-1]
        shares = range(1, len(devices))
        cuts = [bisect_left(ends, total * share / len(devices)) for share in shares]
        borders = [0, *cuts, len(ends) - 1]
    tally: Counter[str] = Counter()
    with (
        open_parts(options, devices, borders, score_part, (total, "bases")) as parts,
        _open_scorer(replace(options, device=devices[0])) as scorer,
    ):
        if scorer is None:
            return
        model, logprob = scorer
        records = _read_dna(source, read_records(source))
        with (
            open_journals([part.journal for part in parts], _settings(options, model)) as recalls,
            open_output(options.output) as write,
            console.progress("score" if len(parts) == 1 else "write", total, "bases") as bar,
        ):
            if layout is Layout.TSV:
                write(table_line(COLUMNS))
            for part, recall in zip(parts, recalls, strict=True):
                own = islice(records, part.size)
                for bases, row in _score_records(
                    own, model, logprob, options.sequence_strand, recall, bar.advance
                ):
                    write(json_line(row) if layout is Layout.JSONL else table_line(row.values()))
                    tally["records"] += 1
                    tally["skipped"] += len(bases) < 2
                    tally["empty"] += not bases
                    tally["long"] += len(bases) > model.config.context
                    tally["ambiguous"] += bool(bases.translate(None, ACGT))
    for trait, meaning in (
        ("empty", "are empty"),
        (
            "long",
            "are longer than the context the model was trained on; beyond it, it extrapolates",
        ),
        ("ambiguous", "hold letters other than ACGT, which are scored like any other token"),
    ):
        if tally[trait]:
            console.warn(f"{tally[trait]:,} of {tally['records']:,} records {meaning}")
    console.say(f"{tally['records'] - tally['skipped']:,} of {tally['records']:,} records scored")
    check_skipped(options, tally["skipped"], tally["records"])


def score_part(options: ScoreOptions, part: Part, progress: Progress) -> None:
    """Score some of the records into a journal, from which another process writes them.

    Raises:
        UserError: As `score_fasta`.
        NonFiniteError: A log-likelihood is NaN or infinite.
    """
    records = _read_dna(options.source, read_records(options.source))
    with _open_scorer(options) as scorer:
        assert scorer is not None
        model, logprob = scorer
        with keep_journal(part.journal, _settings(options, model)) as recall:
            own = islice(records, part.first, part.end)
            strand = options.sequence_strand
            for _ in _score_records(own, model, logprob, strand, recall, progress):
                pass


@contextmanager
def _open_scorer(options: ScoreOptions) -> Iterator[tuple[StripedHyena2, Total] | None]:
    """The model and the log-likelihood by it; None in a process that has helped another one."""

    def load(device: str) -> StripedHyena2:
        return open_model(replace(options, device=device))

    if options.context_parallel == 1:
        model = load(options.device)
        way_out = "let several GPUs share a sequence (--context-parallel), or cut it"
        with memory_explained(f"{options.source} on {options.device}", way_out):
            yield model, partial(sequence_logprob, model, max_memory=options.memory)
        return
    ranks = Ranks.join(pick_device(options.device))
    try:
        ranks = ranks.sharing(ranks.world)
        model = load(str(ranks.device))
        shared = SharedScorer(model, ranks)
        if ranks.is_first:
            yield model, shared.total
            shared.release()
        else:
            shared.help()
            yield None
    finally:
        ranks.leave()


def _settings(options: ScoreOptions, model: StripedHyena2) -> list[object]:
    """Everything but the records that decides the results, for the journal."""
    return [
        "evo2 score FASTA",
        __version__,
        fingerprint(model.config, model.state_dict()),
        options.sequence_strand,
        *([options.context_parallel] if options.context_parallel > 1 else []),
    ]


def _score_records(
    records: Iterable[tuple[str, bytes]],
    model: StripedHyena2,
    logprob: Total,
    strand: Strand,
    recall: Recall,
    progress: Progress,
) -> Iterator[tuple[bytes, Row]]:
    """The bases of each record, and its row."""
    for name, bases in records:
        key = f"{name} {len(bases)} {zlib.crc32(bases):08x}"
        remaining = float(len(bases))

        def count_done(done: float) -> None:
            nonlocal remaining
            remaining -= done
            progress(done)

        compute = partial(score_sequence, model, logprob, name, bases, strand.single, count_done)
        row = recall(key, compute)
        progress(remaining)  # all bases of a row that the journal has
        yield bases, row


def _read_dna(
    source: str | Path, records: Iterable[Record | tuple[str, str | bytes]]
) -> Iterator[tuple[str, bytes]]:
    """Names and upper-case DNA of sequences; `source` is for error messages."""
    for index, record in enumerate(records):
        if not isinstance(record, Record):
            # A string of two letters would unpack into a name and a base.
            if isinstance(record, str | bytes):
                raise UserError(f"sequence {index}: give a pair (name, bases)")
            name, sequence = record
            bases = sequence.encode() if isinstance(sequence, str) else sequence
            record = Record(name, "", bases)
        require_nucleotides(source, record)
        yield record.name, upper_dna(record.sequence)
