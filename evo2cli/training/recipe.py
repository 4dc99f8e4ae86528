"""The schema of recipes: model, data, schedule and parallelism of a run, read by `recipe_file`."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    model_validator,
)

from evo2cli.data.packing import Packing
from evo2cli.data.repeats import MIN_SIZE
from evo2cli.errors import counted
from evo2cli.lengths import parse_length
from stripedhyena2.adapters import LoRA
from stripedhyena2.extension import Extension, Scheme
from stripedhyena2.parallelize import Schemes
from stripedhyena2.values import Number


def _positions(value: Any) -> Any:
    """Parse a length given as text, e.g. "64k"."""
    return parse_length(value, "a context of") if isinstance(value, str) else value


def _no_nul(path: Path) -> Path:
    if "\0" in str(path):
        raise ValueError("a path cannot contain the character NUL")
    return path


File = Annotated[Path, AfterValidator(_no_nul)]
# Far above any real run, and low enough that products of counts fit in 64 bits.
Count = Annotated[int, Field(ge=1, le=2**40), Number]
Windows = Annotated[int, Field(ge=1, le=2**20), Number]
MAX_STEP = 2**32  # positions per step
Fraction = Annotated[float, Field(ge=0, le=1), Number]
Rate = Annotated[float, Field(gt=0, le=1), Number]
Beta = Annotated[float, Field(ge=0, lt=1), Number]
Seconds = Annotated[float, Field(gt=0), Number]
Weight = Annotated[float, Field(gt=0), Number]
Seed = Annotated[int, Field(ge=0, lt=2**63), Number]
Positions = Annotated[Count, BeforeValidator(_positions)]
WHOLE = "all"  # name of the only source of a corpus without domains


class Table(BaseModel):
    """Base of the tables of a recipe: frozen; unknown keys are errors."""

    model_config = ConfigDict(allow_inf_nan=False, extra="forbid", frozen=True)


class Source(Table):
    """A data source: a folder of `evo2 tokenize`, a Megatron .bin, or a .jsonl file."""

    path: File
    weight: Weight | None = None  # sampling weight, relative to the other sources


class Extend(Table):
    """Context extension of the initial weights, before training."""

    to: Positions  # new context length: 65_536, or "64k"
    scheme: Scheme = Scheme.INTERPOLATION  # of rotary positions, as `evo2 extend --scheme`


class Corpus(Table):
    """A folder of genomes: FASTA files in its subfolders `train` and `valid`."""

    path: File
    tokens: File  # folder for the token sets, which the first run writes
    # Sampling weights by file name prefix: the files in `train` that share a prefix are one source,
    # a domain. Without domains, all files are one source.
    domains: dict[Annotated[str, Field(pattern=r"^\w[\w.+-]*$")], Weight] = {}

    @property
    def sources(self) -> list[Source]:
        """The token set and weight of each domain, sorted by name."""
        folder, domains = self.tokens / "train", sorted(self.domains.items())
        weighted = [Source(path=folder / name, weight=weight) for name, weight in domains]
        return weighted or [Source(path=folder / WHOLE)]

    @property
    def valid(self) -> list[Path]:
        """The token sets of the files in `valid` that have been written so far."""
        return sorted((self.tokens / "valid").glob("[!.]*"))


class Data(Table):
    """Training and validation data, and the loss weights of bases."""

    sources: Annotated[list[Source], Field(min_length=1)] = []
    valid: list[File] = []  # held-out sets, in addition to the valid splits of the sources
    corpus: Corpus | None = None  # a folder of genomes, instead of sources
    packing: Packing = "stream"  # whether windows run across documents
    reverse_complement: bool = True  # reverse complement each window with probability 1/2
    lowercase_weight: Fraction = 0.1  # loss weight of soft-masked (repeat) bases
    end_of_document_weight: Fraction = 1.0
    mask_tags: bool = True  # exclude phylogenetic tags, @ and # from the loss
    repeats: Annotated[float, Field(ge=0, le=10_000), Number] = 0.0  # in a window, on average
    inverted_repeats: Fraction = 0.25  # fraction of these repeats that are reverse complements
    longest_repeat: Annotated[int, Field(ge=MIN_SIZE), Number] | None = None  # bases

    @property
    def train_sources(self) -> list[Source]:
        """The training sources, given directly or by the corpus."""
        return self.sources if self.corpus is None else self.corpus.sources

    @property
    def held_out(self) -> list[Path]:
        """The held-out sets other than the valid splits of the sources."""
        return [*self.valid, *(self.corpus.valid if self.corpus else ())]

    @property
    def weights(self) -> list[float] | None:
        """Sampling weight of each source; None if no source has one."""
        weights = [source.weight for source in self.train_sources]
        return [weight for weight in weights if weight is not None] or None

    @model_validator(mode="after")
    def _sources_or_corpus(self) -> Self:
        if bool(self.sources) == (self.corpus is not None):
            raise ValueError("needs either sources or corpus (a folder of genomes)")
        return self

    @model_validator(mode="after")
    def _all_weighted_or_none(self) -> Self:
        unweighted = [source for source in self.sources if source.weight is None]
        if unweighted and len(unweighted) < len(self.sources):
            raise ValueError(
                f"source {unweighted[0].path} has no weight, but others have; give all or none"
            )
        return self


class Batch(Table):
    """The global batch of a step."""

    length: Count  # positions per window
    sequences: Windows  # windows per step, over all GPUs
    micro_sequences: Windows | None = None  # micro-batch: windows per forward pass on one GPU

    @model_validator(mode="after")
    def _divides(self) -> Self:
        if self.sequences % (self.micro_sequences or 1):
            raise ValueError(
                f"micro_sequences = {self.micro_sequences} does not divide "
                f"sequences = {self.sequences}"
            )
        if self.tokens > MAX_STEP:
            raise ValueError(
                f"sequences = {self.sequences} of length = {self.length} are {self.tokens:,} "
                f"positions per step, more than {MAX_STEP:,}"
            )
        return self

    @property
    def tokens(self) -> int:
        """Predictions per step."""
        return self.sequences * self.length

    def micro(self, world: int) -> int:
        """The micro-batch size, in windows, on `world` data-parallel ranks.

        Raises:
            ValueError: The batch cannot be divided evenly.
        """
        per_rank, rest = divmod(self.sequences, world)
        micro = self.micro_sequences or per_rank
        if rest or per_rank % micro:
            passes = f" in forward passes of {micro}" if self.micro_sequences else ""
            raise ValueError(
                f"batch.sequences = {self.sequences} cannot be shared by {world} GPUs{passes}"
            )
        return micro


class Optimizer(Table):
    """AdamW with linear warmup and cosine decay to the minimum learning rate."""

    steps: Count
    warmup_steps: Annotated[int, Field(ge=0, le=2**40), Number]
    learning_rate: Rate
    min_learning_rate: Fraction
    weight_decay: Fraction = 0.1
    decay: Literal["matrices", "evo2-published"] = "matrices"  # which parameters decay
    betas: tuple[Beta, Beta] = (0.9, 0.95)
    clip: Annotated[float, Field(gt=0), Number] = 1.0  # maximum global gradient norm
    ema: Beta | None = None  # decay per step of the EMA of the weights, which final/ then holds

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.warmup_steps >= self.steps:
            raise ValueError(
                f"warmup_steps = {self.warmup_steps} must be below steps = {self.steps}"
            )
        if self.min_learning_rate > self.learning_rate:
            raise ValueError(
                f"min_learning_rate = {self.min_learning_rate} is above "
                f"learning_rate = {self.learning_rate}"
            )
        return self


class Validation(Table):
    """Validation on a fixed set of windows."""

    every: Count = 500  # steps
    windows: Windows = 256  # per held-out set


class Checkpoint(Table):
    """Periodic checkpoints; a run resumes from the newest."""

    every: Count = 500  # steps
    keep: Count = 2  # number of newest checkpoints to keep
    keep_every: Count | None = None  # steps; checkpoints at multiples of it are never deleted
    optimizer: bool = True  # false: weights only, a quarter of the size, but no run can resume


class Precision(Table):
    """Precision of the forward pass; master weights and gradient accumulation are always fp32."""

    compute: Literal["fp32", "bf16"] = "bf16"
    fp8: bool = False  # projections and MLPs in FP8, on Hopper GPUs and newer
    compile: bool = False  # torch.compile each block

    @model_validator(mode="after")
    def _fp8_needs_bf16(self) -> Self:
        if self.fp8 and self.compute != "bf16":
            raise ValueError(f'fp8 = true needs compute = "bf16", not {self.compute!r}')
        return self


class Memory(Table):
    """Activation checkpointing: less memory for more compute."""

    # Blocks per checkpointed segment; 0: off.
    activation_checkpointing: Annotated[int, Field(ge=0), Number] = 0


class Parallel(Table):
    """Parallelism; `hyenakernels/parallel/README.md` compares the context-parallel exchanges."""

    # ZeRO stage: shards optimizer state (1), gradients (2) and weights (3).
    zero: Annotated[Literal[0, 1, 2, 3], Number] = 0
    context: Count = 1  # context parallelism: GPUs per window, each with a part of its positions
    fir: Literal["overlapped", "halo", "all-to-all", "pipelined"] = "overlapped"  # SE and MR
    modal: Literal["states", "all-to-all", "pipelined", "fft"] = "states"  # LI
    attention: Literal["heads", "ring", "zigzag"] = "heads"

    @property
    def schemes(self) -> Schemes:
        """The exchanges between the GPUs that share a window."""
        return Schemes(self.fir, self.modal, self.attention)


class Guard(Table):
    """What to do when a step diverges or hangs."""

    on_nonfinite: Literal["stop", "skip"] = "stop"
    skip_limit: Count = 10  # with "skip": stop after more skipped steps than this
    step_deadline: Seconds | None = None  # a longer step dumps all stacks and ends the run


class Tracking(Table):
    """Experiment trackers, in addition to metrics.jsonl; unset keys fall back to WANDB_*."""

    tensorboard: bool = False  # events in OUTPUT/tensorboard; needs the extra `train`
    wandb: bool = False  # a run of Weights & Biases; needs the extra `wandb`
    project: str | None = None
    entity: str | None = None  # user or team
    name: str | None = None  # of the run
    group: str | None = None
    tags: list[str] = []
    mode: Literal["online", "offline", "disabled"] | None = None

    @model_validator(mode="after")
    def _only_for_wandb(self) -> Self:
        given = self.model_fields_set - {"tensorboard", "wandb"}
        if given and not self.wandb:
            raise ValueError(f"{min(given)} is for Weights & Biases; set wandb = true")
        return self


class Adapters(Table):
    """LoRA on frozen projections; `stripedhyena2.adapters.lora` has the formulas."""

    rank: Count = 16
    alpha: Weight = 32.0
    dropout: Beta = 0.0
    targets: str = "all"  # all, mixer, attention, mlp, or a regular expression of module names
    rslora: bool = False  # divide alpha by the square root of the rank
    dora: bool = False  # train the magnitude of each output channel, too

    @property
    def lora(self) -> LoRA:
        """The same settings as `stripedhyena2.adapters.LoRA`."""
        return LoRA(**self.model_dump())


TaskName = Literal["lm", "classify", "multilabel", "regress", "tokens"]


class LabelledData(Table, extra="ignore"):
    """The keys of [finetune] that describe labelled examples; can be read before the rest."""

    task: TaskName | None = None  # default: inferred from the labels
    labels: list[str] = []  # columns with labels; default: label, labels, target or y
    group: str | None = None  # column with groups; default: group
    reference: Path | None = None  # genome of a table of variants
    test: Path | None = None  # table of test examples, evaluated once, at the end
    split: Literal["column", "chromosome", "group", "cluster", "random"] | None = None
    fractions: tuple[Fraction, Fraction, Fraction] = (0.8, 0.1, 0.1)  # train, valid, test
    valid_contigs: list[str] = []  # contigs whose sequences are for validation; replaces split
    test_contigs: list[str] = []  # contigs whose sequences are for test; replaces split
    features: Path | None = None  # BED or GFF whose features label the bases of a FASTA
    feature_type: str | None = None  # of a GFF; several are separated by commas
    regions: Path | None = None  # BED or GFF of the regions of the FASTA to use
    region_type: str | None = None  # of a GFF
    cut: Literal["centre", "start", "end"] = "centre"  # part of longer sequences to keep


class Finetune(LabelledData, extra="forbid"):
    """Fine-tuning of the weights of `init`; `data.sources` are the labelled tables."""

    task: TaskName
    method: Literal["lora", "full", "head"] = "lora"
    layer: str | None = None  # layer that the head reads; default: the last block
    pool: str = "mean"  # mean, last, max, attention, or center:W
    strand: Literal["fwd", "both"] = "fwd"
    head: Literal["linear", "mlp"] = "linear"
    head_learning_rate: Rate | None = None  # default: as the rest
    base: Literal["fp32", "bf16", "fp8"] = "fp32"  # precision of frozen weights
    adapters: Adapters = Adapters()
    weights: Literal["none", "balanced"] = "none"  # of classes in the loss
    metric: str | None = None  # validation metric by which the best weights are chosen
    patience: Count | None = None  # early stopping: validations without improvement
    scratch: bool = False  # random weights instead of those of init, as a baseline


class Recipe(Table):
    """A training run from random weights of a given shape (model) or from trained ones (init)."""

    model: str | None = None  # a shape: a TOML file next to the recipe, or a shipped one
    shape: dict[str, Any] = {}  # changes to that shape, by its keys
    init: str | None = None  # weights: what `--model` takes, or the recipe that trains them
    extend: Extend | None = None  # extends the context of the weights of init
    output: File
    seed: Seed = 0
    data: Data
    batch: Batch
    optimizer: Optimizer
    validation: Validation = Validation()
    checkpoint: Checkpoint = Checkpoint()
    precision: Precision = Precision()
    memory: Memory = Memory()
    parallel: Parallel = Parallel()
    guard: Guard = Guard()
    tracking: Tracking = Tracking()
    finetune: Finetune | None = None
    _file: Path = PrivateAttr(default=Path("recipe.toml"))

    @property
    def file(self) -> Path:
        """Its TOML file, for messages and to resolve relative paths."""
        return self._file

    def with_file(self, file: Path) -> Self:
        """A copy of the recipe with this as its file."""
        recipe = self.model_copy()
        recipe._file = file
        return recipe

    @property
    def base(self) -> str:
        """`init`, which must be set."""
        assert self.init is not None
        return self.init

    @property
    def tuning(self) -> Finetune:
        """The table [finetune], which must be set."""
        assert self.finetune is not None
        return self.finetune

    @property
    def head_scale(self) -> float:
        """Learning rate of the head as a multiple of that of the rest."""
        rate = self.finetune and self.finetune.head_learning_rate
        return rate / self.optimizer.learning_rate if rate else 1.0

    def extension(self, context: int) -> Extension | None:
        """The extension to apply to weights with this context length; None if there is none."""
        if self.extend is None or self.extend.to == context:
            return None
        return Extension(self.extend.to, self.extend.scheme)

    def micro(self, world: int) -> int:
        """The micro-batch size, in windows, on `world` ranks.

        Raises:
            ValueError: The batch cannot be divided evenly.
        """
        context_parallel = self.parallel.context
        if world % context_parallel:
            raise ValueError(
                f"parallel.context = {context_parallel} does not divide {counted(world, 'GPU')}; "
                "start the run by `evo2 launch` or torchrun on a multiple of "
                f"{context_parallel}, or change it"
            )
        return self.batch.micro(world // context_parallel)

    @model_validator(mode="after")
    def _windows_can_be_shared(self) -> Self:
        context_parallel = self.parallel.context
        if context_parallel > self.batch.length:
            raise ValueError(
                f"parallel.context = {context_parallel} GPUs cannot share batch.length = "
                f"{self.batch.length}"
            )
        if context_parallel > 1 and self.precision.compile:
            raise ValueError(
                f"precision.compile = true does not support parallel.context = {context_parallel}; "
                "set compile = false"
            )
        return self

    @model_validator(mode="after")
    def _one_start(self) -> Self:
        if (self.model is None) == (self.init is None):
            raise ValueError("needs either model (a shape) or init (weights to start from)")
        if self.init is not None and self.shape:
            raise ValueError("[shape] cannot change the weights that init names")
        if self.init is None and self.extend is not None:
            raise ValueError("[extend] needs init (weights to extend)")
        if self.init is None and self.finetune is not None:
            raise ValueError("[finetune] needs init (weights to start from)")
        return self

    @model_validator(mode="after")
    def _tables_agree(self) -> Self:
        if self.finetune is not None and self.finetune.task != "lm" and self.data.corpus:
            raise ValueError("[finetune] needs data.sources (labelled tables), not data.corpus")
        longest = self.data.longest_repeat
        if longest is not None and longest > self.batch.length // 2:
            raise ValueError(
                f"data.longest_repeat = {longest} is more than half of batch.length = "
                f"{self.batch.length}"
            )
        if self.extend is not None and self.batch.length > self.extend.to:
            raise ValueError(
                f"batch.length = {self.batch.length} is longer than extend.to = {self.extend.to}"
            )
        if self.optimizer.ema is not None and self.parallel.zero:
            raise ValueError(
                f"optimizer.ema needs whole weights on every GPU, but parallel.zero = "
                f"{self.parallel.zero}; set zero = 0"
            )
        return self
