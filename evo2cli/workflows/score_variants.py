"""`evo2 score` of a VCF: every allele by the two windows it makes of the genome."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import mean
from urllib.parse import unquote, urlsplit

from evo2cli import __version__, console
from evo2cli.errors import UserError
from evo2cli.genome.alphabet import ACGT
from evo2cli.genome.interval import Interval
from evo2cli.genome.reference import Reference
from evo2cli.genome.vcf import (
    Header,
    Status,
    VariantRecord,
    allele_status,
    find_contig,
    is_bases,
)
from evo2cli.genome.windows import (
    Window,
    WindowPair,
    agrees,
    anchor_step,
    anchored,
    centred,
    cut_windows,
    upper_dna,
)
from evo2cli.workflows.likelihood import fingerprint, proceed, require_finite
from evo2cli.workflows.models import open_model
from evo2cli.workflows.results import Row, open_journal, rounded
from evo2cli.workflows.score_background import (
    fields_with_percentile,
    open_background,
    with_percentiles,
)
from evo2cli.workflows.score_input import check_contigs, count_variants, open_variants
from evo2cli.workflows.score_options import VARIANT_LAYOUTS, Layout, ScoreOptions, Strand
from evo2cli.workflows.score_output import (
    FIELDS,
    PERCENTILE,
    STRAND_FIELDS,
    WINDOW_COLUMNS,
    VariantWriter,
    open_variant_output,
    report,
)
from evo2cli.workflows.score_plots import also_drawn
from evo2cli.workflows.window_scorer import (
    Advance,
    AnchoredScorer,
    CentredScorer,
    WindowScorer,
)
from stripedhyena2 import StripedHyena2
from stripedhyena2.scaled import has_scales

DEFAULT_WINDOW = 8192
BLOCK = 4096  # records read before any is scored,
BLOCK_BYTES = 2**26  # unless their lines are long
ANCHORED_CUTS = 8  # of the genome, from one anchored window to the next


def score_variants(options: ScoreOptions) -> None:
    """Score every allele of a VCF and write it in the layout asked for.

    Raises:
        UserError: The VCF or the reference cannot be read, or a REF differs and may not.
        TooManySkippedError: More alleles than allowed have no score; the output is complete.
        UntrustedNumericsError: A log-likelihood is no finite number.
    """
    variants = open_variants(options)
    layout = options.layout(Layout.VCF if variants.is_vcf else Layout.TSV, VARIANT_LAYOUTS)
    path = options.reference or reference_of(variants.header, options.source)
    total = count_variants(options)
    counts: Counter[str] = Counter()
    with Reference.open(path) as genome:
        check_contigs(variants.header, genome)
        model = open_model(
            options.model, config=options.config, device=options.device, dtype=options.dtype
        )
        scorer = VariantScorer(model, genome, options)
        background = open_background(options, model, genome, scorer)
        fields = fields_with_percentile(scorer.fields, background)
        writer = VariantWriter(layout, fields, variants.others)
        provenance = _provenance(options, path, scorer.window, model)
        with (
            open_journal(options.output, [*provenance, *_identity(path)]) as recall,
            open_variant_output(options.output, writer, variants.header, provenance) as written,
            also_drawn(options.plot, written) as put,
            console.progress("score", total, "records") as bar,
        ):
            for block in _blocks(variants.records):
                found = {}
                for place in sorted(
                    range(len(block)), key=lambda i: (block[i].contig, block[i].start)
                ):
                    found[place] = recall(str(block[place]), partial(scorer.score, block[place]))
                    bar.advance()
                for place, record in enumerate(block):
                    put(record, with_percentiles(background, record, found[place]))
                    counts.update(str(row["EVO2_STATUS"]) for row in found[place])
    report(options, counts)


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


class VariantScorer:
    """Scores alleles against one genome with one model.

    Args:
        model: It.
        genome: It.
        options: Windows, strands, and what to do where REF differs.
        advance: Runs bases through the model, or only counts them.

    Attributes:
        fields: The INFO fields it fills.
        window: Bases in a window.
    """

    def __init__(
        self,
        model: StripedHyena2,
        genome: Reference,
        options: ScoreOptions,
        advance: Advance = proceed,
    ) -> None:
        context = model.config.context
        self.window = options.window or min(DEFAULT_WINDOW, context)
        if self.window > context:
            console.warn(
                f"--window {self.window}: the model was trained on {context} bases in one window; "
                "beyond them it extrapolates"
            )
        self._model, self._genome = model, genome
        self._contigs = frozenset(genome.names)
        self._mismatch_is_error = options.on_ref_mismatch == "error"
        self._may_swap = options.on_ref_mismatch == "swap"
        self._is_anchored = options.windows == "anchored"
        step = max(anchor_step(self.window) // ANCHORED_CUTS, 1)
        self._strands: dict[Strand, WindowScorer] = {
            strand: AnchoredScorer(model, step, advance)
            if self._is_anchored
            else CentredScorer(model, advance)
            for strand in options.strands
        }
        single = len(self._strands) == 1
        unused = [PERCENTILE, *(STRAND_FIELDS.values() if single else ())]
        self.fields = [field for field in FIELDS if field not in unused]

    def score(self, record: VariantRecord) -> list[Row]:
        """A row for each allele: `fields`, then where the reference window lies, 0-based.

        Raises:
            UserError: REF differs from the genome, and that is to be an error.
            UntrustedNumericsError: A log-likelihood is no finite number.
        """
        rows = []
        for alternate in record.alternates:
            row: Row = dict.fromkeys((*self.fields, *WINDOW_COLUMNS))
            found = self._windows(record, alternate)
            if found is Status.REF_MISMATCH and self._may_swap:
                other = self._windows(replace(record, reference=alternate), record.reference)
                if not isinstance(other, Status):
                    rows.append(row | _swapped(self._scores(other, str(record))))
                    continue
            if isinstance(found, Status):
                row["EVO2_STATUS"] = found.value
            else:
                row |= self._scores(found, str(record))
            rows.append(row)
        return rows

    @property
    def num_bases(self) -> int:
        """So many ran through the model."""
        return sum(scorer.num_bases for scorer in self._strands.values())

    def _windows(self, record: VariantRecord, alternate: bytes) -> list[WindowPair] | Status:
        """The windows of an allele for each strand, or why it has none."""
        status = allele_status(alternate)
        if status is not Status.OK:
            return status
        if not is_bases(record.reference):
            return Status.INVALID_ALLELE
        contig = find_contig(record.contig, self._contigs)
        if contig is None:
            return Status.CONTIG_MISSING
        end = record.start + len(record.reference)
        if record.start < 0 or end > self._genome.length(contig):
            return Status.OUT_OF_RANGE
        variant = Interval(contig, record.start, end)
        letters = upper_dna(self._genome.fetch(variant))
        if not agrees(upper_dna(record.reference), letters):
            if self._mismatch_is_error:
                raise UserError(
                    f"{record}: the reference has {letters.decode()} there; is it the right build? "
                    "--on-ref-mismatch skip goes on without such records"
                )
            return Status.REF_MISMATCH
        pairs = [self._cut(variant, alternate, strand) for strand in self._strands]
        found = [pair for pair in pairs if pair is not None]
        return found if len(found) == len(pairs) else Status.TOO_LONG

    def _cut(self, variant: Interval, alternate: bytes, strand: Strand) -> WindowPair | None:
        """An anchored window has its context before the variant, as its strand is read."""
        return cut_windows(
            self._genome,
            variant,
            alternate,
            self.window,
            anchored if self._is_anchored else centred,
            from_right=self._is_anchored and strand is Strand.REVERSE,
        )

    def _scores(self, pairs: Sequence[WindowPair], name: str) -> Row:
        """The values of a scored allele."""
        references, alternates = [], []
        for (strand, scorer), pair in zip(self._strands.items(), pairs, strict=True):
            references.append(self._total(strand, scorer.reference, pair.reference, name))
            alternates.append(self._total(strand, scorer.alternate, pair.alternate, name))
        deltas = [alt - ref for ref, alt in zip(references, alternates, strict=True)]
        row: Row = {
            "EVO2_DELTA": rounded(mean(deltas)),
            "EVO2_REF": rounded(mean(references)),
            "EVO2_ALT": rounded(mean(alternates)),
            "EVO2_STATUS": _status(pairs),
            "window_start": pairs[0].interval.start,
            "window_end": pairs[0].interval.end,
        }
        if len(self._strands) > 1:
            for strand, delta in zip(self._strands, deltas, strict=True):
                row[STRAND_FIELDS[strand]] = rounded(delta)
        return row

    def _total(
        self, strand: Strand, score: Callable[[Window], float], window: Window, name: str
    ) -> float:
        """Log-likelihood of a window, read along `strand`."""
        read = window if strand is Strand.FORWARD else window.reverse_complement()
        total = score(read)
        require_finite(total, self._model, read.sequence, name)
        return total


def _swapped(row: Row) -> Row:
    """What is told of an allele whose ALT is the genome's: REF and ALT as its record has them."""
    deltas = [field for field in ("EVO2_DELTA", *STRAND_FIELDS.values()) if field in row]
    return {
        **row,
        **{field: rounded(-float(row[field] or 0)) for field in deltas},
        "EVO2_REF": row["EVO2_ALT"],
        "EVO2_ALT": row["EVO2_REF"],
        "EVO2_STATUS": "&".join(
            [*(word for word in str(row["EVO2_STATUS"]).split("&") if word != Status.OK), "SWAPPED"]
        ),
    }


def _status(pairs: Sequence[WindowPair]) -> str:
    """The status of a scored allele."""
    letters = b"".join(pair.reference.sequence + pair.alternate.sequence for pair in pairs)
    at_edge = any(pair.at_edge for pair in pairs)
    notes = [Status.EDGE] * at_edge + [Status.NONACGT] * bool(letters.translate(None, ACGT))
    return "&".join(notes or [Status.OK])


def _provenance(
    options: ScoreOptions, reference: Path, window: int, model: StripedHyena2
) -> list[str]:
    """Header lines that tell what made the scores; the same wherever and whenever it ran."""
    parameters = sum(parameter.numel() for parameter in model.parameters())
    dtype = str(model.embedding.weight.dtype).removeprefix("torch.")
    if has_scales(model):
        dtype += " with FP8 projections"
    return [
        f"##evo2Version={__version__}",
        f"##evo2Command=evo2 score --model {Path(options.model).name} --reference {reference.name} "
        f"--window {window} --windows {options.windows} --strand {options.strand} "
        f"--on-ref-mismatch {options.on_ref_mismatch}"
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
