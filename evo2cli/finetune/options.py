"""Options of `evo2 finetune`."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from evo2cli.errors import UserError
from evo2cli.finetune.tasks import Cut, SplitBy, Task
from evo2cli.options import DeviceOptions, JSONOptions, NamedModelOptions, Options
from evo2cli.training.options import SettingsOptions


class Method(StrEnum):
    """What is trained.

    LORA: adapters on frozen weights, and the head. FULL: all weights, and the head. HEAD: the head
    alone, on features that are computed once.
    """

    LORA = "lora"
    FULL = "full"
    HEAD = "head"


class ReadStrand(StrEnum):
    """Which strands the head reads; BOTH takes the mean of the two."""

    FORWARD = "fwd"
    BOTH = "both"


class HeadKind(StrEnum):
    """LINEAR: one layer. MLP: two, with a GELU between them."""

    LINEAR = "linear"
    MLP = "mlp"


class Weights(StrEnum):
    """NONE: every example counts the same. BALANCED: every class does."""

    NONE = "none"
    BALANCED = "balanced"


class Base(StrEnum):
    """Precision of frozen weights."""

    AUTO = "auto"
    FP32 = "fp32"
    BF16 = "bf16"
    FP8 = "fp8"


@dataclass(frozen=True, kw_only=True)
class DataOptions(Options, panel="Data"):
    """The labelled sequences."""

    data: Annotated[
        Path,
        typer.Argument(
            metavar="DATA",
            rich_help_panel="Arguments",
            help="Table with a column sequence and labels: TSV, CSV, Parquet or JSON lines, also "
            "gzipped; FASTA with --features; or for lm FASTA, JSON lines or a folder of tokens.",
        ),
    ]
    valid: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Table for validation, of the same form.")
    ] = None
    test: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Table for the final test, which nothing is chosen by."),
    ] = None
    reference: Annotated[
        Path | None,
        typer.Option(
            "--reference",
            "-R",
            metavar="FASTA",
            help="Genome of a table of variants (chrom, pos, ref, alt).",
        ),
    ] = None
    label_cols: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMNS",
            help="Columns with labels, separated by commas.",
            show_default="label, labels, target or y",
        ),
    ] = None
    group_col: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="Column with groups.", show_default="group"),
    ] = None
    features: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="BED or GFF: its features label the bases of the FASTA DATA."
        ),
    ] = None
    feature_type: Annotated[
        str | None,
        typer.Option(
            metavar="TYPES", help="Types of features of a GFF, separated by commas: a class each."
        ),
    ] = None
    regions: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="BED or GFF: regions of the FASTA that are used, e.g. genes.",
            show_default="whole records",
        ),
    ] = None
    region_type: Annotated[
        str | None, typer.Option(metavar="TYPE", help="Only regions of this type of a GFF.")
    ] = None
    split: Annotated[
        SplitBy | None,
        typer.Option(
            help="How examples are divided.",
            show_default="column if there is one, or files; else chromosome, group, cluster",
        ),
    ] = None
    valid_contigs: Annotated[
        str | None,
        typer.Option(
            metavar="CONTIGS",
            help="Contigs whose sequences are for validation, separated by commas, instead of "
            "--split.",
        ),
    ] = None
    test_contigs: Annotated[
        str | None,
        typer.Option(
            metavar="CONTIGS", help="Contigs whose sequences are for the final test, likewise."
        ),
    ] = None
    length: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Bases of the window; longer sequences are cut.",
            show_default="the longest sequence, within the context of the model",
        ),
    ] = None
    cut: Annotated[Cut, typer.Option(help="Which bases of a longer sequence are kept.")] = (
        Cut.CENTRE
    )


@dataclass(frozen=True, kw_only=True)
class TaskOptions(Options, panel="Task"):
    """What is learned, and what of the model is trained."""

    task: Annotated[
        Task | None, typer.Option(help="Kind of task.", show_default="told from the data")
    ] = None
    method: Annotated[
        Method | None,
        typer.Option(
            help="Which parameters are trained.",
            show_default="lora; head below 1,000 training examples",
        ),
    ] = None
    layer: Annotated[
        str | None,
        typer.Option(
            metavar="LAYER",
            help="Layer that the head reads: a name, a block number, last, or best, which is "
            "chosen by a cross-validated probe on training examples.",
            show_default="last; the block at 26/32 of the depth for head",
        ),
    ] = None
    pool: Annotated[
        str,
        typer.Option(
            metavar="POOL", help="mean, last, max, attention, or center:W, W bases in the middle."
        ),
    ] = "mean"
    strand: Annotated[
        ReadStrand, typer.Option(help="Strands that are read: forward, or the mean of both.")
    ] = ReadStrand.FORWARD
    head: Annotated[HeadKind, typer.Option(help="The head.")] = HeadKind.LINEAR
    weights: Annotated[Weights, typer.Option(help="How much classes count in the loss.")] = (
        Weights.NONE
    )
    scratch: Annotated[
        bool,
        typer.Option("--scratch", help="With --method full: start from random weights instead."),
    ] = False


@dataclass(frozen=True, kw_only=True)
class AdapterOptions(Options, panel="Adapters"):
    """What the adapters of `--method lora` look like."""

    rank: Annotated[int, typer.Option(min=1, help="Rank of the adapters.")] = 16
    alpha: Annotated[
        float, typer.Option(help="What adapters are multiplied by, divided by the rank.")
    ] = 32.0
    dropout: Annotated[float, typer.Option(min=0, max=0.99, help="Dropout before adapters.")] = 0.0
    targets: Annotated[
        str,
        typer.Option(
            metavar="TARGETS",
            help="all, mixer, attention, mlp, or a regular expression of module names.",
        ),
    ] = "all"
    rslora: Annotated[
        bool, typer.Option("--rslora", help="Divide alpha by the square root of the rank.")
    ] = False
    dora: Annotated[
        bool, typer.Option("--dora", help="Train the magnitude of each output channel, too.")
    ] = False
    base: Annotated[
        Base,
        typer.Option(
            help="Precision of frozen weights; fp8 is a byte a weight.",
            show_default="bf16 on a GPU, fp32 on a CPU",
        ),
    ] = Base.AUTO


@dataclass(frozen=True, kw_only=True)
class OptimizerOptions(Options, panel="Training"):
    """How it is trained."""

    lr: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="Peak of the learning rate.",
            show_default="lora 5e-4 (lm 1e-4), full 1.5e-5, head 3e-3",
        ),
    ] = None
    head_lr: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, help="Learning rate of the head.", show_default="1e-3 for full; else lr"
        ),
    ] = None
    epochs: Annotated[
        float | None,
        typer.Option(
            min=0, help="Passes over the training examples.", show_default="3; 50 for head"
        ),
    ] = None
    steps: Annotated[
        int | None, typer.Option(min=1, help="Steps of the optimizer, instead of --epochs.")
    ] = None
    batch: Annotated[
        int | None,
        typer.Option(min=1, help="Examples of a step.", show_default="32; 256 for head"),
    ] = None
    micro_batch: Annotated[
        int | None,
        typer.Option(min=1, help="Examples of a forward pass on one GPU.", show_default="all"),
    ] = None
    warmup: Annotated[
        float, typer.Option(min=0, max=0.99, help="Part of the steps in which the rate rises.")
    ] = 0.05
    weight_decay: Annotated[
        float, typer.Option(min=0, max=1, help="Decay of matrices that are trained.")
    ] = 0.0
    metric: Annotated[
        str | None,
        typer.Option(
            metavar="METRIC",
            help="Metric of validation that chooses the best weights.",
            show_default="that of the task",
        ),
    ] = None
    patience: Annotated[
        int | None,
        typer.Option(min=1, help="End after this many validations without a better one."),
    ] = None
    validations: Annotated[
        int, typer.Option(min=1, help="Number of validations, and of checkpoints.")
    ] = 10
    seed: Annotated[
        int, typer.Option(min=0, max=2**32 - 1, help="Seed of splits, order and weights.")
    ] = 0


@dataclass(frozen=True, kw_only=True)
class LanguageOptions(Options, panel="Language models"):
    """What `--task lm` adds."""

    tag: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT", help="Tag before every sequence, e.g. '|d__Bacteria;s__E. coli|'."
        ),
    ] = None
    replay: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="Documents like those that the base was trained on."),
    ] = None
    replay_share: Annotated[
        float, typer.Option(min=0, max=0.99, help="Share of the windows that --replay gives.")
    ] = 0.1
    remember: Annotated[
        tuple[Path, ...],
        typer.Option(
            metavar="PATH",
            help="Held-out documents on which the loss is measured before and after; repeatable.",
        ),
    ] = ()


@dataclass(frozen=True, kw_only=True)
class FinetuneOptions(
    SettingsOptions,
    JSONOptions,
    DeviceOptions,
    LanguageOptions,
    OptimizerOptions,
    AdapterOptions,
    NamedModelOptions,
    TaskOptions,
    DataOptions,
):
    """Options of `evo2 finetune`.

    Raises:
        UserError: Two options exclude each other.
    """

    output: Annotated[
        Path, typer.Option("--output", "-O", metavar="FOLDER", help="Folder of the run.")
    ]
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Write the recipe and estimate memory and time; do not train."
        ),
    ] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.epochs is not None and self.steps is not None:
            raise UserError("--epochs and --steps both say how long to train; give one")
        if self.scratch and self.method is not Method.FULL:
            raise UserError("--scratch trains all weights; add --method full")
        if self.features is None and (self.feature_type or self.regions):
            raise UserError("--feature-type and --regions say what of --features is used; add it")
        if self.region_type is not None and self.regions is None:
            raise UserError(f"--region-type {self.region_type}: needs --regions")
