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
    that leaves at least W // 2 bases before it, so that neighbouring variants share windows.
    """

    CENTRED = "centred"
    ANCHORED = "anchored"


class IndelMode(StrEnum):
    """What an insertion or a deletion does to the window with the alternate allele.

    FIXED: it is as long as the window with the reference allele, because its right border moves.
    ANCHORED: both end at the same base of the genome, so that it is longer or shorter.
    """

    FIXED = "fixed"
    ANCHORED = "anchored"


class OnRefMismatch(StrEnum):
    """What happens to an allele whose REF is not what the genome has at its position.

    SKIP: it has no score. ERROR: the run ends. SWAP: if ALT is what the genome has, REF and ALT
    change roles, and the allele is scored.
    """

    SKIP = "skip"
    ERROR = "error"
    SWAP = "swap"


class Quantity(StrEnum):
    """Which log-likelihoods of the windows of an allele are written, in nats.

    DELTA: log P(window with ALT) - log P(window with REF), of each strand too if both are read.
    REF, ALT: log P of one window. ALL: all of these. NEXT_BASE: log P(ALT) - log P(REF) of the one
    base, given the bases before it, in the place of DELTA.
    """

    DELTA = "delta"
    REF = "ref"
    ALT = "alt"
    ALL = "all"
    NEXT_BASE = "next-base"


class Feature(StrEnum):
    """A feature of an allele for other programs; its value is the name of its column.

    LLR: EVO2_DELTA. ABSLLR: its absolute value. EMBEDDING: the mean of the vectors of the window
    with ALT minus that of the window with REF, a column for each channel.
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


VARIANT_LAYOUTS = (Layout.VCF, Layout.BCF, Layout.PARQUET)  # for variants, in addition to tables
_COMPRESSED_LAYOUTS = (Layout.BCF, Layout.PARQUET)  # no .gz


