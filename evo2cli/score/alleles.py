"""Scores of alleles: the log-likelihoods of their windows on each strand."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import fsum, isfinite
from typing import Any

from evo2cli.errors import UserError
from evo2cli.genome.alphabet import ACGT, reverse_complement, upper_dna
from evo2cli.genome.interval import Interval
from evo2cli.genome.reference import Reference
from evo2cli.genome.vcf import (
    Status,
    VariantRecord,
    add_status,
    allele_status,
    is_ambiguous,
    is_bases,
)
from evo2cli.genome.windows import (
    Placing,
    Window,
    WindowPair,
    agrees,
    anchored,
    centred,
    cut_windows,
    ending,
    window_pair,
)
from evo2cli.options import Strand
from evo2cli.score.features import Features
from evo2cli.score.options import AlleleOptions, IndelMode, OnRefMismatch, Windows
from evo2cli.score.output import FIELDS, NON_ACGT, STRAND_FIELDS, WINDOW_COLUMNS
from evo2cli.score.prefixes import Pair, WindowReader
from evo2cli.tables import Row, rounded
from stripedhyena2 import StripedHyena2
from stripedhyena2.scoring import require_finite

DEFAULT_WINDOW = 8192


@dataclass(frozen=True, slots=True)
class _PendingAllele:
    """An allele whose windows are queued.

    Attributes:
        windows: Its windows for each strand, or the reason why it has none.
        pairs: The queued windows, for each strand.
        is_swapped: Whether REF and ALT of the windows are swapped.
    """

    windows: list[WindowPair] | Status
    pairs: Sequence[Pair] = ()
    is_swapped: bool = False


class VariantScorer:
    """Scores alleles against a genome with a model.

    Args:
        model: Model in inference mode.
        genome: Genome of the records.
        options: Windows, strands, and what to do if REF differs from the genome.
        features: Computes further columns for each allele.
        settings: Arguments of the `Packer` that reads the windows.

    Attributes:
        model, genome, options, features: These.
        window: Number of bases in a window.
    """

    def __init__(
        self,
        model: StripedHyena2,
        genome: Reference,
        options: AlleleOptions,
        features: Features | None = None,
        **settings: Any,
    ) -> None:
        self.window = options.window or min(DEFAULT_WINDOW, model.config.context)
        self.model, self.genome, self.options = model, genome, options
        self.features = features
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
        self._strands = options.variant_strand.single
        feature_names = features.names if features else ()
        self._empty: Row = dict.fromkeys((*FIELDS, *WINDOW_COLUMNS, *feature_names))
        self._reader = WindowReader(model, self.window, is_anchored=self._is_anchored, **settings)
        # Shared by the alleles of a site: their windows, and the other strand of the one with REF.
        self._site: tuple[tuple[Interval, bytes, int] | None, list[WindowPair]] = (None, [])
        self._reverse: tuple[Window | None, Window] = (None, Window(b"", b"", b""))

    def score(self, record: VariantRecord) -> list[Row]:
        """One row per allele: `FIELDS`, and the intervals of its windows (0-based, half-open).

        Missing values are None. Percentiles are always None here.

        Raises:
            UserError: REF differs from the genome, and `on_ref_mismatch` is ERROR.
            NonFiniteError: A log-likelihood is NaN or infinite.
        """
        return next(self.score_all([record]))

    def score_all(self, records: Sequence[VariantRecord]) -> Iterator[list[Row]]:
        """Yield the rows of each record, as `score` returns them.

        The alleles of several records are computed in batches; see `WindowReader.read_all`.

        Raises:
            UserError: As `score`, after the rows of the previous records.
            NonFiniteError: Likewise.
        """
        for record, alleles in self._reader.read_all(self._queue_all(records)):
            if isinstance(alleles, UserError):
                raise alleles
            yield [self._row(allele, record) for allele in alleles]

    def _queue_all(
        self, records: Iterable[VariantRecord]
    ) -> Iterator[tuple[VariantRecord, list[_PendingAllele] | UserError]]:
        """Queue the windows of records; yield each with its alleles, or with the first error."""
        for record in records:
            try:
                yield record, [self._queue(record, alt) for alt in record.alternates]
            except UserError as error:
                yield record, error
                return

    def _queue(self, record: VariantRecord, alternate: bytes) -> _PendingAllele:
        """Queue the windows of an allele."""
        windows, is_swapped = self.windows(record, alternate), False
        if windows is Status.REF_MISMATCH and self.options.on_ref_mismatch is OnRefMismatch.SWAP:
            swapped = self.windows(replace(record, reference=alternate), record.reference)
            if not isinstance(swapped, Status):
                windows, is_swapped = swapped, True
        if isinstance(windows, Status):
            return _PendingAllele(windows)
        queue = self._reader.next_base if self.options.is_next_base else self._reader.windows
        pairs = []
        for strand, pair in zip(self._strands, windows, strict=True):
            if strand is Strand.FORWARD:
                pairs.append(queue(pair.reference, pair.alternate))
            else:
                pairs.append(queue(*self._reverse_complements(pair)))
        return _PendingAllele(windows, pairs, is_swapped)

    def _row(self, allele: _PendingAllele, record: VariantRecord) -> Row:
        """The row of an allele whose windows have been computed."""
        row: Row = dict(self._empty)
        if isinstance(allele.windows, Status):
            row["EVO2_STATUS"] = allele.windows.value
            return row
        scores = self._scores(allele, record)
        row |= _swap_back(scores) if allele.is_swapped else scores
        if self.features is not None:
            pairs = dict(zip(self._strands, allele.windows, strict=True))
            sign = -1 if allele.is_swapped else 1
            row |= self.features.compute(row, pairs, sign, str(record))
        return row

    @property
    def num_bases(self) -> int:
        """Number of bases that the model has processed."""
        return self._reader.packer.num_bases

    def windows(self, record: VariantRecord, alternate: bytes) -> list[WindowPair] | Status:
        """The windows of an allele for each strand, or the reason why it has none.

        Raises:
            UserError: REF differs from the genome, and `on_ref_mismatch` is ERROR.
        """
        if record.sequences is not None and not self.genome.names:
            return self._given_windows(record.sequences)
        status = allele_status(alternate)
        if status is not Status.OK:
            return status
        if not is_bases(record.reference):
            return Status.INVALID_ALLELE
        contig = self.genome.find(record.contig)
        if contig is None:
            return Status.CONTIG_MISSING
        if record.start < 0 or record.end > self.genome.length(contig):
            return Status.OUT_OF_RANGE
        variant = Interval(contig, record.start, record.end)
        letters = upper_dna(self.genome.fetch(variant))
        if not agrees(upper_dna(record.reference), letters):
            if self.options.on_ref_mismatch is OnRefMismatch.ERROR:
                raise UserError(
                    f"{record}: the reference has {letters.decode()} there; is it the right build? "
                    "--on-ref-mismatch skip leaves such records without a score"
                )
            return Status.REF_MISMATCH
        if is_ambiguous(record.reference):
            return Status.AMBIGUOUS_ALLELE
        longest = max(len(record.reference), len(alternate))
        if self.options.is_next_base and longest > 1:
            return Status.NOT_SNV
        if self._after is not None and longest + self._after >= self.window:
            return Status.TOO_LONG
        site = (variant, record.reference, len(alternate))
        if site == self._site[0]:
            letters = upper_dna(alternate)
            return [pair.with_alternate(letters) for pair in self._site[1]]
        pairs: list[WindowPair] = []
        for strand in self._strands:
            if pairs and self._placing is centred:  # the same for both strands
                pairs.append(pairs[0])
            else:
                pair = cut_windows(
                    self.genome,
                    variant,
                    alternate,
                    self.window,
                    self._placing,
                    # All but centred windows are placed in the reading direction.
                    from_right=self._placing is not centred and strand is Strand.REVERSE,
                    equally_long=self.options.indel_mode is IndelMode.FIXED,
                )
                if pair is None:
                    return Status.TOO_LONG
                # Where the genome has an ambiguity code, which the model would find far less likely
                # than any base, the window has the base of REF.
                window = pair.reference
                with_ref = Window(window.before, upper_dna(record.reference), window.after)
                pairs.append(replace(pair, reference=with_ref))
            reference = pairs[-1].reference
            before = reference.before if strand is Strand.FORWARD else reference.after
            if self.options.is_next_base and not before:
                return Status.NO_CONTEXT
        self._site = site, pairs
        return pairs

    def _reverse_complements(self, pair: WindowPair) -> tuple[Window, Window]:
        """The other strand of both windows; the alleles of a site share the bytes around them."""
        one, other = pair.reference, pair.alternate
        if self._reverse[0] is not one:
            self._reverse = one, one.reverse_complement()
        reverse = self._reverse[1]
        if other.before is one.before and other.after is one.after:
            return reverse, Window(reverse.before, reverse_complement(other.allele), reverse.after)
        return reverse, other.reverse_complement()

    def _given_windows(self, sequences: tuple[bytes, bytes]) -> list[WindowPair] | Status:
        """The windows for each strand of an allele that comes with its two sequences."""
        pair = window_pair(sequences)
        if self.options.is_next_base:
            if not len(pair.reference.allele) == len(pair.alternate.allele) == 1:
                return Status.NOT_SNV
            context = {
                Strand.FORWARD: pair.reference.before,
                Strand.REVERSE: pair.reference.after,
            }
            if not all(context[strand] for strand in self._strands):
                return Status.NO_CONTEXT
        return [pair] * len(self._strands)

    def _scores(self, allele: _PendingAllele, record: VariantRecord) -> Row:
        """The scores of an allele that has windows."""
        assert not isinstance(allele.windows, Status)
        is_next = self.options.is_next_base
        logprobs = [pair.lasts if is_next else pair.logprobs for pair in allele.pairs]
        if not all(isfinite(value) for both in logprobs for value in both):
            self._raise_non_finite(allele, logprobs, str(record))
        references, alternates = zip(*logprobs, strict=True)
        deltas = [alt - ref for ref, alt in logprobs]
        count = len(logprobs)
        pairs = {id(pair): pair for pair in allele.windows}  # both strands of centred windows
        num_non_acgt = max(map(_num_non_acgt, pairs.values()))
        at_edge = any(pair.at_edge for pair in allele.windows)
        statuses = [Status.EDGE] * at_edge + [Status.NONACGT] * bool(num_non_acgt)
        first = allele.windows[0]
        return {
            "EVO2_DELTA": rounded(fsum(deltas) / count),
            "EVO2_REF": rounded(fsum(references) / count),
            "EVO2_ALT": rounded(fsum(alternates) / count),
            **{
                STRAND_FIELDS[strand]: rounded(delta)
                for strand, delta in zip(self._strands, deltas, strict=True)
            },
            "EVO2_STATUS": "&".join(statuses or [Status.OK]),
            NON_ACGT: num_non_acgt,
            "window_start": first.interval.start,
            "window_end": first.interval.end,
            "alt_window_start": first.alternate_interval.start,
            "alt_window_end": first.alternate_interval.end,
        }

    def _raise_non_finite(
        self, allele: _PendingAllele, logprobs: Sequence[tuple[float, float]], name: str
    ) -> None:
        """Raise the error for the first log-likelihood that is NaN or infinite.

        Raises:
            NonFiniteError: Always.
        """
        assert not isinstance(allele.windows, Status)
        for strand, pair, both in zip(self._strands, allele.windows, logprobs, strict=True):
            for window, value in zip((pair.reference, pair.alternate), both, strict=True):
                forward = strand is Strand.FORWARD
                sequence = (window if forward else window.reverse_complement()).sequence
                require_finite(value, self.model, sequence, name)


def _num_non_acgt(pair: WindowPair) -> int:
    """Number of letters other than ACGT, in the window with more of them."""

    def count(letters: bytes) -> int:
        return len(letters.translate(None, ACGT))

    one, other = pair.reference, pair.alternate
    if other.before is one.before and other.after is one.after:
        around = count(one.before) + count(one.after)
        return around + max(count(one.allele), count(other.allele))
    return max(count(one.sequence), count(other.sequence))


def _swap_back(row: Row) -> Row:
    """The row of an allele that was scored with REF and ALT swapped, in terms of its record."""
    deltas = [field for field in ("EVO2_DELTA", *STRAND_FIELDS.values()) if field in row]
    return {
        **row,
        **{field: rounded(-float(row[field] or 0)) for field in deltas},
        "EVO2_REF": row["EVO2_ALT"],
        "EVO2_ALT": row["EVO2_REF"],
        "EVO2_STATUS": add_status(str(row["EVO2_STATUS"]), Status.SWAPPED),
    }
