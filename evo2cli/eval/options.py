"""Options of `evo2 eval`."""

import re
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, ClassVar, NamedTuple

import typer

from evo2cli.errors import UserError, counted
from evo2cli.eval.labels import Labels, Preset
from evo2cli.lengths import parse_length
from evo2cli.options import DeviceOptions, DType, JSONOptions, ModelOptions, Options, Strand
from evo2cli.score.options import AlleleOptions, GenomeOptions, Quantity, TableOptions

DEFAULT_WINDOWS = 100  # of `evo2 eval continuation`, from each FASTA
MIN_KEY = 16  # bases, which are by chance nowhere in a million random bases
MUTATION_RATE = 0.1


class Hidden(StrEnum):
    """The form of the needle in the haystack.

    EXACT: the needle. REVCOMP: its reverse complement. MUTATED: the needle with substitutions.
    """

    EXACT = "exact"
    REVCOMP = "revcomp"
    MUTATED = "mutated"


class Distractors(NamedTuple):
    """Near copies of the key in a haystack, each followed by another value.

    Attributes:
        number: Number of copies.
        distance: Hamming distance of their keys from that of the needle; None if there are none.
    """

    number: int
    distance: int | None

    def __str__(self) -> str:
        if not self.number:
            return "no distractors"
        return f"{counted(self.number, 'distractor')} at Hamming distance {self.distance}"


@dataclass(frozen=True, kw_only=True)
class EvalOptions(JSONOptions, panel="Output"):
    """Output of an evaluation, and its random seed."""

    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-O", metavar="FILE", help="Also write the results to x.tsv or x.json."
        ),
    ] = None
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Also draw a figure: x.png, x.pdf or x.svg."),
    ] = None
    seed: Annotated[int, typer.Option(min=0, help="Random seed.")] = 0


@dataclass(frozen=True, kw_only=True)
class TextOptions(Options, panel="Needles and haystacks"):
    """Haystacks, needles and distractors."""

    lengths: Annotated[
        str,
        typer.Option(
            metavar="LENGTHS",
            help="Comma-separated lengths of the whole text in bases, e.g. 8192,32k,1M.",
        ),
    ] = "512,1k,2k"
    depths: Annotated[
        str,
        typer.Option(
            metavar="PERCENTS",
            help="Comma-separated needle positions, as percent of the haystack before the needle.",
        ),
    ] = "0,25,50,75,100"
    haystack: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="FASTA from which to cut haystacks.",
            show_default="random DNA",
        ),
    ] = None
    needle_length: Annotated[
        int, typer.Option(help="Length of the needle (key and value) in bases.")
    ] = 100
    key_length: Annotated[
        int | None,
        typer.Option(
            min=MIN_KEY,
            help="Length of the key in bases; the rest of the needle is the value to recall.",
            show_default="half of the needle",
        ),
    ] = None
    hidden: Annotated[
        Hidden,
        typer.Option(
            help="What to hide in the haystack: the needle itself, its reverse complement, or a "
            "mutated copy."
        ),
    ] = Hidden.EXACT
    mutation_rate: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="Fraction of bases that --hidden mutated substitutes.",
            show_default=str(MUTATION_RATE),
        ),
    ] = None
    distractors: Annotated[
        str,
        typer.Option(
            metavar="N:D",
            help="Near copies of the key to add to the haystack, as comma-separated "
            "number:Hamming distance, e.g. 0,8:4,8:2.",
        ),
    ] = "0"
    repeats: Annotated[int, typer.Option(min=1, help="Number of random haystacks per length.")] = 10