@dataclass(frozen=True, kw_only=True)
class StrandOptions(Options, panel="Windows"):
    """Which strands are read."""

    strand: Annotated[
        Strand | None,
        typer.Option(
            help="Strand to read; both takes the mean of the two.",
            show_default="both, but fwd for the sequences of a FASTA",
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class WindowOptions(Options, panel="Windows"):
    """Which windows of the genome an allele is scored by."""

    window: Annotated[
        int | None,
        typer.Option(
            min=2,
            help="Bases in the window around a variant.",
            show_default="8192, or the model's context if that is less",
        ),
    ] = None
    windows: Annotated[
        Windows,
        typer.Option(
            help="centred: the variant is in the middle, as published. anchored: neighbouring "
            "variants share windows, which is about twice as fast."
        ),
    ] = Windows.CENTRED
    indel_mode: Annotated[
        IndelMode,
        typer.Option(
            help="fixed: the windows with REF and with ALT are equally long, as published. "
            "anchored: they end at the same base of the genome."
        ),
    ] = IndelMode.FIXED
    after: Annotated[
        int | None,
        typer.Option(
            min=0,
            metavar="N",
            help="Windows end N bases after the variant, as the strand is read, so that nearly all "
            "of a window is before it.",
        ),
    ] = None
    on_ref_mismatch: Annotated[
        OnRefMismatch,
        typer.Option(
            help="If REF is not what the genome has: skip the allele, end with an error, or swap "
            "REF and ALT if ALT is what the genome has."
        ),
    ] = OnRefMismatch.SKIP

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.after is not None and self.windows is Windows.ANCHORED:
            raise UserError(f"--after {self.after}: --windows anchored have their own ends")
        if self.after is not None and self.window is not None and self.after > self.window - 2:
            raise UserError(
                f"--after {self.after}: leaves no base before the variant in --window {self.window}"
            )


@dataclass(frozen=True, kw_only=True)
class DefinitionOptions(Options, panel="Output"):
    """What the score of an allele is."""

    score: Annotated[
        Quantity,
        typer.Option(
            "--score",
            help="Log-likelihoods to write: delta is log P(window with ALT) - log P(window with "
            "REF), ref and alt are the two terms. next-base: log P(ALT) - log P(REF) of the one "
            "base, given the bases before it; SNVs only.",
        ),
    ] = Quantity.DELTA


@dataclass(frozen=True, kw_only=True)
class AlleleOptions(WindowOptions, DefinitionOptions, StrandOptions):
    """All that decides the score of an allele, given a genome and a model.

    Raises:
        UserError: Options contradict each other.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.is_next_base and self.after is not None:
            raise UserError(f"--after {self.after}: --score next-base reads nothing after the base")

    @property
    def is_next_base(self) -> bool:
        """Whether the predictions of the base alone are compared, not whole windows."""
        return self.score is Quantity.NEXT_BASE

    @property
    def variant_strand(self) -> Strand:
        """The strand that is read of windows."""
        return self.strand or Strand.BOTH


@dataclass(frozen=True, kw_only=True)
class QuantityOptions(DefinitionOptions, panel="Output"):
    """What is written about an allele.

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
            "mark every EVO2_DELTA that is smaller.",
        ),
    ] = None
    background: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Add EVO2_PCT, the percentile among random variants of the same kind. The file "
            "keeps their scores for later runs, and is created if it is missing.",
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
        UserError: A feature or a pooling is not known, or an option needs a feature.
    """

    features: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            help="Add columns to a table, with commas: llr is EVO2_DELTA, absllr its absolute "
            "value; embedding is the mean vector of the window with ALT minus that with REF.",
        ),
    ] = None
    pool: Annotated[
        str,
        typer.Option(
            metavar="whole|center:W",
            help="Positions of a window that --features embedding is the mean of: all, or W around "
            "the variant.",
        ),
    ] = "whole"
    layer: Annotated[
        str | None,
        typer.Option(
            metavar="LAYER",
            help="Layer of --features embedding, as in evo2 embed.",
            show_default="the block at 26/32 of the depth",
        ),
    ] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        is_pooled = self.pool != "whole" or self.layer is not None
        if is_pooled and Feature.EMBEDDING not in self.wanted_features:
            raise UserError("--pool and --layer are of --features embedding")
        if self.center is not None and self.center < 1:
            raise UserError(f"--pool {self.pool}: W must be at least 1")

    @property
    def wanted_features(self) -> list[Feature]:
        """The features, each once.

        Raises:
            UserError: One is not known.
        """
        words = dict.fromkeys(self.features.split(",") if self.features else [])
        try:
            return [Feature(word.strip()) for word in words]
        except ValueError:
            raise UserError(
                f"--features {self.features}: must be of {', '.join(Feature)}, with commas"
            ) from None

    @property
    def center(self) -> int | None:
        """Number of positions around the variant that are pooled; None for the whole window.

        Raises:
            UserError: `pool` is neither.
        """
        if self.pool == "whole":
            return None
        word, _, number = self.pool.partition(":")
        if word != "center" or not (number.isascii() and number.isdecimal() and len(number) < 10):
            raise UserError(f"--pool {self.pool}: must be whole, or center:W, e.g. center:64")
        return int(number)


@dataclass(frozen=True, kw_only=True)
class OutputOptions(Options, panel="Output"):
    """Where and how results are written."""

    output: Annotated[
        Path | None,
        typer.Option(
            "-O",
            "--output",
            metavar="FILE",
            help="x.tsv, x.jsonl or x.vcf, each also with .gz; x.bcf; x.parquet.",
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
            help="Exit with code 3 if a larger fraction of records has no score, or all have none.",
        ),
    ] = 1.0

    def layout(self, default: Layout, more: tuple[Layout, ...] = ()) -> Layout:
        """The format of the output, `default` unless an option says otherwise.

        Args:
            default: Format of stdout.
            more: Formats that are possible in addition to `default` and tables.

        Raises:
            UserError: The suffix is not one of these, or contradicts `--json`.
        """
        if self.output is None:
            return Layout.JSONL if self.json else default
        allowed = [Layout.JSONL] if self.json else [default, *more, Layout.TSV, Layout.JSONL]
        packed = {f"{layout}.gz": layout for layout in allowed if layout not in _COMPRESSED_LAYOUTS}
        known = {**{str(layout): layout for layout in allowed}, **packed}
        suffix = "".join(self.output.suffixes[-2:])
        found = known.get(suffix, known.get(self.output.suffix))
        if found is None:
            wanted = ", ".join(dict.fromkeys(allowed))
            raise UserError(
                f"--output {self.output}: needs one of the suffixes {wanted}; .gz may follow text"
            )
        return found


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
            show_default="the ##reference of a VCF",
        ),
    ] = None
    contig_names: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Further names of contigs: a line for each contig, with two or more names in "
            "columns; or an assembly report of NCBI. chr17, 17, NC_000017.11 and CM000679.2 are "
            "known.",
        ),
    ] = None

    @property
    def names(self) -> ContigNames:
        """Tells which names mean the same contig.

        Raises:
            UserError: The file cannot be read.
        """
        return read_contig_names(self.contig_names)


@dataclass(frozen=True, kw_only=True)
class TableOptions(Options, panel="Input"):
    """How a table of variants is read."""

    shift: Annotated[
        int,
        typer.Option(help="Add this to every position of a table: 1 if its positions are 0-based."),
    ] = 0


@dataclass(frozen=True, kw_only=True)
class ShardOptions(Options, panel="Run"):
    """Which share of the variants is scored.

    Raises:
        UserError: `shard` is not I/N.
    """

    shard: Annotated[
        str | None,
        typer.Option(
            metavar="I/N",
            help="Score only the I-th of N parts of the variants; `evo2 merge` joins the outputs.",
        ),
    ] = None
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Count the bases to compute and time one window, without scoring.",
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
        """The 0-based index of the part that is scored, and the number of parts."""
        if self.shard is None:
            return 0, 1
        index, count = map(int, self.shard.split("/"))
        return index - 1, count


@dataclass(frozen=True, kw_only=True)
class FilterOptions(RegionOptions, panel="Input"):
    """Which records of the input are scored; the others are not in the output.

    Raises:
        UserError: `min_qual` is not a finite number.
    """

    min_qual: Annotated[
        float | None,
        typer.Option(metavar="NUMBER", help="Only records of a VCF with at least this QUAL."),
    ] = None
    pass_only: Annotated[
        bool, typer.Option("--pass-only", help="Only records of a VCF whose FILTER is PASS.")
    ] = False
    limit: Annotated[
        int | None,
        typer.Option(min=1, help="Only the first N records, after all other filters."),
    ] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.min_qual is not None and not math.isfinite(self.min_qual):
            raise UserError(f"--min-qual {self.min_qual}: must be a finite number")


@dataclass(frozen=True, kw_only=True)
class SequenceOptions(TagOptions, panel="Run"):
    """How the sequences of a FASTA are computed.

    Raises:
        UserError: `max_memory` is not a size.
    """

    max_memory: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Memory for the model and the computation on a FASTA, e.g. 24G; what does not fit "
            "is kept in the memory of the host.",
            show_default="what is free",
        ),
    ] = None
    context_parallel: Annotated[
        int,
        typer.Option(
            min=1, help="Processes, one for each GPU, that share every sequence of a FASTA."
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
    """What `evo2 score` and `evo2 saturate` need for scoring variants."""

    @property
    def command(self) -> str:
        """How the header of the output names the command."""
        return "evo2 score"

    @property
    def source(self) -> Path:
        """What messages call the input."""
        raise NotImplementedError

    @property
    def is_stdin(self) -> bool:
        """Whether the input can be read only once."""
        return False

    @property
    def filters(self) -> dict[str, str]:
        """The flags that choose among variants, and their values; "" for a flag without one."""
        return {}


# Options of `evo2 score` that have no meaning for the sequences of a FASTA, or only for these.
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
            help="A FASTA of sequences; or variants: a VCF, BCF or table (TSV, CSV or Parquet with "
            "the columns chrom, pos, ref, alt), or written out, e.g. chr22-1024-A-C. - is stdin.",
        ),
    ]

    def __post_init__(self) -> None:
        super().__post_init__()
        files = filter(exists, map(Path, self.inputs))
        check_output(
            self.output, *files, self.reference, self.bed, self.background, self.contig_names
        )
        if self.is_stdin and self.shard is not None:
            raise UserError("--shard: stdin cannot be read twice, to be counted; give a file")
        if self.is_stdin and self.precision_check is not None:
            raise UserError("--precision-check: stdin cannot be read twice; give a file")
        if self.context_parallel > 1 and self.is_stdin:
            raise UserError("--context-parallel: several processes cannot read stdin; give a file")
        if self.context_parallel > 1 and (self.device == "all" or "," in self.device):
            raise UserError(
                f"--context-parallel shares single sequences, --device {self.device} shares "
                "records; use one of them"
            )

    @property
    def source(self) -> Path:
        """The file, or the first of the variants."""
        return Path(self.inputs[0])

    @property
    def is_stdin(self) -> bool:
        """Whether the input is stdin."""
        return self.source == STDIN

    @property
    def sequence_strand(self) -> Strand:
        """The strand that is read of a FASTA."""
        return self.strand or Strand.FORWARD

    @property
    def filters(self) -> dict[str, str]:
        """The flags that choose among variants, and their values; "" for a flag without one."""
        values: dict[str, object] = {
            "regions": " ".join(self.regions) or None,
            "bed": self.bed and self.bed.name,
            "min_qual": self.min_qual,
            "pass_only": "" if self.pass_only else None,
            "limit": self.limit,
        }
        return {flag(type(self), name): str(v) for name, v in values.items() if v is not None}
