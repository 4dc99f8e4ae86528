"""Scoring of variants: each allele by the windows of the genome with REF and with ALT.

EVO2_DELTA = log P(window with ALT) - log P(window with REF), in nats: the difference of the
log-likelihoods of two windows of the genome that differ in the allele alone.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from evo2cli import __version__, console
from evo2cli.devices import Part, even_borders, open_parts, pick_devices
from evo2cli.errors import UserError, names_arguments
from evo2cli.files import locks_output, size_and_time
from evo2cli.genome.parquet import import_pyarrow
from evo2cli.genome.reference import Reference
from evo2cli.genome.variant_names import read_variant_name
from evo2cli.genome.vcf import VariantRecord
from evo2cli.journal import Recall, keep_journal, open_journals, recall_all
from evo2cli.models import (
    memory_explained,
    open_model,
    precision_name,
    ready_model,
    warn_beyond_context,
)
from evo2cli.options import Strand, flag, given
from evo2cli.score.alleles import VariantScorer
from evo2cli.score.background import open_background
from evo2cli.score.features import make_features
from evo2cli.score.input import (
    Read,
    Variants,
    check_contigs,
    check_regions,
    count_shard,
    input_digest,
    open_variants,
)
from evo2cli.score.options import (
    VARIANT_LAYOUTS,
    AlleleOptions,
    Feature,
    IndelMode,
    Layout,
    OnRefMismatch,
    Quantity,
    ScoreOptions,
    VariantOptions,
    WindowOptions,
    Windows,
)
from evo2cli.score.output import (
    FIELDS,
    PERCENTILE,
    SHARD,
    SHARDED_INPUT,
    WINDOW_COLUMNS,
    VariantWriter,
    WriteRecord,
    allele_rows,
    open_variant_output,
    written_fields,
)
from evo2cli.score.precision import Noise, measure_noise
from evo2cli.score.report import Tally, report
from evo2cli.tables import Row
from stripedhyena2 import StripedHyena2
from stripedhyena2.fingerprint import fingerprint
from stripedhyena2.progress import Progress, ignore_progress

MAX_BLOCK = 4096  # records that are read and sorted before they are scored
MAX_BLOCK_BYTES = 2**26  # bytes of their lines, which may have many samples


@names_arguments
def score_variants(
    variants: Iterable[VariantRecord | str] | str | Path,
    reference: Reference | str | Path | None,
    model: StripedHyena2 | str | Path = "nano",
    *,
    window: int | None = None,
    windows: Windows | str = Windows.CENTRED,
    strand: Strand | str = Strand.BOTH,
    indel_mode: IndelMode | str = IndelMode.FIXED,
    after: int | None = None,
    on_ref_mismatch: OnRefMismatch | str = OnRefMismatch.SKIP,
    score: Quantity | str = Quantity.ALL,
    device: str = "auto",
    dtype: str = "auto",
    progress: Progress = ignore_progress,
) -> Iterator[Row]:
    """Score variants: yield one row per alternate allele, in the order of the input.

    The row of an allele is a dict:

    - `chrom`, `pos` (1-based), `id`, `ref`, `alt`: as in the record.
    - `EVO2_DELTA`: log P(window with ALT) - log P(window with REF), in nats; the mean of both
      strands if both are read. Negative: the alternate allele is less likely.
    - `EVO2_REF`, `EVO2_ALT`: the two log-likelihoods, in nats.
    - `EVO2_FWD`, `EVO2_RC`: `EVO2_DELTA` of each strand that is read.
    - `EVO2_STATUS`: "OK", a remark on the score, or why there is none.
    - `EVO2_NONACGT`: number of letters other than ACGT, in the window with more of them.
    - `window_start`, `window_end`, `alt_window_start`, `alt_window_end`: intervals of the contig
      that the windows with REF and with ALT cover, 0-based and half-open.

    Missing values are None. Rows are equal to those of `evo2 score`.

    Args:
        variants: A VCF, BCF or table of variants; or an iterable of records and of variants such as
            "chr22-1024-A-C", with 1-based positions.
        reference: FASTA of the genome, or an open `Reference`, which stays open; None for a table
            with the columns ref_seq and var_seq.
        model: Name of a model, checkpoint folder or file, or a loaded model.
        window: Number of bases in a window, at least 2; None for 8192, or the context of the model
            if that is less.
        windows: "centred" or "anchored".
        strand: "fwd", "rc" or "both".
        indel_mode: "fixed" or "anchored".
        after: Number of bases after the variant at which windows end; None for about half a window.
        on_ref_mismatch: "skip", "error" or "swap".
        score: "all", or "next-base": then the three values are log-probabilities of the variant
            base alone, given the bases before it.
        device: Device for a model that is not loaded yet, e.g. "cpu" or "cuda:1".
        dtype: Its precision, e.g. "bf16".
        progress: Called with the number of records that have been scored since the last call.

    Raises:
        UserError: An argument is not valid (here); a file or record is not (while rows are read).
        NonFiniteError: A log-likelihood is NaN or infinite.
    """
    choices: dict[str, Any] = {  # may be text, which the options convert
        "windows": windows,
        "strand": strand,
        "indel_mode": indel_mode,
        "on_ref_mismatch": on_ref_mismatch,
        "score": score,
    }
    options = AlleleOptions(window=window, after=after, **choices)
    source: Iterable[VariantRecord | str] = (
        open_variants((str(variants),)).records if isinstance(variants, str | Path) else variants
    )
    opened = (
        nullcontext(reference)
        if isinstance(reference, Reference)
        else Reference.open(Path(reference))
        if reference is not None
        else Reference.from_sequences({})
    )

    def score_all() -> Iterator[Row]:
        fields = [field for field in (*FIELDS, *WINDOW_COLUMNS) if field != PERCENTILE]
        with opened as genome:
            scorer = VariantScorer(ready_model(model, device=device, dtype=dtype), genome, options)
            records = (_as_record(index, v, genome) for index, v in enumerate(source))
            for record, rows in score_records(records, scorer, progress=progress):
                yield from allele_rows(record, rows, fields)

    return score_all()


def _as_record(index: int, variant: VariantRecord | str, genome: Reference) -> VariantRecord:
    record = read_variant_name(variant, genome) if isinstance(variant, str) else variant
    if not isinstance(record, VariantRecord):
        raise UserError(
            f"variant {index}: is {type(record).__name__}; give text such as 'chr22-1024-A-C', or "
            "VariantRecord.from_columns('chr22', 1024, 'A', 'C')"
        )
    if not genome.names and record.sequences is None:
        raise UserError(f"{record}: needs a genome; give its FASTA file as the reference")
    return record


def score_records(
    records: Iterable[VariantRecord],
    scorer: VariantScorer,
    recall: Recall = lambda _, compute: compute(),
    progress: Progress = ignore_progress,
) -> Iterator[tuple[VariantRecord, list[Row]]]:
    """Yield each record with the rows of its alleles, in the order of the input.

    Within blocks, records are scored in the order of their positions, so that neighbours share
    windows.

    Args:
        records: Records in any order.
        scorer: Scores them.
        recall: As yielded by `open_journal`.
        progress: Called with the number of records that have been scored since the last call.
    """
    for block in _blocks(records):
        order = sorted(range(len(block)), key=lambda i: (block[i].contig, block[i].start))
        ordered = [block[index] for index in order]
        finished: dict[int, list[Row]] = {}
        num_yielded = 0
        all_rows = recall_all(recall, ordered, scorer.score_all)
        for index, rows in zip(order, all_rows, strict=True):
            finished[index] = rows
            progress(1)
            while num_yielded in finished:
                yield block[num_yielded], finished.pop(num_yielded)
                num_yielded += 1


def _blocks(records: Iterable[VariantRecord]) -> Iterator[list[VariantRecord]]:
    block: list[VariantRecord] = []
    num_bytes = 0
    for record in records:
        block.append(record)
        num_bytes += len(record.line)
        if len(block) == MAX_BLOCK or num_bytes > MAX_BLOCK_BYTES:
            yield block
            block, num_bytes = [], 0
    if block:
        yield block


@locks_output
def score_to_output(
    options: VariantOptions,
    read: Read,
    also_draw: Callable[[WriteRecord], AbstractContextManager[WriteRecord]] = nullcontext,
) -> None:
    """Score all alleles and write them to the output, for `evo2 score` and `evo2 saturate`.

    Args:
        options: Options of the command.
        read: Opens its variants.
        also_draw: Wraps the function that writes records, to draw them as well.

    Raises:
        UserError: The variants or the genome cannot be read; or a REF differs from the genome, and
            `on_ref_mismatch` is ERROR.
        TooManySkippedError: Too many alleles have no score; the output is complete.
        NonFiniteError: A log-likelihood is NaN or infinite.
    """
    variants = read()
    layout = options.layout(Layout.VCF if variants.is_vcf else Layout.TSV, VARIANT_LAYOUTS)
    with open_reference(find_reference(options, variants), options) as genome:
        check_contigs(variants.header, genome)
        if isinstance(options, ScoreOptions) and genome.names:
            check_regions(options, genome)
    _check_features(options, layout)
    if layout is Layout.PARQUET and options.output is not None:
        import_pyarrow(options.output)
    devices = pick_devices(options.device)
    shard = count_shard(options, read)
    total, borders = None, list[int]()
    records = variants.records
    if shard is not None:
        total = len(shard)
        borders = [shard.start + border for border in even_borders(total, len(devices))]
        records = islice(records, shard.start, shard.stop)
    compute = partial(score_part, read)
    with (
        open_parts(options, devices, borders, compute, (total, "records")) as parts,
        _open_scorer(replace(options, device=devices[0]), variants) as run,
    ):
        warn_beyond_context(run.scorer.model, run.scorer.window, f"--window {run.scorer.window:,}")
        background, noises = None, list[Noise]()
        if options.precision_check is not None:
            noises = measure_noise(run.options, run.scorer, options.precision_check, read().records)
        if options.background is not None:
            background = open_background(options.background, run.scorer)
        features = run.scorer.features
        fields = [*written_fields(options), *(features.names if features else ())]
        writer = VariantWriter(layout, fields, variants.others)
        provenance = [
            *run.provenance,
            *(noise.header_line for noise in noises),
            *_shard_lines(options, read),
        ]
        tally = Tally(run.scorer.genome)
        with (
            open_journals([part.journal for part in parts], run.settings) as recalls,
            open_variant_output(options.output, writer, variants.header, provenance) as write,
            also_draw(write) as write_record,
            console.progress("score" if len(parts) == 1 else "write", total, "records") as bar,
        ):
            for part, recall in zip(parts, recalls, strict=True):
                of_part = islice(records, part.size)
                for record, scored in score_records(of_part, run.scorer, recall, bar.advance):
                    rows: Sequence[Row] = scored
                    if background is not None:
                        rows = background.add_percentiles(record, rows)
                    if noises:
                        rows = noises[-1].mark(rows)
                    write_record(record, rows)
                    tally.add(record, rows)
    report(options, tally, is_table=variants.is_table)


def _check_features(options: VariantOptions, layout: Layout) -> None:
    """Check that the output format can hold the features.

    Raises:
        UserError: It is not a table, or has too few digits for an embedding.
    """
    if not options.wanted_features:
        return
    if layout in (Layout.VCF, Layout.BCF):
        raise UserError("--features: adds columns to a table; give --output x.parquet or x.jsonl")
    if layout is Layout.TSV and Feature.EMBEDDING in options.wanted_features:
        raise UserError(
            "--features embedding: the six decimals of a TSV are too coarse for "
            "differences of vectors; give --output x.parquet or x.jsonl"
        )


def score_part(read: Read, options: VariantOptions, part: Part, progress: Progress) -> None:
    """Score a part of the records into a journal, from which the main process writes the output.

    Raises:
        UserError: As `score_to_output`.
        NonFiniteError: A log-likelihood is NaN or infinite.
    """
    variants = read()
    with (
        _open_scorer(options, variants) as run,
        keep_journal(part.journal, run.settings) as recall,
    ):
        records = islice(variants.records, part.first, part.end)
        for _ in score_records(records, run.scorer, recall, progress):
            pass


@dataclass(frozen=True)
class _Run:
    """A scorer, and what describes its scores.

    Attributes:
        options: Options with the device of this process.
        scorer: Scores records with the model and the genome.
        provenance: Header lines that describe how the scores were made.
        settings: Everything that the scores depend on besides the records.
    """

    options: VariantOptions
    scorer: VariantScorer
    provenance: list[str]
    settings: list[object]


@contextmanager
def _open_scorer(options: VariantOptions, variants: Variants) -> Iterator[_Run]:
    path = find_reference(options, variants)
    with open_reference(path, options) as genome:
        model = open_model(options)
        scorer = VariantScorer(model, genome, options, make_features(options, model))
        provenance = _provenance(options, path, scorer.window, model)
        # By its size and date, since a changed file has another genome or other sequences.
        source = path or options.source
        settings = [*provenance, str(source.absolute()), *size_and_time(source)]
        if options.contig_names is not None:
            settings.append(options.contig_names.read_text(errors="surrogateescape"))
        way_out = f"try --window {max(scorer.window // 2, 2)}, or a smaller model"
        with memory_explained(f"--window {scorer.window} on {options.device}", way_out):
            yield _Run(options, scorer, provenance, settings)


def _provenance(
    options: VariantOptions, reference: Path | None, window: int, model: StripedHyena2
) -> list[str]:
    """Header lines that describe how the scores were made; the same on every machine."""
    values: dict[str, object] = {
        "model": Path(options.model).name,
        "adapter": options.adapter and options.adapter.name,
        "reference": reference and reference.name,
        "contig_names": options.contig_names and options.contig_names.name,
        "window": reference and window,
        "windows": reference and options.windows,
        "indel_mode": reference and options.indel_mode,
        "after": options.after,
        "strand": options.variant_strand,
        "score": options.score,
        "features": options.features,
        "pool": options.features and options.pool,
        "layer": options.layer,
        "on_ref_mismatch": reference and options.on_ref_mismatch,
        "precision_check": options.precision_check,
    }
    words = {
        flag(type(options), name): value
        for name, value in values.items()
        if value is not None and name not in options.without
    }
    words |= options.filters
    command = " ".join(
        [options.command, *(f"{name} {value}".rstrip() for name, value in words.items())]
    )
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return [
        f"##evo2Version={__version__}",
        f"##evo2Command={command}",
        f"##evo2Model={model.config.stripes}, {parameters} parameters, {precision_name(model)}, "
        f"fingerprint {fingerprint(model.config, model.state_dict())}",
    ]


def _shard_lines(options: VariantOptions, read: Read) -> list[str]:
    """Header lines of a shard for `evo2 merge`; none without `--shard`."""
    if options.shard is None:
        return []
    return [f"{SHARD}{options.shard}", f"{SHARDED_INPUT}{input_digest(read)}"]


@contextmanager
def open_reference(path: Path | None, options: VariantOptions) -> Iterator[Reference]:
    """Yield the genome at `path`; without a path, one without contigs."""
    with Reference.open(path, options.names) if path else Reference.from_sequences({}) as genome:
        yield genome


def find_reference(options: VariantOptions, variants: Variants) -> Path | None:
    """The FASTA of `--reference`, or of the `##reference=` line of the VCF, relative to the VCF.

    None if the variants are a table with their sequences, and `--reference` is not given.

    Raises:
        UserError: There is no FASTA, or an option needs a genome.
    """
    if options.reference is not None:
        return options.reference
    source = options.source
    if variants.has_sequences:
        flags = given(options, WindowOptions)
        flags += ["--background"] * (options.background is not None)
        if flags:
            raise UserError(
                f"{', '.join(flags)}: only with a genome (-R); without one, {source} is scored by "
                "its columns ref_seq and var_seq"
            )
        return None
    named = variants.header.value("reference")
    if not named:
        raise UserError(
            f"{source}: has no ##reference line; give the FASTA of the genome with --reference"
        )
    text = unquote(urlsplit(named).path) if named.startswith("file:") else named
    path = source.parent / text
    if not path.is_file():
        raise UserError(
            f"{source}: its ##reference={named} does not exist; name a FASTA with --reference"
        )
    return path
