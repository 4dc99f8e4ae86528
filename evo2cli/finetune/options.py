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
    """Strands that the head reads; BOTH averages their features."""

    FORWARD = "fwd"
    BOTH = "both"


class HeadKind(StrEnum):
    """LINEAR: one layer. MLP: two, with a GELU between them."""

    LINEAR = "linear"
    MLP = "mlp"


class Weights(StrEnum):
    """Class weights. NONE: every example counts the same. BALANCED: every class does."""

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
            help="Labelled sequences: a table (TSV, CSV, Parquet or JSON lines, also gzipped) "
            "with a column 'sequence' and labels; or a FASTA together with --features. For "
            "--task lm: FASTA, JSON lines or a folder of tokens.",
        ),
    ]
    valid: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Table of validation examples, in the same format."),
    ] = None
    test: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Table of test examples, used once at the end; nothing is chosen by it.",
        ),
    ] = None
    reference: Annotated[
        Path | None,
        typer.Option(
            "--reference",
            "-R",
            metavar="FASTA",
            help="Reference genome, if the table lists variants (chrom, pos, ref, alt).",
        ),
    ] = None
    label_cols: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMNS",
            help="Comma-separated names of the label columns.",
            show_default="label, labels, target or y",
        ),
    ] = None
    group_col: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN",
            help="Column of groups, e.g. genes; a group is never split between training and test.",
            show_default="group",
        ),
    ] = None
    features: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="BED or GFF annotation of the FASTA: each base is labelled by the feature that "
            "covers it.",
        ),
    ] = None
    feature_type: Annotated[
        str | None,
        typer.Option(
            metavar="TYPES",
            help="Comma-separated feature types of the GFF to learn, e.g. exon,CDS; each is a "
            "class.",
        ),
    ] = None
    regions: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="BED or GFF: use only these regions of the FASTA, e.g. genes.",
            show_default="all of every record",
        ),
    ] = None
    region_type: Annotated[
        str | None,
        typer.Option(metavar="TYPE", help="Use only regions of this type of the GFF, e.g. gene."),
    ] = None
    split: Annotated[
        SplitBy | None,
        typer.Option(
            help="How to divide the examples into training, validation and test sets.",
            show_default="the column 'split' or the given files; otherwise by group, chromosome or "
            "cluster, the first that is possible",
        ),
    ] = None
    valid_contigs: Annotated[
        str | None,
        typer.Option(
            metavar="CONTIGS",
            help="Comma-separated contigs to use for validation; replaces --split.",
        ),
    ] = None
    test_contigs: Annotated[
        str | None,
        typer.Option(
            metavar="CONTIGS",
            help="Comma-separated contigs to use for the final test; replaces --split.",
        ),
    ] = None
    length: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Window length in bases; longer sequences are cut to it.",
            show_default="the longest sequence, at most the model's context; 1024 for windows of a "
            "genome",
        ),
    ] = None
    cut: Annotated[Cut, typer.Option(help="Which part of a longer sequence to keep.")] = Cut.CENTRE


@dataclass(frozen=True, kw_only=True)
class TaskOptions(Options, panel="Task"):
    """The task, the method, and the head."""

    task: Annotated[
        Task | None,
        typer.Option(
            help="Kind of task: lm predicts the next base, tokens labels every base.",
            show_default="inferred from the data",
        ),
    ] = None
    method: Annotated[
        Method | None,
        typer.Option(
            help="What to train: lora, adapters and a head; full, all weights and a head; head, "
            "only a head on frozen features.",
            show_default="lora; head with fewer than 1,000 training examples",
        ),
    ] = None
    layer: Annotated[
        str | None,
        typer.Option(
            metavar="LAYER",
            help="Layer that the head reads: a name, a block number, last, or best, the block "
            "that a cross-validated linear probe on the training examples prefers.",
            show_default="last; for --method head the block at 26/32 of the depth",
        ),
    ] = None
    pool: Annotated[
        str,
        typer.Option(
            metavar="POOL",
            help="How the head summarizes the positions of a sequence: mean, last, max, "
            "attention, or center:W for the W bases in the middle.",
        ),
    ] = "mean"
    strand: Annotated[
        ReadStrand,
        typer.Option(help="Read the forward strand, or average the features of both strands."),
    ] = ReadStrand.FORWARD
    head: Annotated[
        HeadKind,
        typer.Option(help="Type of head: one linear layer, or an MLP with one hidden layer."),
    ] = HeadKind.LINEAR
    weights: Annotated[
        Weights,
        typer.Option(
            help="Class weights in the loss; balanced gives every class the same total weight."
        ),
    ] = Weights.NONE
    scratch: Annotated[
        bool,
        typer.Option(
            "--scratch",
            help="With --method full: start from random weights, as a baseline for pretraining.",
        ),
    ] = False