@dataclass(frozen=True, kw_only=True)
class NeedleOptions(EvalOptions, ModelOptions, TextOptions):
    """Options of `evo2 eval needle`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.key_length is None and self.needle_length < 2 * MIN_KEY:
            raise UserError(
                f"--needle-length {self.needle_length}: half of it must be unique in a haystack; "
                f"give {2 * MIN_KEY} or more"
            )
        if self.num_key >= self.needle_length:
            raise UserError(
                f"--key-length {self.key_length}: leaves no value in a needle of "
                f"{self.needle_length} bases; raise --needle-length"
            )
        if self.mutation_rate is not None and self.hidden is not Hidden.MUTATED:
            raise UserError(f"--mutation-rate {self.mutation_rate}: needs --hidden mutated")
        most = max(distractors.number for distractors in self.distractor_sets)
        # Distractors stand in places of the size of a needle to its left and right: two borders.
        least = (most + 3 if most else 2) * self.needle_length
        for length in self.text_lengths:
            if length < least:
                others = f", {counted(most, 'distractor')}" if most else ""
                raise UserError(
                    f"--lengths {length}: too short for a needle of {self.needle_length} bases"
                    f"{others} and its copy; give {least} or more"
                )
        for depth in self.needle_depths:
            if not 0 <= depth <= 100:
                raise UserError(f"--depths {depth:g}: must be a percentage from 0 to 100")

    @property
    def text_lengths(self) -> tuple[int, ...]:
        """`lengths` in bases, ascending and unique."""
        return tuple(sorted({parse_length(text, "--lengths") for text in self.lengths.split(",")}))

    @property
    def num_key(self) -> int:
        """Bases of the key."""
        return self.key_length or self.needle_length - self.needle_length // 2

    @property
    def distractor_sets(self) -> tuple[Distractors, ...]:
        """`distractors`, unique and in order."""
        sets = {}
        for text in self.distractors.split(","):
            match = re.fullmatch(r"0|([1-9][0-9]{0,5}):([0-9]{1,5})", text.strip())
            if match is None:
                raise UserError(
                    f"--distractors {text}: must be 0, or a number and a Hamming distance such as "
                    "8:4"
                )
            number, distance = match[1], match[2]
            if number and not 1 <= int(distance) <= self.num_key:
                raise UserError(
                    f"--distractors {text}: a key of {self.num_key} bases has copies at Hamming "
                    f"distances from 1 to {self.num_key}"
                )
            key = Distractors(int(number), int(distance)) if number else Distractors(0, None)
            sets[key] = True
        return tuple(sets)

    @property
    def needle_depths(self) -> tuple[float, ...]:
        """`depths` in percent, ascending and unique; whole numbers are integers."""
        depths = set()
        for text in self.depths.split(","):
            try:
                depth = float(text)
            except ValueError:
                raise UserError(f"--depths {text}: not a percentage such as 50") from None
            depths.add(int(depth) if depth.is_integer() else depth)
        return tuple(sorted(depths))


@dataclass(frozen=True, kw_only=True)
class WindowOptions(Options, panel="Windows"):
    """The windows whose loss is measured."""

    genome: Annotated[
        Path,
        typer.Argument(
            rich_help_panel="Arguments", help="FASTA from which to cut windows; may be gzipped."
        ),
    ]
    length: Annotated[
        str | None,
        typer.Option(
            metavar="LENGTH",
            help="Window length in bases, e.g. 8192, 32k or 1M.",
            show_default="the model's context",
        ),
    ] = None
    windows: Annotated[int, typer.Option(min=1, help="Number of windows.")] = 10


@dataclass(frozen=True, kw_only=True)
class ContextOptions(EvalOptions, ModelOptions, WindowOptions):
    """Options of `evo2 eval context`."""

    against: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            rich_help_panel="Model",
            help="Another model to compare on the same windows, e.g. the model before its "
            "extension.",
        ),
    ] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.window_length is not None and self.window_length < 2:
            raise UserError(f"--length {self.length}: at least 2 bases are needed for a prediction")

    @property
    def window_length(self) -> int | None:
        """`length` in bases; None for the model's context."""
        return None if self.length is None else parse_length(self.length, "--length")


@dataclass(frozen=True, kw_only=True)
class LabelOptions(Options, panel="Labels"):
    """Labelled variants, and their groups."""

    source: Annotated[
        Path,
        typer.Argument(
            metavar="VARIANTS",
            rich_help_panel="Arguments",
            help="Labelled variants: VCF, BCF or a table. They are scored first if they have no "
            "EVO2_DELTA.",
        ),
    ]
    preset: Annotated[
        Preset | None,
        typer.Option(
            help="Known labels. brca1: CLASS is LOF, against FUNC or INT. clinvar: CLNSIG is "
            "Pathogenic or Likely_pathogenic, against Benign or Likely_benign."
        ),
    ] = None
    label: Annotated[
        str | None,
        typer.Option(
            metavar="KEY",
            help="INFO key, or table column, of the labels.",
            show_default="that of the preset",
        ),
    ] = None
    positive: Annotated[
        str | None,
        typer.Option(
            metavar="VALUES",
            help="Comma-separated labels of positives, e.g. pathogenic variants.",
            show_default="those of the preset",
        ),
    ] = None
    negative: Annotated[
        str | None,
        typer.Option(
            metavar="VALUES",
            help="Comma-separated labels of negatives, e.g. benign variants.",
            show_default="those of the preset",
        ),
    ] = None
    consequence: Annotated[
        str | None,
        typer.Option(
            metavar="KEY",
            help="INFO key, or table column, of the consequences.",
            show_default="the first of CSQ, ANN, BCSQ, MC, CONSEQUENCE, EFFECT",
        ),
    ] = None
    by: Annotated[
        str | None,
        typer.Option(
            metavar="KEYS",
            help="Report results for each value of these comma-separated INFO keys or columns, "
            "too, e.g. region,variant_type.",
        ),
    ] = None

    @property
    def groups(self) -> tuple[str, ...]:
        """The keys of `by`, without duplicates."""
        return tuple(dict.fromkeys(self.by.split(","))) if self.by else ()


