"""Options of `evo2 score`, and those that it shares with `evo2 saturate`."""

import math
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, ClassVar

import typer

from evo2cli.errors import UserError
from evo2cli.files import check_output
from evo2cli.genome.contig_names import ContigNames, read_contig_names
from evo2cli.genome.source import STDIN, exists
from evo2cli.lengths import parse_bytes
from evo2cli.options import DevicesOptions, Options, RegionOptions, Strand, TagOptions, flag


class Windows(StrEnum):
    """Where the windows around a variant begin.

    CENTRED: W // 2 bases before the variant, as published. ANCHORED: at the last multiple of W // 4
    with at least W // 2 bases before the variant, so that neighbouring variants share windows.
    """

    CENTRED = "centred"
    ANCHORED = "anchored"


class IndelMode(StrEnum):
    """How the window with an insertion or a deletion ends.

    FIXED: it has the length of the window with the reference allele, so its right border moves.
    ANCHORED: both end at the same base of the genome, so their lengths differ.
    """

    FIXED = "fixed"
    ANCHORED = "anchored"


class OnRefMismatch(StrEnum):
    """What to do with an allele whose REF differs from the genome.

    SKIP: it has no score. ERROR: the run ends. SWAP: if ALT is the allele of the genome, REF and
    ALT are swapped, and the allele is scored.
    """

    SKIP = "skip"
    ERROR = "error"
    SWAP = "swap"


class Quantity(StrEnum):
    """Which scores of an allele are written, in nats.

    DELTA: log P(window with ALT) - log P(window with REF), also for each strand if both are read.
    REF, ALT: log P of one window. ALL: all of these. NEXT_BASE: log P(ALT) - log P(REF) of the
    variant base alone, given the bases before it, in place of DELTA.
    """

    DELTA = "delta"
    REF = "ref"
    ALT = "alt"
    ALL = "all"
    NEXT_BASE = "next-base"


class Feature(StrEnum):
    """A feature of an allele; its value is the name of its column.

    LLR: EVO2_DELTA. ABSLLR: its absolute value. EMBEDDING: the mean vector of the window with ALT
    minus that of the window with REF, one column per channel.
    """

    LLR = "llr"
    ABSLLR = "absllr"
    EMBEDDING = "embedding"


class Layout(StrEnum):
    """Format of an output file; its value is the suffix."""

    VCF = ".vcf"
    TSV = ".tsv"
    JSONL = ".jsonl"
    BCF = ".bcf"
    PARQUET = ".parquet"

    @property
    def has_index(self) -> bool:
        """Whether tabix can index the file once bgzip (`.gz`) has compressed it."""
        return self in (Layout.VCF, Layout.TSV)


VARIANT_LAYOUTS = (Layout.VCF, Layout.BCF, Layout.PARQUET)  # of variants, besides TSV and JSONL
_COMPRESSED_LAYOUTS = (Layout.BCF, Layout.PARQUET)  # without .gz


