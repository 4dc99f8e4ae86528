"""Scores of alleles: the log-likelihoods of their windows, of each strand."""

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
    is_ambiguous,
    is_bases,
    with_note,
)
from evo2cli.genome.windows import (
    Placing,
    Window,
    WindowPair,
    agrees,
    anchor_step,
    anchored,
    centred,
    cut_windows,
    ending,
    upper_dna,
    window_pair,
)
from evo2cli.options import Strand
from evo2cli.score.features import Features
from evo2cli.score.options import AlleleOptions, IndelMode, OnRefMismatch, Windows
from evo2cli.score.output import FIELDS, NUM_OTHER, STRAND_FIELDS, WINDOW_COLUMNS
from evo2cli.score.prefixes import AnchoredScorer, CentredScorer, Extend, WindowScorer
from evo2cli.tables import Row, rounded
from stripedhyena2 import StripedHyena2
from stripedhyena2.scoring import ScoringState, require_finite

DEFAULT_WINDOW = 8192
ANCHORED_CUTS = 8  # cached states between the starts of two neighbouring anchored windows


class VariantScorer:
    """Scores alleles against one genome with one model.

    Args:
        model: Model in inference mode.
        genome: Genome that the positions of records refer to.
        options: Windows, strands, and what happens if REF is not what the genome has.
        extend: Runs bases through the model; `count_bases` only counts them.
        features: Computes further values of each allele.

    Attributes:
        window: Number of bases in a window.
    """

    def __init__(
        self,
        model: StripedHyena2,
        genome: Reference,
        options: AlleleOptions,
        extend: Extend = ScoringState.extend,
        features: Features | None = None,
    ) -> None:
        self.window = options.window or min(DEFAULT_WINDOW, model.config.context)
        self._model, self._genome, self._options = model, genome, options
        self._features = features
        self._is_anchored = options.windows is Windows.ANCHORED
        self._placing: Placing = anchored if self._is_anchored else centred
        self._after = options.after  # None: windows are not placed by their ends
        if options.is_next_base and not self._is_anchored:
            self._after = 0
        if self._after is not None:
            self._placing = ending(self._after)
            if self._after > self.window - 2:
                raise UserError(
                    f"--after {self._after}: leaves no base before the variant in a window of "
                    f"{self.window} bases"
                )
        step = max(anchor_step(self.window) // ANCHORED_CUTS, 1)
        self._strands: dict[Strand, WindowScorer] = {
            strand: AnchoredScorer(model, step, extend)
            if self._is_anchored
            else CentredScorer(model, extend)
            for strand in options.variant_strand.single
        }

    def warn_of_extrapolation(self) -> None:
        """Warn if windows are longer than the context that the model was trained on."""
        context = self._model.config.context
        if self.window > context:
            console.warn(
                f"--window {self.window}: the model was trained on windows of {context} bases; "
                "beyond them it extrapolates"
            )

    def score(self, record: VariantRecord) -> list[Row]:
        """One row for each allele: `FIELDS`, and where its windows lie (0-based, half-open).

        A value that an allele does not have is None, and so are percentiles.

        Raises:
            UserError: REF is not what the genome has, and `on_ref_mismatch` is ERROR.
            NonFiniteError: A log-likelihood is NaN or infinite.
        """
        rows = []
        for alternate in record.alternates:
            features = self._features.names if self._features else ()
            row: Row = dict.fromkeys((*FIELDS, *WINDOW_COLUMNS, *features))
            found = self.windows(record, alternate)
            may_swap = self._options.on_ref_mismatch is OnRefMismatch.SWAP
            if found is Status.REF_MISMATCH and may_swap:
                swapped = self.windows(replace(record, reference=alternate), record.reference)
                if not isinstance(swapped, Status):
                    row |= _swap_back(self._scores(swapped, str(record)))
                    rows.append(row | self._further(row, swapped, -1, str(record)))
                    continue
            if isinstance(found, Status):
                row["EVO2_STATUS"] = found.value
            else:
                row |= self._scores(found, str(record))
                row |= self._further(row, found, 1, str(record))
            rows.append(row)
        return rows

    @property
    def num_bases(self) -> int:
        """Number of bases that ran through the model."""
        return sum(scorer.num_bases for scorer in self._strands.values())

    def windows(self, record: VariantRecord, alternate: bytes) -> list[WindowPair] | Status:
        """The windows of an allele for each strand, or the reason why it has none.

        Raises:
            UserError: REF is not what the genome has, and `on_ref_mismatch` is ERROR.
        """
        if record.sequences is not None and not self._genome.names:
            return self._given_windows(record.sequences)
        status = allele_status(alternate)
        if status is not Status.OK:
            return status
        if not is_bases(record.reference):
            return Status.INVALID_ALLELE
        contig = self._genome.find(record.contig)
        if contig is None:
            return Status.CONTIG_MISSING
        if record.start < 0 or record.end > self._genome.length(contig):
            return Status.OUT_OF_RANGE
        variant = Interval(contig, record.start, record.end)
        letters = upper_dna(self._genome.fetch(variant))
        if not agrees(upper_dna(record.reference), letters):
            if self._options.on_ref_mismatch is OnRefMismatch.ERROR:
                raise UserError(
                    f"{record}: the reference has {letters.decode()} there; is it the right build? "
                    "--on-ref-mismatch skip leaves such records without a score"
                )
            return Status.REF_MISMATCH
        if is_ambiguous(record.reference):
            return Status.AMBIGUOUS_ALLELE
        longest = max(len(record.reference), len(alternate))
        if self._options.is_next_base and longest > 1:
            return Status.NOT_SNV
        if self._after is not None and longest + self._after >= self.window:
            return Status.TOO_LONG
        pairs = []
        for strand in self._strands:
            pair = cut_windows(
                self._genome,
                variant,
                alternate,
                self.window,
                self._placing,
                # All but centred windows lie as the strand is read.
                from_right=self._placing is not centred and strand is Strand.REVERSE,
                equally_long=self._options.indel_mode is IndelMode.FIXED,
            )
            if pair is None:
                return Status.TOO_LONG
            # The window has the base of REF even where the genome has an ambiguity code, which the
            # model would find far less likely than any base.
            reference = replace(pair.reference, allele=upper_dna(record.reference))
            pairs.append(replace(pair, reference=reference))
            before = reference.before if strand is Strand.FORWARD else reference.after
            if self._options.is_next_base and not before:
                return Status.NO_CONTEXT
        return pairs

    def _further(self, row: Row, pairs: Sequence[WindowPair], sign: int, name: str) -> Row:
        """The features of an allele that has scores; `sign` as in `Features.of`."""
        if self._features is None:
            return {}
        return self._features.of(row, dict(zip(self._strands, pairs, strict=True)), sign, name)

    def _given_windows(self, sequences: tuple[bytes, bytes]) -> list[WindowPair] | Status:
        """The windows of an allele whose two sequences are given, for each strand."""
        pair = window_pair(sequences)
        if self._options.is_next_base:
            if not len(pair.reference.allele) == len(pair.alternate.allele) == 1:
                return Status.NOT_SNV
            context = {
                Strand.FORWARD: pair.reference.before,
                Strand.REVERSE: pair.reference.after,
            }
            if not all(context[strand] for strand in self._strands):
                return Status.NO_CONTEXT
        return [pair] * len(self._strands)

    def _scores(self, pairs: Sequence[WindowPair], name: str) -> Row:
        """The values of an allele that has windows; `name` is for error messages."""

        def logprob(strand: Strand, score: Callable[[Window], float], window: Window) -> float:
            read = window if strand is Strand.FORWARD else window.reverse_complement()
            value = score(read)
            require_finite(value, self._model, read.sequence, name)
            return value

        references, alternates = [], []
        for (strand, scorer), pair in zip(self._strands.items(), pairs, strict=True):
            is_next = self._options.is_next_base
            reference = scorer.next_base if is_next else scorer.reference
            alternate = scorer.next_base if is_next else scorer.alternate
            references.append(logprob(strand, reference, pair.reference))
            alternates.append(logprob(strand, alternate, pair.alternate))
        deltas = [alt - ref for ref, alt in zip(references, alternates, strict=True)]
        windows = [window for pair in pairs for window in (pair.reference, pair.alternate)]
        num_other = max(len(window.sequence.translate(None, ACGT)) for window in windows)
        at_edge = any(pair.at_edge for pair in pairs)
        notes = [Status.EDGE] * at_edge + [Status.NONACGT] * bool(num_other)
        first = pairs[0]
        return {
            "EVO2_DELTA": rounded(mean(deltas)),
            "EVO2_REF": rounded(mean(references)),
            "EVO2_ALT": rounded(mean(alternates)),
            **{
                STRAND_FIELDS[strand]: rounded(delta)
                for strand, delta in zip(self._strands, deltas, strict=True)
            },
            "EVO2_STATUS": "&".join(notes or [Status.OK]),
            NUM_OTHER: num_other,
            "window_start": first.interval.start,
            "window_end": first.interval.end,
            "alt_window_start": first.alternate_interval.start,
            "alt_window_end": first.alternate_interval.end,
        }


def _swap_back(row: Row) -> Row:
    """The row of an allele that was scored with REF and ALT exchanged, for its own record."""
    deltas = [field for field in ("EVO2_DELTA", *STRAND_FIELDS.values()) if field in row]
    return {
        **row,
        **{field: rounded(-float(row[field] or 0)) for field in deltas},
        "EVO2_REF": row["EVO2_ALT"],
        "EVO2_ALT": row["EVO2_REF"],
        "EVO2_STATUS": with_note(str(row["EVO2_STATUS"]), Status.SWAPPED),
    }