@dataclass(frozen=True, kw_only=True)
class ScoringOptions(AlleleOptions, GenomeOptions, TableOptions, panel="Windows"):
    """How variants are scored, if they have no EVO2_DELTA."""

    scored: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Keep the scored variants in this file: x.vcf or x.vcf.gz; for a table x.tsv.",
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class VariantsOptions(EvalOptions, ModelOptions, ScoringOptions, LabelOptions):
    """Options of `evo2 eval variants`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.score in (Quantity.REF, Quantity.ALT):
            raise UserError(
                f"--score {self.score}: alleles are ranked by EVO2_DELTA; use --score delta"
            )
        if both := self.labels.in_both:
            raise UserError(
                f"--positive and --negative both contain {', '.join(both)}; remove it from one"
            )

    @property
    def labels(self) -> Labels:
        """The labels of the preset, overridden by `label`, `positive` and `negative`."""
        default = self.preset.labels if self.preset else Labels("", (), ())
        labels = Labels(
            self.label or default.key,
            tuple(self.positive.split(",")) if self.positive else default.positive,
            tuple(self.negative.split(",")) if self.negative else default.negative,
        )
        if not (labels.key and labels.positive and labels.negative):
            raise UserError(
                "which variants are harmful is not defined; give --preset brca1 or --preset "
                "clinvar, or all of --label, --positive and --negative"
            )
        return labels


@dataclass(frozen=True, kw_only=True)
class PairTableOptions(Options, panel="Pairs"):
    """A table of real and perturbed sequences."""

    source: Annotated[
        Path,
        typer.Argument(
            metavar="TABLE",
            rich_help_panel="Arguments",
            help="Table (TSV, CSV, Parquet or JSON lines) with a real and a perturbed sequence "
            "in each row.",
        ),
    ]
    real: Annotated[str, typer.Option(metavar="COLUMN", help="Column of the real sequences.")] = (
        "original_sequence"
    )
    perturbed: Annotated[
        str, typer.Option(metavar="COLUMN", help="Column of the perturbed sequences.")
    ] = "sequence"
    by: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="Report results for each value of this column, too."),
    ] = None
    strand: Annotated[Strand, typer.Option(help="Strand to read; both averages the two.")] = (
        Strand.FORWARD
    )


@dataclass(frozen=True, kw_only=True)
class PairsOptions(EvalOptions, ModelOptions, PairTableOptions, without=("plot",)):
    """Options of `evo2 eval pairs`."""


@dataclass(frozen=True, kw_only=True)
class ContinuedOptions(Options, panel="Windows"):
    """The windows that a model continues."""

    sources: Annotated[
        tuple[Path, ...],
        typer.Argument(
            metavar="FILE",
            rich_help_panel="Arguments",
            help="FASTA files from which to draw windows, each file a group; or tables (TSV, "
            "CSV, Parquet or JSON lines) of sequences whose last bases are to be predicted.",
        ),
    ]
    contexts: Annotated[
        str,
        typer.Option(
            metavar="LENGTHS",
            help="Comma-separated context lengths in bases, e.g. 512,1k,15000.",
        ),
    ] = "256,512,1k"
    bases: Annotated[int, typer.Option(min=1, help="Number of bases to predict.")] = 30
    windows: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=1_000_000,
            help="Number of windows to draw from each FASTA.",
            show_default=str(DEFAULT_WINDOWS),
        ),
    ] = None
    column: Annotated[
        str, typer.Option(metavar="COLUMN", help="Table column of the sequences.")
    ] = "sequence"
    by: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN",
            help="Report results for each value of this table column, too.",
            show_default="by file",
        ),
    ] = None

    @property
    def context_lengths(self) -> tuple[int, ...]:
        """`contexts` in bases, ascending and unique."""
        return tuple(sorted({parse_length(t, "--contexts") for t in self.contexts.split(",")}))

    @property
    def window_length(self) -> int:
        """Bases of the longest context and of its continuation."""
        return max(self.context_lengths) + self.bases


@dataclass(frozen=True, kw_only=True)
class ContinuationOptions(EvalOptions, ModelOptions, ContinuedOptions):
    """Options of `evo2 eval continuation`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.sources:
            raise UserError("evo2 eval continuation needs a FASTA or a table")
        for source in self.sources:
            if self.sources.count(source) > 1:
                raise UserError(f"{source}: is given twice; give it once")