@dataclass(frozen=True, kw_only=True)
class StrandOptions(Options, panel="Windows"):
    """The strands to read."""

    strand: Annotated[
        Strand | None,
        typer.Option(
            help="Strand to read; both averages the two.",
            show_default="both; for the sequences of a FASTA fwd",
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class WindowOptions(Options, panel="Windows"):
    """The windows around an allele."""

    window: Annotated[
        int | None,
        typer.Option(
            min=2,
            help="Length of the window around each variant, in bases.",
            show_default="8192, or the model's context if that is less",
        ),
    ] = None
    windows: Annotated[
        Windows,
        typer.Option(
            help="centred: the variant is in the middle, as in the Evo 2 paper. anchored: "
            "neighbouring variants share windows, which is about twice as fast."
        ),
    ] = Windows.CENTRED
    indel_mode: Annotated[
        IndelMode,
        typer.Option(
            help="For insertions and deletions. fixed: the windows with REF and with ALT have "
            "the same length, as in the Evo 2 paper. anchored: they end at the same base of "
            "the genome."
        ),
    ] = IndelMode.FIXED
    after: Annotated[
        int | None,
        typer.Option(
            min=0,
            metavar="N",
            help="End the window N bases after the variant, in reading direction, so that almost "
            "all of it is context before the variant.",
        ),
    ] = None
    on_ref_mismatch: Annotated[
        OnRefMismatch,
        typer.Option(
            help="What to do if REF differs from the genome: skip the allele, stop with an "
            "error, or swap REF and ALT if ALT is the genome's allele."
        ),
    ] = OnRefMismatch.SKIP

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.after is not None and self.windows is Windows.ANCHORED:
            raise UserError(
                f"--after {self.after}: cannot be combined with --windows anchored, which says "
                "where windows end"
            )
        if self.after is not None and self.window is not None and self.after > self.window - 2:
            raise UserError(
                f"--after {self.after}: leaves no base before the variant in --window {self.window}"
            )


@dataclass(frozen=True, kw_only=True)
class DefinitionOptions(Options, panel="Output"):
    """The definition of a score."""

    score: Annotated[
        Quantity,
        typer.Option(
            "--score",
            help="What to write. delta: log P(window with ALT) - log P(window with REF); ref, "
            "alt: one of the two terms; all: everything. next-base: log P(ALT) - log P(REF) "
            "of the variant base alone, given the bases before it; SNVs only.",
        ),
    ] = Quantity.DELTA


@dataclass(frozen=True, kw_only=True)
class AlleleOptions(WindowOptions, DefinitionOptions, StrandOptions):
    """Everything that the score of an allele depends on, besides the genome and the model.

    Raises:
        UserError: Options contradict each other.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.is_next_base and self.after is not None:
            raise UserError(
                f"--after {self.after}: has no effect with --score next-base, which reads only "
                "the bases before the variant; leave it out"
            )

    @property
    def is_next_base(self) -> bool:
        """Whether the predictions of the variant base are compared, not whole windows."""
        return self.score is Quantity.NEXT_BASE

    @property
    def variant_strand(self) -> Strand:
        """The strand to read of windows."""
        return self.strand or Strand.BOTH


@dataclass(frozen=True, kw_only=True)
class QuantityOptions(DefinitionOptions, panel="Output"):
    """Scores, and what is derived from EVO2_DELTA.

    Raises:
        UserError: An option needs EVO2_DELTA, which is not written.
    """

    needs_delta: ClassVar[tuple[str, ...]] = ("background", "precision_check")

    precision_check: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Score N alleles again at a higher precision to measure the rounding noise, and "
            "mark every EVO2_DELTA that is smaller than it as NOISE.",
        ),
    ] = None
    background: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Add EVO2_PCT, the percentile of EVO2_DELTA among random variants of the same "
            "kind. FILE keeps the scores of the random variants for later runs; it is "
            "created if missing.",
        ),
    ] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.score not in (Quantity.REF, Quantity.ALT):
            return
        for name in self.needs_delta:
            if getattr(self, name) is not None:
                raise UserError(
                    f"{flag(type(self), name)} needs EVO2_DELTA, which --score {self.score} does "
                    "not write; use --score all"
                )


@dataclass(frozen=True, kw_only=True)
class FeatureOptions(Options, panel="Output"):
    """Features of each allele for other programs.

    Raises:
        UserError: A feature or a pooling is unknown, or an option needs a feature.
    """

    features: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            help="Add feature columns to the output table, comma-separated: llr (EVO2_DELTA), "
            "absllr (its absolute value), embedding (mean vector of the window with ALT "
            "minus that with REF).",
        ),
    ] = None
    pool: Annotated[
        str,
        typer.Option(
            metavar="whole|center:W",
            help="Positions that --features embedding averages: the whole window, or W bases "
            "around the variant.",
        ),
    ] = "whole"
    layer: Annotated[
        str | None,
        typer.Option(
            metavar="LAYER",
            help="Layer of --features embedding, named as for evo2 embed.",
            show_default="the block at 26/32 of the depth",
        ),
    ] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        is_pooled = self.pool != "whole" or self.layer is not None
        if is_pooled and Feature.EMBEDDING not in self.wanted_features:
            raise UserError("--pool and --layer need --features embedding")
        if self.center is not None and self.center < 1:
            raise UserError(f"--pool {self.pool}: W must be at least 1")

    @property
    def wanted_features(self) -> list[Feature]:
        """The features to compute, without duplicates.

        Raises:
            UserError: A feature is unknown.
        """
        words = dict.fromkeys(self.features.split(",") if self.features else [])
        try:
            return [Feature(word.strip()) for word in words]
        except ValueError:
            raise UserError(
                f"--features {self.features}: must be a comma-separated list of "
                f"{', '.join(Feature)}"
            ) from None

    @property
    def center(self) -> int | None:
        """Number of positions around the variant to pool; None for the whole window.

        Raises:
            UserError: `pool` is neither whole nor center:W.
        """
        if self.pool == "whole":
            return None
        word, _, number = self.pool.partition(":")
        if word != "center" or not (number.isascii() and number.isdecimal() and len(number) < 10):
            raise UserError(f"--pool {self.pool}: must be whole, or center:W, e.g. center:64")
        return int(number)


@dataclass(frozen=True, kw_only=True)
class OutputOptions(Options, panel="Output"):
    """The output."""

    output: Annotated[
        Path | None,
        typer.Option(
            "-O",
            "--output",
            metavar="FILE",
            help="Output file: x.tsv, x.jsonl or x.vcf, each also with .gz; x.bcf; x.parquet.",
            show_default="stdout",
        ),
    ] = None
    json: Annotated[bool, typer.Option("--json", help="Write JSON lines.")] = False
    max_skipped: Annotated[
        float,
        typer.Option(
            min=0,
            max=1,
            metavar="FRACTION",
            help="Exit with code 3 if more than this fraction of the records has no score. If no "
            "record has one, the exit code is always 3; of --shard, `evo2 merge` has it.",
        ),
    ] = 1.0

    def layout(self, default: Layout, more: tuple[Layout, ...] = ()) -> Layout:
        """The format of the output, from `--output` and `--json`.

        Args:
            default: Format for stdout.
            more: Formats that are allowed besides `default`, TSV and JSON lines.

        Raises:
            UserError: The suffix is none of these, or contradicts `--json`.
        """
        if self.output is None:
            return Layout.JSONL if self.json else default
        allowed = [Layout.JSONL] if self.json else [default, *more, Layout.TSV, Layout.JSONL]
        packed = {f"{layout}.gz": layout for layout in allowed if layout not in _COMPRESSED_LAYOUTS}
        by_suffix = {**{str(layout): layout for layout in allowed}, **packed}
        suffix = "".join(self.output.suffixes[-2:])
        layout = by_suffix.get(suffix, by_suffix.get(self.output.suffix))
        if layout is None:
            raise UserError(
                f"--output {self.output}: needs one of the suffixes "
                f"{', '.join(dict.fromkeys(allowed))}; text formats may also end in .gz"
            )
        return layout


@dataclass(frozen=True, kw_only=True)
class GenomeOptions(Options, panel="Input"):
    """The genome around the variants."""

    reference: Annotated[
        Path | None,
        typer.Option(
            "-R",
            "--reference",
            metavar="FASTA",
            help="Genome of the variants.",
            show_default="the ##reference named in the VCF",
        ),
    ] = None
    contig_names: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Synonyms of contig names: one contig per line, its names in columns; or an "
            "NCBI assembly report. Names such as chr17, 17, NC_000017.11 and CM000679.2 are "
            "matched without it.",
        ),
    ] = None

    @property
    def names(self) -> ContigNames:
        """Synonyms of contig names.

        Raises:
            UserError: The file cannot be read.
        """
        return read_contig_names(self.contig_names)


@dataclass(frozen=True, kw_only=True)
class TableOptions(Options, panel="Input"):
    """Tables of variants."""

    shift: Annotated[
        int,
        typer.Option(
            help="Number to add to every position in the table: 1 if its positions are 0-based."
        ),
    ] = 0


@dataclass(frozen=True, kw_only=True)
class ShardOptions(Options, panel="Run"):
    """Sharding and dry runs.

    Raises:
        UserError: `shard` is not I/N.
    """

    shard: Annotated[
        str | None,
        typer.Option(
            metavar="I/N",
            help="Score only part I of N of the variants; join the outputs with evo2 merge.",
        ),
    ] = None
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Count the bases to compute and estimate the time from one window, without "
            "scoring.",
        ),
    ] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shard is not None:
            index, _, count = self.shard.partition("/")
            if not (index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
                raise UserError(f"--shard {self.shard}: must be I/N with I from 1 to N, e.g. 3/8")

    @property
    def part(self) -> tuple[int, int]:
        """The 0-based index of the shard, and the number of shards."""
        if self.shard is None:
            return 0, 1
        index, count = map(int, self.shard.split("/"))
        return index - 1, count


@dataclass(frozen=True, kw_only=True)
class FilterOptions(RegionOptions, panel="Input"):
    """Filters of records; the others are not in the output.

    Raises:
        UserError: `min_qual` is not a finite number.
    """

    min_qual: Annotated[
        float | None,
        typer.Option(metavar="NUMBER", help="Use only VCF records with at least this QUAL."),
    ] = None
    pass_only: Annotated[
        bool, typer.Option("--pass-only", help="Use only VCF records whose FILTER is PASS.")
    ] = False
    limit: Annotated[
        int | None,
        typer.Option(min=1, help="Use only the first N records that pass the other filters."),
    ] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.min_qual is not None and not math.isfinite(self.min_qual):
            raise UserError(f"--min-qual {self.min_qual}: must be a finite number")


@dataclass(frozen=True, kw_only=True)
class SequenceOptions(TagOptions, panel="Run"):
    """Computation of the sequences of a FASTA.

    Raises:
        UserError: `max_memory` is not a size.
    """

    max_memory: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="For a FASTA: memory for the model and its activations, e.g. 24G; what does not "
            "fit is kept in host memory.",
            show_default="the free memory",
        ),
    ] = None
    context_parallel: Annotated[
        int,
        typer.Option(
            min=1, help="For a FASTA: number of processes, one per GPU, that share each sequence."
        ),
    ] = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_memory is not None:
            parse_bytes(self.max_memory, "--max-memory")

    @property
    def memory(self) -> int | None:
        """`max_memory` in bytes."""
        return None if self.max_memory is None else parse_bytes(self.max_memory, "--max-memory")


@dataclass(frozen=True, kw_only=True)
class VariantOptions(
    ShardOptions,
    DevicesOptions,
    OutputOptions,
    FeatureOptions,
    QuantityOptions,
    AlleleOptions,
    GenomeOptions,
):
    """Options of variants that `evo2 score` and `evo2 saturate` share."""

    @property
    def command(self) -> str:
        """The command in the header of the output."""
        return "evo2 score"

    @property
    def source(self) -> Path:
        """The input, for messages."""
        raise NotImplementedError

    @property
    def is_stdin(self) -> bool:
        """Whether the input can be read only once."""
        return False

    @property
    def filters(self) -> dict[str, str]:
        """The flags that filter variants, and their values; "" for a flag without one."""
        return {}


# Options of `evo2 score` that apply only to variants, or only to the sequences of a FASTA.
FOR_VARIANTS = (
    FilterOptions,
    GenomeOptions,
    TableOptions,
    WindowOptions,
    DefinitionOptions,
    QuantityOptions,
    FeatureOptions,
    ShardOptions,
)
FOR_SEQUENCES = (SequenceOptions,)


@dataclass(frozen=True, kw_only=True)
class ScoreOptions(SequenceOptions, VariantOptions, FilterOptions, TableOptions):
    """Options of `evo2 score`.

    Raises:
        UserError: An option contradicts another one, or the output cannot be written.
    """

    inputs: Annotated[
        tuple[str, ...],
        typer.Argument(
            metavar="INPUT",
            help="A FASTA of sequences; or variants: a VCF, BCF or table (TSV, CSV, Parquet or "
            "JSON lines with chrom, pos, ref, alt), or named, e.g. chr22-1024-A-C. - reads stdin.",
        ),
    ]

    def __post_init__(self) -> None:
        super().__post_init__()
        files = filter(exists, map(Path, self.inputs))
        check_output(
            self.output, *files, self.reference, self.bed, self.background, self.contig_names
        )
        if self.is_stdin and self.shard is not None:
            raise UserError(
                "--shard: needs to count the variants first, and stdin cannot be read twice; "
                "give a file"
            )
        if self.is_stdin and self.precision_check is not None:
            raise UserError("--precision-check: stdin cannot be read twice; give a file")
        if self.context_parallel > 1 and self.is_stdin:
            raise UserError("--context-parallel: several processes cannot read stdin; give a file")
        if self.context_parallel > 1 and (self.device == "all" or "," in self.device):
            raise UserError(
                f"--context-parallel splits each sequence, --device {self.device} splits the "
                "list of records; use only one of them"
            )

    @property
    def source(self) -> Path:
        """The file, or the first named variant."""
        return Path(self.inputs[0])

    @property
    def is_stdin(self) -> bool:
        """Whether the input is stdin."""
        return self.source == STDIN

    @property
    def sequence_strand(self) -> Strand:
        """The strand to read of a FASTA."""
        return self.strand or Strand.FORWARD

    @property
    def filters(self) -> dict[str, str]:
        """The flags that filter variants, and their values; "" for a flag without one."""
        values: dict[str, object] = {
            "regions": " ".join(self.regions) or None,
            "bed": self.bed and self.bed.name,
            "min_qual": self.min_qual,
            "pass_only": "" if self.pass_only else None,
            "limit": self.limit,
        }
        return {flag(type(self), name): str(v) for name, v in values.items() if v is not None}