@dataclass(frozen=True, kw_only=True)
class AdapterOptions(Options, panel="Adapters"):
    """The adapters of `--method lora`, and the precision of the base."""

    rank: Annotated[int, typer.Option(min=1, help="LoRA rank.")] = 16
    alpha: Annotated[
        float, typer.Option(help="LoRA alpha: adapters are scaled by alpha / rank.")
    ] = 32.0
    dropout: Annotated[
        float, typer.Option(min=0, max=0.99, help="Dropout on the input of adapters.")
    ] = 0.0
    targets: Annotated[
        str,
        typer.Option(
            metavar="TARGETS",
            help="Which projections get adapters: all, mixer, attention, mlp, or a regular "
            "expression of module names.",
        ),
    ] = "all"
    rslora: Annotated[
        bool,
        typer.Option("--rslora", help="Scale adapters by alpha / sqrt(rank) instead (rsLoRA)."),
    ] = False
    dora: Annotated[
        bool, typer.Option("--dora", help="Also train the magnitude of each output channel (DoRA).")
    ] = False
    base: Annotated[
        Base,
        typer.Option(
            help="Precision of the frozen base; fp8 stores one byte per weight.",
            show_default="bf16 on a GPU, fp32 on a CPU",
        ),
    ] = Base.AUTO


@dataclass(frozen=True, kw_only=True)
class OptimizerOptions(Options, panel="Training"):
    """Optimizer, schedule and validation."""

    lr: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="Peak learning rate.",
            show_default="lora 5e-4 (lm 1e-4), full 1.5e-5, head 3e-3",
        ),
    ] = None
    head_lr: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="Peak learning rate of the head.",
            show_default="1e-3 for full; otherwise --lr",
        ),
    ] = None
    epochs: Annotated[
        float | None,
        typer.Option(min=0, help="Passes over the training set.", show_default="3; 50 for head"),
    ] = None
    steps: Annotated[
        int | None, typer.Option(min=1, help="Number of optimizer steps; replaces --epochs.")
    ] = None
    batch: Annotated[
        int | None,
        typer.Option(min=1, help="Examples per optimizer step.", show_default="32; 256 for head"),
    ] = None
    micro_batch: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Examples per forward pass on one GPU; lower it if memory runs out.",
            show_default="all",
        ),
    ] = None
    warmup: Annotated[
        float,
        typer.Option(min=0, max=0.99, help="Fraction of the steps for learning-rate warmup."),
    ] = 0.05
    weight_decay: Annotated[
        float, typer.Option(min=0, max=1, help="Weight decay of the trained matrices.")
    ] = 0.0
    metric: Annotated[
        str | None,
        typer.Option(
            metavar="METRIC",
            help="Validation metric by which the best checkpoint is chosen.",
            show_default="mcc, auprc, pearson or macro_f1, depending on the task",
        ),
    ] = None
    patience: Annotated[
        int | None,
        typer.Option(min=1, help="Stop early after this many validations without improvement."),
    ] = None
    validations: Annotated[
        int,
        typer.Option(min=1, help="Number of validations, and of checkpoints, in the whole run."),
    ] = 10
    seed: Annotated[
        int,
        typer.Option(
            min=0, max=2**32 - 1, help="Random seed of splits, data order and initial weights."
        ),
    ] = 0


@dataclass(frozen=True, kw_only=True)
class LanguageOptions(Options, panel="Language models"):
    """Options for `--task lm` only."""

    tag: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            help="Lineage tag to put before every sequence, e.g. '|d__Bacteria;s__E. coli|'.",
        ),
    ] = None
    replay: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="Documents like those the base was trained on, mixed in to limit forgetting.",
        ),
    ] = None
    replay_share: Annotated[
        float, typer.Option(min=0, max=0.99, help="Fraction of the windows taken from --replay.")
    ] = 0.1
    remember: Annotated[
        tuple[Path, ...],
        typer.Option(
            metavar="PATH",
            help="Held-out documents whose loss is measured before and after, to show "
            "forgetting; repeatable.",
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
        Path,
        typer.Option(
            "--output",
            "-O",
            metavar="FOLDER",
            help="Folder for the run: recipe, checkpoints, report and final model.",
        ),
    ]
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Write the recipe and estimate memory and time, without training."
        ),
    ] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.epochs is not None and self.steps is not None:
            raise UserError("--epochs and --steps both say how long to train; give one")
        if self.scratch and self.method is not Method.FULL:
            raise UserError("--scratch trains all weights; add --method full")
        if self.features is None and (self.feature_type or self.regions):
            raise UserError("--feature-type and --regions need --features")
        if self.region_type is not None and self.regions is None:
            raise UserError(f"--region-type {self.region_type}: needs --regions")