@dataclass(frozen=True, kw_only=True)
class MutantTableOptions(TableOptions, panel="Measurements"):
    """A table of protein variants and their measured scores."""

    usual_label: ClassVar[str] = "DMS_score_bin"

    source: Annotated[
        Path,
        typer.Argument(
            metavar="TABLE",
            rich_help_panel="Arguments",
            help="Table (TSV, CSV, Parquet or JSON lines) of protein variants. If it has no column "
            "EVO2_DELTA, they are scored first.",
        ),
    ]
    mutant: Annotated[
        str,
        typer.Option(
            metavar="COLUMN",
            help="Column of the protein variants: A123T, or several joined by ':'.",
        ),
    ] = "mutant"
    measured: Annotated[
        str, typer.Option(metavar="COLUMN", help="Column of the measured scores.")
    ] = "DMS_score"
    label: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN",
            help="Column of binary labels: 1 for high scores, 0 for low ones.",
            show_default="DMS_score_bin, if there is such a column",
        ),
    ] = None


class CodonChoice(StrEnum):
    """Codons that encode a new amino acid.

    NEAREST: the codon that changes the fewest bases; ties go to the first in the alphabet. ALL: all
    codons but the present one; their deltas are averaged.
    """

    NEAREST = "nearest"
    ALL = "all"


@dataclass(frozen=True, kw_only=True)
class CodingOptions(Options, panel="Coding sequence"):
    """The coding sequence of the protein, alone or in its genome."""

    cds: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Coding sequence as FASTA; or, with --reference, a GFF3 with the lines of type "
            "CDS.",
        ),
    ] = None
    cds_name: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Name of the FASTA record, or ID of the CDS.",
            show_default="the only one in the file",
        ),
    ] = None
    reference: Annotated[
        Path | None,
        typer.Option(
            "-R",
            "--reference",
            metavar="FASTA",
            help="Genome of the GFF3; variants are then scored in windows of the genome.",
        ),
    ] = None
    window: Annotated[
        int | None,
        typer.Option(
            min=8,
            help="Window length in bases, with --reference.",
            show_default="8192, or the model's context if that is less",
        ),
    ] = None
    codons: Annotated[
        CodonChoice,
        typer.Option(
            help="How to encode a new amino acid: the codon that changes the fewest bases, or "
            "the mean over all its codons."
        ),
    ] = CodonChoice.NEAREST
    strand: Annotated[
        Strand,
        typer.Option(help="fwd is the coding strand of the gene; both averages the two strands."),
    ] = Strand.FORWARD


@dataclass(frozen=True, kw_only=True)
class DMSOptions(EvalOptions, ModelOptions, CodingOptions, MutantTableOptions, without=("plot",)):
    """Options of `evo2 eval dms`."""

    scored: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            rich_help_panel="Output",
            help="Keep the table with the column EVO2_DELTA in this file, x.tsv.",
        ),
    ] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.window is not None and self.reference is None:
            raise UserError(
                f"--window {self.window}: needs --reference; without a genome, the whole coding "
                "sequence is scored"
            )
        if self.scored is not None and self.scored == self.output:
            raise UserError(f"--scored {self.scored}: is also --output; name another file")


@dataclass(frozen=True, kw_only=True)
class FeatureTableOptions(Options, panel="Labels"):
    """A table of variants with labels and features."""

    source: Annotated[
        Path,
        typer.Argument(
            metavar="TABLE",
            rich_help_panel="Arguments",
            help="Table with the columns chrom, a label and features, as evo2 score --features "
            "writes it.",
        ),
    ]
    label: Annotated[
        str,
        typer.Option(metavar="COLUMN", help="Column of the labels: true or false, or 1 or 0."),
    ] = "label"
    features: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMNS",
            help="Comma-separated feature columns; embedding means embedding_0, embedding_1, ...",
            show_default="llr, absllr and embedding if present, otherwise EVO2_DELTA",
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class TraitGymOptions(EvalOptions, FeatureTableOptions, without=("plot",)):
    """Options of `evo2 eval traitgym`."""


@dataclass(frozen=True, kw_only=True)
class LabelledOptions(Options, panel="Labels"):
    """A run of `evo2 finetune`, and sequences with labels."""

    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN", rich_help_panel="Arguments", help="Folder written by evo2 finetune."
        ),
    ]
    test: Annotated[
        Path,
        typer.Argument(
            metavar="TEST",
            rich_help_panel="Arguments",
            help="Table of labelled sequences, with the same columns as for evo2 finetune.",
        ),
    ]
    label_cols: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMNS",
            help="Comma-separated names of the label columns.",
            show_default="label, labels, target or y",
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class TaskOptions(EvalOptions, DeviceOptions, LabelledOptions):
    """Options of `evo2 eval task`."""

    dtype: Annotated[
        DType,
        typer.Option(rich_help_panel="Model", help="Precision; auto is that of the run."),
    ] = DType.AUTO
