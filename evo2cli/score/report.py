"""The final report of `evo2 score`: number of scored alleles, and why others have no score."""

from collections import Counter
from collections.abc import Sequence

from rich.table import Table

from evo2cli import console
from evo2cli.errors import TooManySkippedError, counted
from evo2cli.genome.alphabet import upper_dna
from evo2cli.genome.interval import Interval
from evo2cli.genome.normalization import Indels
from evo2cli.genome.reference import Reference
from evo2cli.genome.vcf import (
    Status,
    VariantRecord,
    is_bases,
    is_scored,
    split_status,
)
from evo2cli.genome.windows import agrees
from evo2cli.score.options import OutputOptions, VariantOptions
from evo2cli.tables import Row

# A higher fraction of REF mismatches suggests another genome build, unless they are this few.
MAX_MISMATCH_FRACTION = 0.01
MAX_FEW_MISMATCHES = 3
MIN_SHIFTED = 3  # records that suggest shifted positions; fewer may fit by chance
_DASH = b"-"  # in ANNOVAR, the empty allele of an insertion or deletion


class Tally:
    """Statistics of the alleles for the report.

    Args:
        genome: The genome of the alleles.

    Attributes:
        counts: Number of alleles by EVO2_STATUS.
        indels: Insertions and deletions.
        missing: Message about a contig that the genome lacks; None if it has all.
        dashes: Message about an allele that is written `-`; None if there is none.
    """

    def __init__(self, genome: Reference) -> None:
        self.counts: Counter[str] = Counter()
        self.indels = Indels()
        self.missing: str | None = None
        self.dashes: str | None = None
        self._genome = genome
        self._shifts, self._num_compared = {-1, 1}, 0

    def add(self, record: VariantRecord, rows: Sequence[Row]) -> None:
        """Count the alleles of a record."""
        statuses = [str(row["EVO2_STATUS"]) for row in rows]
        self.counts.update(statuses)
        self.indels.count(record)
        if self.missing is None and Status.CONTIG_MISSING in statuses:
            self.missing = self._genome.missing_contig(record.contig)
        contig = self._genome.find(record.contig)
        if contig is None:
            return
        if self._shifts and is_bases(record.reference) and record.start >= 0:
            self._num_compared += 1
            self._shifts = {by for by in self._shifts if self._matches(record, contig, by)}
        if self.dashes is None and _DASH in (record.reference, *record.alternates):
            self.dashes = self._anchor(record, contig)

    @property
    def shifted(self) -> int | None:
        """The shift at which every REF matches: +1 for one base to the right; None without one."""
        if self._num_compared < MIN_SHIFTED or not self.counts[Status.REF_MISMATCH]:
            return None
        return next(iter(self._shifts), None)

    def _bases(self, contig: str, start: int, end: int) -> bytes:
        """Bases of the genome; empty if the interval is not inside the contig."""
        if not 0 <= start <= end <= self._genome.length(contig):
            return b""
        return upper_dna(self._genome.fetch(Interval(contig, start, end)))

    def _matches(self, record: VariantRecord, contig: str, shift: int) -> bool:
        bases = self._bases(contig, record.start + shift, record.end + shift)
        return bool(bases) and agrees(upper_dna(record.reference), bases)

    def _anchor(self, record: VariantRecord, contig: str) -> str | None:
        """Message how to write a record with `-`: anchored by the base before it."""
        # The position of an insertion is that of the base before it, of a deletion the one after.
        start = record.start - (record.reference != _DASH)
        base = self._bases(contig, start, start + 1).decode()
        if not base:
            return None
        reference, *alternates = (
            base + allele.replace(_DASH, b"").decode(errors="replace")
            for allele in (record.reference, *record.alternates)
        )
        return (
            "- is not an allele; put the base before the change into both: "
            f"{record} is {contig}:{start + 1} {reference}>{','.join(alternates)}"
        )


def report(options: VariantOptions, tally: Tally, *, is_table: bool = False) -> None:
    """Print the number of scored alleles, and why others have no score.

    Args:
        options: Options of the command.
        tally: Statistics of the alleles.
        is_table: Whether the input is a table, so that `--shift` can correct positions.

    Raises:
        TooManySkippedError: No allele has a score, or too many have none.
    """
    counts = tally.counts
    total = counts.total()
    skipped = sum(count for status, count in counts.items() if not is_scored(status))
    console.say(f"{total - skipped:,} of {counted(total, 'allele')} scored")
    if total:
        console.write_page(status_table(counts), stderr=True)
    mismatches = counts[Status.REF_MISMATCH]
    checked = total - skipped + mismatches
    if tally.shifted is not None:
        side = "right" if tally.shifted > 0 else "left"
        way_out = f"--shift {tally.shifted}" if is_table else "POS of a VCF is 1-based: correct it"
        console.warn(
            f"REF of every record matches the reference one base to the {side}: are the "
            f"positions off by one? {way_out}"
        )
    elif mismatches > max(MAX_FEW_MISMATCHES, MAX_MISMATCH_FRACTION * checked):
        console.warn(
            f"REF of {mismatches:,} of {counted(checked, 'allele')} differs from the reference: is "
            "it ANOTHER GENOME BUILD than that of the variants?"
        )
    is_part = options.shard is not None
    if 0 < total == counts[Status.CONTIG_MISSING] and not is_part:
        raise TooManySkippedError(f"{options.source}: nothing could be scored: {tally.missing}")
    for warning in filter(None, (tally.missing, tally.dashes)):
        console.warn(warning)
    if tally.indels.unnormalized:
        console.warn(
            f"{tally.indels.unnormalized:,} of {tally.indels.total:,} insertions and "
            "deletions are not trimmed and left-aligned; written at another position, the "
            "same change has another window and another score: run `bcftools norm -f "
            "REFERENCE` first"
        )
    check_skipped(options, skipped, total, is_part=is_part)


def check_skipped(
    options: OutputOptions, skipped: int, total: int, *, is_part: bool = False
) -> None:
    """Check the fraction of records without a score, once the output is complete.

    Args:
        options: Options of the command.
        skipped: Number of records or alleles without a score.
        total: Number of all records or alleles.
        is_part: Whether this is a shard; `evo2 merge` checks whether any shard has scores.

    Raises:
        TooManySkippedError: The fraction is above `max_skipped`, or none has a score.
    """
    if 0 < skipped == total and not is_part:
        raise TooManySkippedError(f"nothing could be scored: none of {total:,} has a score")
    if skipped > options.max_skipped * total:
        raise TooManySkippedError(
            f"{skipped:,} of {total:,} have no score, above --max-skipped {options.max_skipped}"
        )


def status_table(counts: Counter[str]) -> Table:
    """A table with one line per EVO2_STATUS: scored alleles first, then by frequency."""
    table = Table(box=None, pad_edge=False)
    table.add_column("status")
    for label in ("alleles", "share"):
        table.add_column(label, justify="right")
    table.add_column("")
    for status, count in sorted(
        counts.items(), key=lambda item: (not is_scored(item[0]), -item[1], item[0])
    ):
        meanings = filter(None, (each.meaning for each in split_status(status)))
        share = f"{100 * count / counts.total():.1f} %"
        table.add_row(status, f"{count:,}", share, "; ".join(meanings))
    return table
