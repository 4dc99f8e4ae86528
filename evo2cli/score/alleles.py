"""Scores of alleles: the log-likelihoods of their windows, of each strand."""

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
from evo2cli.score.output import FIELDS, NUM_OTHER, STRAND_FIELDS, WINDOW_COLUMNS
from evo2cli.score.prefixes import Pair, WindowReader
from evo2cli.tables import Row, rounded
from stripedhyena2 import StripedHyena2
from stripedhyena2.scoring import require_finite

DEFAULT_WINDOW = 8192


@dataclass(frozen=True, slots=True)
class _PendingAllele:
    """An allele whose windows are in a batch.

    Attributes:
        windows: Its windows for each strand; or the reason why it has none.
        pairs: What reads them, for each strand.
        is_swapped: Whether REF and ALT of the windows are exchanged.
    """

    windows: list[WindowPair] | Status
    pairs: Sequence[Pair] = ()
    is_swapped: bool = False


class VariantScorer:
    """Scores alleles against one genome with one model.

    Args:
        model: Model in inference mode.
        genome: Genome that the positions of records refer to.
        options: Windows, strands, and what happens if REF is not what the genome has.
        features: Computes further values of each allele.
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
        features_named = features.names if features else ()
        self._empty: Row = dict.fromkeys((*FIELDS, *WINDOW_COLUMNS, *features_named))
        self._reader = WindowReader(model, self.window, is_anchored=self._is_anchored, **settings)
        # What neighbouring alleles have in common: the windows of a site, and of its other strand.
        self._site: tuple[tuple[Interval, bytes, int] | None, list[WindowPair]] = (None, [])
        self._turned: tuple[Window | None, Window] = (None, Window(b"", b"", b""))

    def score(self, record: VariantRecord) -> list[Row]:
        """One row for each allele: `FIELDS`, and where its windows lie (0-based, half-open).

        A value that an allele does not have is None, and so are percentiles.

        Raises:
            UserError: REF is not what the genome has, and `on_ref_mismatch` is ERROR.
            NonFiniteError: A log-likelihood is NaN or infinite.
        """
        return next(self.score_all([record]))

    def score_all(self, records: Sequence[VariantRecord]) -> Iterator[list[Row]]:
        """The rows of each record, as `score` gives them.

        The alleles of several records are read side by side; see `WindowReader.read_all`.

        Raises:
            UserError: As `score`, after the rows of the records before.
            NonFiniteError: Likewise.
        """
        for record, alleles in self._reader.read_all(self._queue_all(records)):
            if isinstance(alleles, UserError):
                raise alleles
            yield [self._row(allele, record) for allele in alleles]

    def _queue_all(
        self, records: Iterable[VariantRecord]
    ) -> Iterator[tuple[VariantRecord, list[_PendingAllele] | UserError]]:
        """Queue the windows of records; each comes with its alleles, or with what ends the run."""
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
        """The values of an allele whose windows have been read."""
        row: Row = dict(self._empty)
        if isinstance(allele.windows, Status):
            row["EVO2_STATUS"] = allele.windows.value
            return row
        scores = self._scores(allele, record)
        row |= _swap_back(scores) if allele.is_swapped else scores
        if self.features is not None:
            pairs = dict(zip(self._strands, allele.windows, strict=True))
            row |= self.features.of(row, pairs, -1 if allele.is_swapped else 1, str(record))
        return row

    @property
    def num_bases(self) -> int:
        """Number of bases that ran through the model."""
        return self._reader.packer.num_bases

    def windows(self, record: VariantRecord, alternate: bytes) -> list[WindowPair] | Status:
        """The windows of an allele for each strand, or the reason why it has none.

        Raises:
            UserError: REF is not what the genome has, and `on_ref_mismatch` is ERROR.
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
            if pairs and self._placing is centred:  # they lie alike for both strands
                pairs.append(pairs[0])
            else:
                pair = cut_windows(
                    self.genome,
                    variant,
                    alternate,
                    self.window,
                    self._placing,
                    # All but centred windows lie as the strand is read.
                    from_right=self._placing is not centred and strand is Strand.REVERSE,
                    equally_long=self.options.indel_mode is IndelMode.FIXED,
                )
                if pair is None:
                    return Status.TOO_LONG
                # The window has the base of REF even where the genome has an ambiguity code, which
                # the model would find far less likely than any base.
                window = pair.reference
                written = Window(window.before, upper_dna(record.reference), window.after)
                pairs.append(replace(pair, reference=written))
            reference = pairs[-1].reference
            before = reference.before if strand is Strand.FORWARD else reference.after
            if self.options.is_next_base and not before:
                return Status.NO_CONTEXT
        self._site = site, pairs
        return pairs

    def _reverse_complements(self, pair: WindowPair) -> tuple[Window, Window]:
        """Both windows of a pair read from the other strand; those of a site share their bytes."""
        one, other = pair.reference, pair.alternate
        if self._turned[0] is not one:
            self._turned = one, one.reverse_complement()
        turned = self._turned[1]
        if other.before is one.before and other.after is one.after:
            return turned, Window(turned.before, reverse_complement(other.allele), turned.after)
        return turned, other.reverse_complement()

    def _given_windows(self, sequences: tuple[bytes, bytes]) -> list[WindowPair] | Status:
        """The windows of an allele whose two sequences are given, for each strand."""
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
        """The values of an allele that has windows."""
        assert not isinstance(allele.windows, Status)
        is_next = self.options.is_next_base
        logprobs = [pair.lasts if is_next else pair.logprobs for pair in allele.pairs]
        if not all(isfinite(value) for both in logprobs for value in both):
            self._refuse(allele, logprobs, str(record))
        references, alternates = zip(*logprobs, strict=True)
        deltas = [alt - ref for ref, alt in logprobs]
        count = len(logprobs)
        pairs = {id(pair): pair for pair in allele.windows}  # centred strands have the same
        num_other = max(map(_num_other, pairs.values()))
        at_edge = any(pair.at_edge for pair in allele.windows)
        notes = [Status.EDGE] * at_edge + [Status.NONACGT] * bool(num_other)
        first = allele.windows[0]
        return {
            "EVO2_DELTA": rounded(fsum(deltas) / count),
            "EVO2_REF": rounded(fsum(references) / count),
            "EVO2_ALT": rounded(fsum(alternates) / count),
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

    def _refuse(
        self, allele: _PendingAllele, logprobs: Sequence[tuple[float, float]], name: str
    ) -> None:
        """Name the first log-likelihood that is NaN or infinite.

        Raises:
            NonFiniteError: Always.
        """
        assert not isinstance(allele.windows, Status)
        for strand, pair, both in zip(self._strands, allele.windows, logprobs, strict=True):
            for window, value in zip((pair.reference, pair.alternate), both, strict=True):
                read = window if strand is Strand.FORWARD else window.reverse_complement()
                require_finite(value, self.model, read.sequence, name)


def _num_other(pair: WindowPair) -> int:
    """Letters other than ACGT in the window that has more of them."""

    def count(letters: bytes) -> int:
        return len(letters.translate(None, ACGT))

    one, other = pair.reference, pair.alternate
    if other.before is one.before and other.after is one.after:
        around = count(one.before) + count(one.after)
        return around + max(count(one.allele), count(other.allele))
    return max(count(one.sequence), count(other.sequence))


def _swap_back(row: Row) -> Row:
    """The row of an allele that was scored with REF and ALT exchanged, for its own record."""
    deltas = [field for field in ("EVO2_DELTA", *STRAND_FIELDS.values()) if field in row]
    return {
        **row,
        **{field: rounded(-float(row[field] or 0)) for field in deltas},
        "EVO2_REF": row["EVO2_ALT"],
        "EVO2_ALT": row["EVO2_REF"],
        "EVO2_STATUS": add_status(str(row["EVO2_STATUS"]), Status.SWAPPED),
    }
