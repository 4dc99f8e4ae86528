"""What `evo2 score` was asked for, checked and with its words turned into meanings."""

import math
from dataclasses import dataclass, fields
from enum import StrEnum
from pathlib import Path

from evo2cli.errors import TooManySkippedError, UserError
from evo2cli.figures import check_plot
from evo2cli.files import check_output
from evo2cli.genome.source import STDIN
from evo2cli.lengths import parse_bytes
from evo2cli.options import Strand


class Quantity(StrEnum):
    """What is written of an allele: log-likelihoods of its windows, in nats.

    DELTA: alternate minus reference, of each strand too where both are read. REF, ALT: of one
    window. ALL: all of these.
    """

    DELTA = "delta"
    REF = "ref"
    ALT = "alt"
    ALL = "all"


class IndelMode(StrEnum):
    """What an insertion or a deletion does to its alternate window.

    FIXED: as long as the reference window; its right border moves. ANCHORED: both end at the same
    base of the genome; it is longer or shorter.
    """

    FIXED = "fixed"
    ANCHORED = "anchored"


class Track(StrEnum):
    """A number for each base, given all before it.

    LOGPROB: log-probability of the base, in nats. ENTROPY: of the prediction among A, C, G and T,
    in bits.
    """

    LOGPROB = "logprob"
    ENTROPY = "entropy"


class Layout(StrEnum):
    """How results are written; the suffix of the output says which."""

    VCF = ".vcf"
    TSV = ".tsv"
    JSONL = ".jsonl"
    BCF = ".bcf"
    PARQUET = ".parquet"

    @property
    def has_index(self) -> bool:
        """Whether bgzip (`.gz`) makes it a file that tabix indexes."""
        return self in (Layout.VCF, Layout.TSV)


VARIANT_LAYOUTS = (Layout.VCF, Layout.BCF, Layout.PARQUET)  # beside tables, for variants alone
_PACKED_BY_ITSELF = (Layout.BCF, Layout.PARQUET)


