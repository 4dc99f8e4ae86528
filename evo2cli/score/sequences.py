"""`evo2 score` of a FASTA: one log-likelihood a record."""

import zlib
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import accumulate, islice
from pathlib import Path
from statistics import mean

from evo2cli import __version__, console
from evo2cli.devices import Advance, Part, open_parts, pick_devices
from evo2cli.files import open_output
from evo2cli.genome.alphabet import ACGT, reverse_complement
from evo2cli.genome.fasta import read_records, require_nucleotides
from evo2cli.genome.source import STDIN
from evo2cli.genome.windows import upper_dna
from evo2cli.journal import Recall, keep_journal, open_journals
from evo2cli.models import memory_explained, open_model, pick_device
from evo2cli.options import Strand
from evo2cli.score.context_parallel import SharedScorer
from evo2cli.score.options import Layout, ScoreOptions
from evo2cli.tables import Row, json_line, rounded, table_line
from evo2cli.training.ranks import Ranks
from stripedhyena2 import StripedHyena2
from stripedhyena2.fingerprint import fingerprint
from stripedhyena2.scoring import require_finite, sequence_logprob

_SHARE = "let several GPUs share a sequence (--context-parallel), or cut it"
COLUMNS = ("name", "length", "sum_logprob", "mean_logprob")
_ODDITIES = {
    "empty": "hold no base",
    "long": "are longer than the context the model was trained on; beyond it, it extrapolates",
    "ambiguous": "hold letters other than ACGT, which are scored as they are",
}


def score_fasta(options: ScoreOptions) -> None:
    """Score every record: the sum over its n - 1 predictable bases, and their mean, in nats.

    Raises:
        UserError: The input is no FASTA of DNA or RNA.
        TooManySkippedError: More records than allowed are too short for a prediction.
    """
    layout = options.layout(Layout.TSV)
    devices = pick_devices(options.device)
    total, borders = None, list[int]()
    if options.source != STDIN:
        # Reading it once more is fast, and a bad record is found before hours of work.
        ends = [0, *accumulate(len(sequence) for _, sequence in _read_dna(options.source))]
        total = ends[-1]
        shares = range(1, len(devices))
        cuts = [bisect_left(ends, total * share / len(devices)) for share in shares]
        borders = [0, *cuts, len(ends) - 1]
    with (
        open_parts(options, devices, borders, score_part, (total, "bases")) as parts,
        _scorer(replace(options, device=devices[0])) as found,
    ):
        if found is not None:
            _score_records(options, layout, parts, total, *found)


def score_part(options: ScoreOptions, part: Part, advance: Advance) -> None:
    """Score some of the records into a journal, from which another process writes them.

    Raises:
        UserError: As `score_fasta`.
        UntrustedNumericsError: A log-likelihood is no finite number.
    """
    records = islice(_read_dna(options.source), part.first, part.end)
    with _scorer(options) as found:
        assert found is not None
        with keep_journal(part.journal, _settings(options, found[0])) as recall:
            for _ in _results(options, records, *found, recall, advance):
                pass


Total = Callable[[bytes, Callable[[float], None]], float]


@contextmanager
def _scorer(options: ScoreOptions) -> Iterator[tuple[StripedHyena2, Total] | None]:
    """The model and what gives a sequence's log-likelihood; None where this process has helped."""

    def load(device: str) -> StripedHyena2:
        return open_model(options.model, config=options.config, device=device, dtype=options.dtype)

    if options.context_parallel == 1:
        model = load(options.device)
        with memory_explained(f"{options.source} on {options.device}", _SHARE):
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
    """All beside the records that decides the results."""
    return [
        "evo2 score FASTA",
        __version__,
        fingerprint(model.config, model.state_dict()),
        options.sequence_strand,
        *([options.context_parallel] if options.context_parallel > 1 else []),
    ]


def _score_records(
    options: ScoreOptions,
    layout: Layout,
    parts: Sequence[Part],
    total: int | None,
    model: StripedHyena2,
    score: Total,
) -> None:
    tally: Counter[str] = Counter()
    records = _read_dna(options.source)
    with (
        open_journals([part.journal for part in parts], _settings(options, model)) as recalls,
        open_output(options.output) as write,
        console.progress("score" if len(parts) == 1 else "write", total, "bases") as bar,
    ):
        if layout is Layout.TSV:
            write(table_line(COLUMNS))
        for part, recall in zip(parts, recalls, strict=True):
            own = islice(records, part.size)
            for sequence, row in _results(options, own, model, score, recall, bar.advance):
                write(json_line(row) if layout is Layout.JSONL else table_line(row.values()))
                tally.update(_traits(sequence, model.config.context))
    _report(options, tally)


def _results(
    options: ScoreOptions,
    records: Iterable[tuple[str, bytes]],
    model: StripedHyena2,
    score: Total,
    recall: Recall,
    advance: Advance,
) -> Iterator[tuple[bytes, Row]]:
    """The sequence of each record, and its row."""
    strands = options.sequence_strand.single
    for name, sequence in records:
        key = f"{name} {len(sequence)} {zlib.crc32(sequence):08x}"
        untold = float(len(sequence))

        def tell(done: float) -> None:
            nonlocal untold
            untold -= done
            advance(done)

        compute = partial(score_record, model, score, name, sequence, strands, tell)
        row = recall(key, compute)
        advance(untold)  # of a row that was recalled, all
        yield sequence, row


def score_record(
    model: StripedHyena2,
    total: Total,
    name: str,
    sequence: bytes,
    strands: Sequence[Strand],
    advance: Callable[[float], None] = lambda _: None,
) -> Row:
    """Score one sequence of upper-case DNA; two strands give their mean.

    Args:
        model: What scores it.
        total: Its log-likelihood of a sequence, in nats; tells a callback how far it is.
        name: Of the record.
        sequence: Its bases.
        strands: Single strands to read.
        advance: Hears how many bases are done, as they are.

    Returns:
        A value for each of `COLUMNS`; None for the log-probabilities below two bases.

    Raises:
        UntrustedNumericsError: The log-likelihood is no finite number.
    """
    row: Row = dict(zip(COLUMNS, (name, len(sequence), None, None), strict=True))
    if len(sequence) >= 2:
        totals = []
        for strand in strands:
            read = sequence if strand is Strand.FORWARD else reverse_complement(sequence)
            found = total(read, lambda done: advance(done / len(strands)))
            require_finite(found, model, read, name)
            totals.append(found)
        row["sum_logprob"] = rounded(mean(totals))
        row["mean_logprob"] = rounded(mean(totals) / (len(sequence) - 1))
    return row


def _read_dna(source: Path) -> Iterator[tuple[str, bytes]]:
    """Names and sequences, upper-case with T for U."""
    for record in read_records(source):
        require_nucleotides(source, record)
        yield record.name, upper_dna(record.sequence)


def _traits(sequence: bytes, context: int) -> Iterator[str]:
    """What the closing report counts of a record."""
    yield "records"
    if len(sequence) < 2:
        yield "skipped"
    if not sequence:
        yield "empty"
    if len(sequence) > context:
        yield "long"
    if sequence.translate(None, ACGT):
        yield "ambiguous"


def _report(options: ScoreOptions, tally: Counter[str]) -> None:
    """Tell how it went, and what to mind."""
    for trait, meaning in _ODDITIES.items():
        if tally[trait]:
            console.warn(f"{tally[trait]:,} of {tally['records']:,} records {meaning}")
    console.say(f"{tally['records'] - tally['skipped']:,} of {tally['records']:,} records scored")
    options.check_skipped(tally["skipped"], tally["records"])
