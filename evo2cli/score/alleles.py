"""Scores of alleles: the log-likelihoods of their windows, along each strand."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import mean

from evo2cli import console
from evo2cli.errors import UserError
from evo2cli.genome.alphabet import ACGT
from evo2cli.genome.interval import Interval
from evo2cli.genome.reference import Reference
from evo2cli.genome.vcf import (
    Status,
    VariantRecord,
    allele_status,
    find_contig,
    is_bases,
    with_note,
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
from evo2cli.options import Strand
from evo2cli.score.options import IndelMode, ScoreOptions
from evo2cli.score.output import FIELDS, STRAND_FIELDS, WINDOW_COLUMNS
from evo2cli.score.prefixes import AnchoredScorer, CentredScorer, Extend, WindowScorer
from evo2cli.tables import Row, rounded
from stripedhyena2 import StripedHyena2
from stripedhyena2.scoring import ScoringState, require_finite

DEFAULT_WINDOW = 8192
ANCHORED_CUTS = 8  # of the genome, from one anchored window to the next


class VariantScorer:
    """Scores alleles against one genome with one model.

    Args:
        model: It.
        genome: It.
        options: Windows, strands, and what to do where REF differs.
        extend: Runs bases through the model, or only counts them.

    Attributes:
        window: Bases in a window.
    """

    def __init__(
        self,
        model: StripedHyena2,
        genome: Reference,
        options: ScoreOptions,
        extend: Extend = ScoringState.extend,
    ) -> None:
        self.window = options.window or min(DEFAULT_WINDOW, model.config.context)
        self._model, self._genome = model, genome
        self._contigs = frozenset(genome.names)
        self._mismatch_is_error = options.on_ref_mismatch == "error"
        self._may_swap = options.on_ref_mismatch == "swap"
        self._is_anchored = options.windows == "anchored"
        self._equally_long = options.indel_mode == IndelMode.FIXED
        step = max(anchor_step(self.window) // ANCHORED_CUTS, 1)
        self._strands: dict[Strand, WindowScorer] = {
            strand: AnchoredScorer(model, step, extend)
            if self._is_anchored
            else CentredScorer(model, extend)
            for strand in options.variant_strand.single
        }

    def warn_of_extrapolation(self) -> None:
        """Tell where windows are longer than what the model was trained on."""
        context = self._model.config.context
        if self.window > context:
            console.warn(
                f"--window {self.window}: the model was trained on {context} bases in one window; "
                "beyond them it extrapolates"
            )

    def score(self, record: VariantRecord) -> list[Row]:
        """A row for each allele: `FIELDS`, then where its windows lie, 0-based.

        None stands for what an allele does not have, and for percentiles, which are not told here.

        Raises:
            UserError: REF differs from the genome, and that is to be an error.
            UntrustedNumericsError: A log-likelihood is no finite number.
        """
        rows = []
        for alternate in record.alternates:
            row: Row = dict.fromkeys((*FIELDS, *WINDOW_COLUMNS))
            found = self.windows(record, alternate)
            if found is Status.REF_MISMATCH and self._may_swap:
                other = self.windows(replace(record, reference=alternate), record.reference)
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

    def windows(self, record: VariantRecord, alternate: bytes) -> list[WindowPair] | Status:
        """The windows of an allele for each strand, or why it has none.

        Raises:
            UserError: REF differs from the genome, and that is to be an error.
        """
        status = allele_status(alternate)
        if status is not Status.OK:
            return status
        if not is_bases(record.reference):
            return Status.INVALID_ALLELE
        contig = find_contig(record.contig, self._contigs)
        if contig is None:
            return Status.CONTIG_MISSING
        if record.start < 0 or record.end > self._genome.length(contig):
            return Status.OUT_OF_RANGE
        variant = Interval(contig, record.start, record.end)
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
            equally_long=self._equally_long,
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
        }
        for strand, delta in zip(self._strands, deltas, strict=True):
            row[STRAND_FIELDS[strand]] = rounded(delta)
        intervals = pairs[0].interval, pairs[0].alternate_interval
        borders = [border for interval in intervals for border in (interval.start, interval.end)]
        return row | dict(zip(WINDOW_COLUMNS, borders, strict=True))

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
        "EVO2_STATUS": with_note(str(row["EVO2_STATUS"]), Status.SWAPPED),
    }


def _status(pairs: Sequence[WindowPair]) -> str:
    """The status of a scored allele."""
    letters = b"".join(pair.reference.sequence + pair.alternate.sequence for pair in pairs)
    at_edge = any(pair.at_edge for pair in pairs)
    notes = [Status.EDGE] * at_edge + [Status.NONACGT] * bool(letters.translate(None, ACGT))
    return "&".join(notes or [Status.OK])
