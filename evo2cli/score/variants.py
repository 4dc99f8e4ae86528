"""`evo2 score` of a VCF: every allele by the two windows it makes of the genome."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from urllib.parse import unquote, urlsplit

from evo2cli import __version__, console
from evo2cli.devices import Advance, Part, even_borders, open_parts, pick_devices
from evo2cli.errors import UserError
from evo2cli.genome.normalization import Indels
from evo2cli.genome.reference import Reference
from evo2cli.genome.vcf import Header, Status, VariantRecord
from evo2cli.journal import Recall, keep_journal, open_journals
from evo2cli.models import memory_explained, open_model
from evo2cli.saturate.plot import also_drawn
from evo2cli.score.alleles import VariantScorer
from evo2cli.score.background import open_background, with_percentiles
from evo2cli.score.input import (
    Variants,
    check_contigs,
    check_regions,
    count_variants,
    open_variants,
)
from evo2cli.score.options import VARIANT_LAYOUTS, Layout, ScoreOptions
from evo2cli.score.output import (
    SHARD,
    VariantWriter,
    open_variant_output,
    report,
    written_fields,
)
from evo2cli.score.precision import measure_noise, noise_line, with_noise
from evo2cli.tables import Row
from stripedhyena2 import StripedHyena2
from stripedhyena2.fingerprint import fingerprint
from stripedhyena2.float8.inference import has_scales

BLOCK = 4096  # records read before any is scored,
BLOCK_BYTES = 2**26  # unless their lines are long


def score_variants(options: ScoreOptions) -> None:
    """Score every allele of a VCF and write it in the layout asked for.

    Raises:
        UserError: The VCF or the reference cannot be read, or a REF differs and may not.
        TooManySkippedError: More alleles than allowed have no score; the output is complete.
        UntrustedNumericsError: A log-likelihood is no finite number.
    """
    variants = open_variants(options)
    layout = options.layout(Layout.VCF if variants.is_vcf else Layout.TSV, VARIANT_LAYOUTS)
    with Reference.open(options.reference or reference_of(variants.header, options.source)) as file:
        check_contigs(variants.header, file)
        check_regions(options, file)
    devices = pick_devices(options.device)
    total = count_variants(options)
    borders = even_borders(total, len(devices))
    with (
        open_parts(options, devices, borders, score_part, (total, "records")) as parts,
        _opened(replace(options, device=devices[0]), variants) as run,
    ):
        _write(run, layout, parts, total)


def score_part(options: ScoreOptions, part: Part, advance: Advance) -> None:
    """Score some of the records into a journal, from which another process writes them.

    Raises:
        UserError: As `score_variants`.
        UntrustedNumericsError: A log-likelihood is no finite number.
    """
    variants = open_variants(options)
    with _opened(options, variants) as run, keep_journal(part.journal, run.settings) as recall:
        records = islice(variants.records, part.first, part.end)
        for _ in _results(records, run.scorer, recall, advance):
            pass


@dataclass(frozen=True)
class _Run:
    """What scores, and what writes.

    Attributes:
        provenance: Header lines that tell what makes the scores.
        settings: All beside the records that decides them.
    """

    options: ScoreOptions
    variants: Variants
    genome: Reference
    model: StripedHyena2
    scorer: VariantScorer
    provenance: list[str]
    settings: list[object]


@contextmanager
def _opened(options: ScoreOptions, variants: Variants) -> Iterator[_Run]:
    path = options.reference or reference_of(variants.header, options.source)
    with Reference.open(path) as genome:
        model = open_model(
            options.model, config=options.config, device=options.device, dtype=options.dtype
        )
        scorer = VariantScorer(model, genome, options)
        provenance = _provenance(options, path, scorer.window, model)
        settings = [*provenance, *_identity(path)]
        way_out = f"try --window {max(scorer.window // 2, 2)}, or a smaller model"
        with memory_explained(f"--window {scorer.window} on {options.device}", way_out):
            yield _Run(options, variants, genome, model, scorer, provenance, settings)


def _write(run: _Run, layout: Layout, parts: Sequence[Part], total: int | None) -> None:
    """Score what the journals of the parts do not hold, write all, and tell of it."""
    options, variants = run.options, run.variants
    run.scorer.warn_of_extrapolation()
    noise = measure_noise(options, run.model, run.genome, run.scorer)
    background = open_background(options, run.model, run.genome, run.scorer)
    writer = VariantWriter(layout, written_fields(options), variants.others)
    part_of = [f"{SHARD}{options.shard}"] if options.shard is not None else []
    provenance = [*run.provenance, *noise_line(noise), *part_of]
    counts: Counter[str] = Counter()
    indels, absent = Indels(), None
    with (
        open_journals([part.journal for part in parts], run.settings) as recalls,
        open_variant_output(options.output, writer, variants.header, provenance) as written,
        also_drawn(options.plot, written) as put,
        console.progress("score" if len(parts) == 1 else "write", total, "records") as bar,
    ):
        for part, recall in zip(parts, recalls, strict=True):
            records = islice(variants.records, part.size)
            for record, found in _results(records, run.scorer, recall, bar.advance):
                rows = with_noise(noise, with_percentiles(background, record, found))
                put(record, rows)
                statuses = [str(row["EVO2_STATUS"]) for row in rows]
                counts.update(statuses)
                indels.count(record)
                if absent is None and Status.CONTIG_MISSING in statuses:
                    absent = run.genome.missing_contig(record.contig)
    report(options, counts, indels, absent)


def _results(
    records: Iterable[VariantRecord], scorer: VariantScorer, recall: Recall, advance: Advance
) -> Iterator[tuple[VariantRecord, list[Row]]]:
    """Each record with the rows of its alleles."""
    for block in _blocks(records):
        found = {}
        for place in sorted(range(len(block)), key=lambda i: (block[i].contig, block[i].start)):
            found[place] = recall(str(block[place]), partial(scorer.score, block[place]))
            advance(1)
        for place, record in enumerate(block):
            yield record, found[place]


def _blocks(records: Iterable[VariantRecord]) -> Iterator[list[VariantRecord]]:
    """Records by thousands: within a block those of a place are scored one after the other."""
    block: list[VariantRecord] = []
    size = 0
    for record in records:
        block.append(record)
        size += len(record.line)
        if len(block) == BLOCK or size > BLOCK_BYTES:
            yield block
            block, size = [], 0
    if block:
        yield block


def _provenance(
    options: ScoreOptions, reference: Path, window: int, model: StripedHyena2
) -> list[str]:
    """Header lines that tell what made the scores; the same wherever and whenever it ran."""
    parameters = sum(parameter.numel() for parameter in model.parameters())
    dtype = str(model.embedding.weight.dtype).removeprefix("torch.")
    check = f" --precision-check {options.precision_check}" if options.precision_check else ""
    if has_scales(model):
        dtype += " with FP8 projections"
    return [
        f"##evo2Version={__version__}",
        f"##evo2Command=evo2 score --model {Path(options.model).name} --reference {reference.name} "
        f"--window {window} --windows {options.windows} --indel-mode {options.indel_mode} "
        f"--strand {options.variant_strand} --score {options.score} "
        f"--on-ref-mismatch {options.on_ref_mismatch}{check}"
        + "".join(f" {flag} {value}".rstrip() for flag, value in options.filters.items()),
        f"##evo2Model={model.config.stripes}, {parameters} parameters, {dtype}, "
        f"fingerprint {fingerprint(model.config, model.state_dict())}",
    ]


def _identity(file: Path) -> tuple[str, int, int]:
    """What tells a file from another version of it: where it is, its size and its time."""
    status = file.stat()
    return str(file.absolute()), status.st_size, status.st_mtime_ns


def reference_of(header: Header, source: Path) -> Path:
    """The file that `##reference=` names, relative to the VCF.

    Raises:
        UserError: It names none, or none that is there.
    """
    named = header.value("reference")
    if not named:
        raise UserError(f"{source}: no header names a ##reference; give a FASTA by --reference")
    text = unquote(urlsplit(named).path) if named.startswith("file:") else named
    path = source.parent / text
    if not path.is_file():
        raise UserError(f"{source}: its ##reference={named} is not there; give it by --reference")
    return path
