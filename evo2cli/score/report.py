"""The closing report of `evo2 score`: how many alleles have a score, and why others have none."""

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

# More REF mismatches than this fraction suggest another genome build; so few suggest nothing.
MAX_MISMATCH_FRACTION = 0.01
MAX_FEW_MISMATCHES = 3
MIN_SHIFTED = 3  # records whose REF all fit a base aside; fewer may do so by chance
_NO_BASES = b"-"  # as ANNOVAR writes the missing allele of an insertion or deletion


class Tally:
    """What is counted of the alleles for the report.

    Args:
        genome: The genome that they were scored against.

    Attributes:
        counts: Number of alleles by status.
        indels: Insertions and deletions among the records.
        missing: What to say about contigs that the reference does not have; None if it has all.
        shifted: How REF fits if every position moves by a base; None if it does not.
        dashes: What to say about alleles that are written `-`; None if there are none.
    """

    def __init__(self, genome: Reference) -> None:
        self.counts: Counter[str] = Counter()
        self.indels = Indels()
        self.missing: str | None = None
        self.dashes: str | None = None
        self._genome = genome
        self._shifts, self._num_placed = {-1, 1}, 0

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
            self._num_placed += 1
            self._shifts = {by for by in self._shifts if self._fits(record, contig, by)}
        if self.dashes is None and _NO_BASES in (record.reference, *record.alternates):
            self.dashes = self._anchor(record, contig)

    @property
    def shifted(self) -> int | None:
        """By how many bases all positions are off: +1 if every REF fits a base to the right."""
        if self._num_placed < MIN_SHIFTED or not self.counts[Status.REF_MISMATCH]:
            return None
        return next(iter(self._shifts), None)

    def _bases(self, contig: str, start: int, end: int) -> bytes:
        """Bases of the genome; empty if it does not have all of them."""
        if not 0 <= start <= end <= self._genome.length(contig):
            return b""
        return upper_dna(self._genome.fetch(Interval(contig, start, end)))

    def _fits(self, record: VariantRecord, contig: str, by: int) -> bool:
        there = self._bases(contig, record.start + by, record.end + by)
        return bool(there) and agrees(upper_dna(record.reference), there)

    def _anchor(self, record: VariantRecord, contig: str) -> str | None:
        """How a record with `-` is written with the base before it."""
        # The position of an insertion is that of the base before it, of a deletion the one after.
        start = record.start - (record.reference != _NO_BASES)
        base = self._bases(contig, start, start + 1).decode()
        if not base:
            return None
        reference, *alternates = (
            base + allele.replace(_NO_BASES, b"").decode(errors="replace")
            for allele in (record.reference, *record.alternates)
        )
        return (
            "- is not an allele; put the base before the change into both: "
            f"{record} is {contig}:{start + 1} {reference}>{','.join(alternates)}"
        )


def report(options: VariantOptions, tally: Tally, *, is_table: bool = False) -> None:
    """Print how many alleles were scored, and why others were not.

    Args:
        options: Options of the command.
        tally: What was counted.
        is_table: Whether `--shift` can correct the positions.

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
    """Compare the fraction of skipped records with `max_skipped`, after the output is complete.

    Args:
        options: Options of the command.
        skipped: Records or alleles without a score.
        total: All of them.
        is_part: Whether other parts may have scores; `evo2 merge` sees whether one has.

    Raises:
        TooManySkippedError: It is larger, or all are skipped.
    """
    if 0 < skipped == total and not is_part:
        raise TooManySkippedError(f"nothing could be scored: none of {total:,} has a score")
    if skipped > options.max_skipped * total:
        raise TooManySkippedError(
            f"{skipped:,} of {total:,} have no score, above --max-skipped {options.max_skipped}"
        )


def status_table(counts: Counter[str]) -> Table:
    """One line for each status: scored alleles first, then by frequency."""
    table = Table(box=None, pad_edge=False)
    table.add_column("status")
    for label in ("alleles", "share"):
        table.add_column(label, justify="right")
    table.add_column("")
    for status, count in sorted(
        counts.items(), key=lambda item: (not is_scored(item[0]), -item[1], item[0])
    ):
        meanings = filter(None, (word.meaning for word in split_status(status)))
        share = f"{100 * count / counts.total():.1f} %"
        table.add_row(status, f"{count:,}", share, "; ".join(meanings))
    return table