@dataclass(frozen=True, kw_only=True)
class ScoreOptions:
    """The command line of `evo2 score`.

    Attributes:
        source: FASTA, VCF, BCF or a table of variants; `-` for stdin; or one variant.
        further: More variants, where `source` is one.
        model: A folder, file or name, as `open_model` takes it.
        config: Shape of a released model file.
        reference: FASTA of the genome a VCF speaks of; else its `##reference` is taken.
        output: Where results go, the suffix telling the layout; None for stdout.
        window: Bases of genome to score an allele by; None for min(8192, the model's context).
        windows: centred, each allele in the middle of its own, as published; or anchored, so that
            neighbours share them.
        strand: fwd, rc or both; None for both of variants and fwd of a FASTA.
        score: What is written of variants: delta, ref, alt or all.
        indel_mode: fixed, so that both windows of an allele are equally long, as published; or
            anchored, so that they end at the same base of the genome.
        precision_check: So many alleles are scored once more at a higher precision, and deltas that
            are no larger than the differences found are marked.
        on_ref_mismatch: What a REF that the genome denies leads to: skip, error, or swap: a record
            whose ALT is the genome's is scored all the same.
        max_skipped: Fraction of skipped records above which the run ends with exit code 3.
        device: As `open_model` takes it; or several, with commas, or all, which share the work.
        dtype: As `open_model` takes it.
        json: JSON lines rather than the default layout.
        max_memory: What model and computation may take of the device, for a FASTA; else what is
            free.
        context_parallel: Processes that share each sequence of a FASTA, one a GPU.
        regions: Only variants that overlap one of these, as `read_region` takes them.
        bed: Only variants that overlap an interval of this file.
        min_qual: Only records of a VCF whose QUAL is there and at least this.
        pass_only: Only records of a VCF whose FILTER says PASS.
        limit: Only so many records, the first of those that are left.
        shard: "i/n", 1-based: the i-th of n parts of all these, for `evo2 merge` to join.
        saturate: Every SNV of a region, `chr:from-to`, in place of `source`, which is ignored.
        plot: Heat map of them to draw.
        background: File of deltas of random variants, which give percentiles; grown as needed.
        track: logprob or entropy of every base, in place of a score.
        dry_run: Only tell what scoring variants would cost.

    Raises:
        UserError: A value is out of range.
    """

    source: Path
    model: str = "nano"
    config: Path | None = None
    reference: Path | None = None
    output: Path | None = None
    window: int | None = None
    windows: str = "centred"
    strand: str | None = None
    score: str = "delta"
    indel_mode: str = "fixed"
    precision_check: int | None = None
    on_ref_mismatch: str = "skip"
    max_skipped: float = 1.0
    device: str = "auto"
    dtype: str = "auto"
    json: bool = False
    max_memory: str | None = None
    context_parallel: int = 1
    further: tuple[str, ...] = ()
    regions: tuple[str, ...] = ()
    bed: Path | None = None
    min_qual: float | None = None
    pass_only: bool = False
    limit: int | None = None
    shard: str | None = None
    saturate: str | None = None
    plot: Path | None = None
    track: str | None = None
    background: Path | None = None
    dry_run: bool = False

    def __post_init__(self) -> None:
        if self.window is not None and self.window < 2:
            raise UserError(f"--window {self.window}: at least 2 bases are needed for a prediction")
        self._check_words()
        if not 0 <= self.max_skipped <= 1:
            raise UserError(f"--max-skipped {self.max_skipped}: a fraction lies in 0 to 1")
        if self.min_qual is not None and not math.isfinite(self.min_qual):
            raise UserError(f"--min-qual {self.min_qual}: must be a number")
        if self.limit is not None and self.limit < 1:
            raise UserError(f"--limit {self.limit}: at least 1 record is needed")
        if self.precision_check is not None and self.precision_check < 1:
            raise UserError(f"--precision-check {self.precision_check}: needs 1 allele at least")
        if self.shard is not None:
            self._check_shard(self.shard)
        if self.saturate is not None and self.reference is None:
            raise UserError(f"--saturate {self.saturate}: give the genome by --reference")
        if self.plot is not None and self.saturate is None:
            raise UserError(f"--plot {self.plot}: is drawn of a region; give it by --saturate")
        check_plot(self.plot)
        if self.max_memory is not None:
            parse_bytes(self.max_memory, "--max-memory")
        if self.track is not None and self.saturate is not None:
            raise UserError("--track and --saturate: one at a time")
        inputs = (self.source, *map(Path, self.further), self.reference, self.bed, self.background)
        check_output(self.output, *inputs)

    def _check_words(self) -> None:
        for flag, word, known in (
            ("--windows", self.windows, ("centred", "anchored")),
            ("--strand", self.strand, list(Strand)),
            ("--score", self.score, list(Quantity)),
            ("--indel-mode", self.indel_mode, list(IndelMode)),
            ("--on-ref-mismatch", self.on_ref_mismatch, ("skip", "error", "swap")),
            ("--track", self.track, list(Track)),
        ):
            if word is not None and word not in known:
                raise UserError(f"{flag} {word}: not one of {', '.join(known)}")
        if self.score in (Quantity.DELTA, Quantity.ALL):
            return
        for flag, value in (
            ("--background", self.background),
            ("--plot", self.plot),
            ("--precision-check", self.precision_check),
        ):
            if value is not None:
                raise UserError(f"{flag} is about deltas, but --score {self.score} writes none")

    def _check_shard(self, shard: str) -> None:
        index, _, count = shard.partition("/")
        if not (index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
            raise UserError(f"--shard {shard}: must be i/n with i from 1 to n, like 3/8")
        if self.source == STDIN and self.saturate is None:
            raise UserError("--shard: stdin cannot be read twice, to be counted; give a file")

    @property
    def part(self) -> tuple[int, int]:
        """Which part of how many is scored, 0-based."""
        if self.shard is None:
            return 0, 1
        index, count = map(int, self.shard.split("/"))
        return index - 1, count

    @property
    def memory(self) -> int | None:
        """Bytes of `max_memory`."""
        given = self.max_memory
        return None if given is None else parse_bytes(given, "--max-memory")

    def arguments(self) -> list[str]:
        """As words of a command line, for other processes."""
        words = [str(self.source)]
        for option in fields(self):
            value = getattr(self, option.name)
            if option.name == "source" or value == option.default:
                continue
            flag = f"--{option.name.replace('_', '-')}"
            words += [flag] if value is True else [flag, str(value)]
        return words

    @property
    def filters(self) -> dict[str, str]:
        """The flags given of those that choose among variants, and their values."""
        given: dict[str, object] = {
            "--regions": " ".join(self.regions) or None,
            "--bed": self.bed and self.bed.name,
            "--min-qual": self.min_qual,
            "--pass-only": "" if self.pass_only else None,
            "--limit": self.limit,
        }
        return {flag: str(value) for flag, value in given.items() if value is not None}

    @property
    def variant_strand(self) -> Strand:
        """What is read of variants."""
        return Strand(self.strand or Strand.BOTH)

    @property
    def sequence_strand(self) -> Strand:
        """What is read of a FASTA."""
        return Strand(self.strand or Strand.FORWARD)

    def layout(self, default: Layout, more: tuple[Layout, ...] = ()) -> Layout:
        """The layout of the output, `default` where nothing says else.

        Args:
            default: Of stdout.
            more: Possible beside it and beside tables.

        Raises:
            UserError: The suffix is none we write for this input, or contradicts `--json`.
        """
        if self.output is None:
            return Layout.JSONL if self.json else default
        allowed = [Layout.JSONL] if self.json else [default, *more, Layout.TSV, Layout.JSONL]
        packed = {f"{layout}.gz": layout for layout in allowed if layout not in _PACKED_BY_ITSELF}
        known = {**{str(layout): layout for layout in allowed}, **packed}
        suffix = "".join(self.output.suffixes[-2:])
        found = known.get(suffix, known.get(self.output.suffix))
        if found is None:
            wanted = ", ".join(dict.fromkeys(allowed))
            raise UserError(
                f"--output {self.output}: needs one of the suffixes {wanted}; .gz may follow text"
            )
        return found

    def check_skipped(self, skipped: int, total: int) -> None:
        """Compare the skipped share with `max_skipped`, once the output is complete.

        Raises:
            TooManySkippedError: It is above.
        """
        if skipped > self.max_skipped * total:
            raise TooManySkippedError(
                f"{skipped:,} of {total:,} have no score, above --max-skipped {self.max_skipped}"
            )
