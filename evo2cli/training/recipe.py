"""A recipe: what a run trains, on what, and for how long; `recipe_file` reads it from TOML."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from evo2cli.errors import UserError
from evo2cli.lengths import parse_length
from stripedhyena2.extension import Extension, Scheme
from stripedhyena2.parallelize import Schemes


def _positions(given: Any) -> Any:
    """A length as people write them, as a number."""
    if not isinstance(given, str):
        return given
    try:
        return parse_length(given, "a context of")
    except UserError as error:
        raise ValueError(str(error)) from None


Count = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Rate = Annotated[float, Field(gt=0, le=1)]
Beta = Annotated[float, Field(ge=0, lt=1)]
Seconds = Annotated[float, Field(gt=0)]
Weight = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Positions = Annotated[int, Field(ge=1), BeforeValidator(_positions)]


class Table(BaseModel):
    """A table of a recipe: frozen, and unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Source(Table):
    """Documents to train on: a folder of `evo2 tokenize`, a Megatron .bin, or a .jsonl file."""

    path: Path
    weight: Weight | None = None  # share of the windows, relative to the other sources


class Extend(Table):
    """The context that the weights of `init` are given before training."""

    to: Positions  # 65_536, or "64k"
    scheme: Scheme = Scheme.INTERPOLATION  # of rotary positions, as `evo2 extend --scheme`


class Data(Table):
    """What is read, and what it counts."""

    sources: Annotated[list[Source], Field(min_length=1)]
    valid: list[Path] = []  # held-out documents, beside the valid splits of the sources
    packing: Literal["stream", "document"] = "stream"  # whether windows run across documents
    reverse_complement: bool = True  # turn every window over with probability 1/2
    lowercase_weight: Fraction = 0.1  # loss weight of soft-masked (repeat) bases
    end_of_document_weight: Fraction = 1.0
    mask_tags: bool = True  # phylogenetic tags, @ and # are read but not learned

    @model_validator(mode="after")
    def _all_weighted_or_none(self) -> Self:
        unweighted = [source for source in self.sources if source.weight is None]
        if unweighted and len(unweighted) < len(self.sources):
            raise ValueError(
                f"source {unweighted[0].path} has no weight, but others have: give all or none"
            )
        return self


class Batch(Table):
    """What one step sees, on all GPUs together."""

    length: Count  # positions in one window
    sequences: Count  # windows a step
    micro_sequences: Count | None = None  # windows a forward pass on one GPU; all when absent

    @model_validator(mode="after")
    def _divides(self) -> Self:
        if self.sequences % (self.micro_sequences or 1):
            raise ValueError(
                f"micro_sequences = {self.micro_sequences} does not divide "
                f"sequences = {self.sequences}"
            )
        return self

    @property
    def tokens(self) -> int:
        """Predictions a step."""
        return self.sequences * self.length

    def micro(self, world: int) -> int:
        """Windows a forward pass, when `world` GPUs, or groups of them, share a step.

        Raises:
            ValueError: They cannot share it evenly; the message begins with table and key.
        """
        each, rest = divmod(self.sequences, world)
        micro = self.micro_sequences or each
        if rest or each % micro:
            wanted = f" in forward passes of {micro}" if self.micro_sequences else ""
            raise ValueError(
                f"batch.sequences = {self.sequences} cannot be shared by {world} GPUs{wanted}"
            )
        return micro


class Optimizer(Table):
    """AdamW with linear warmup and a cosine down to the minimum."""

    steps: Count
    warmup_steps: Annotated[int, Field(ge=0)]
    learning_rate: Rate
    min_learning_rate: Annotated[float, Field(ge=0, le=1)]
    weight_decay: Fraction = 0.1
    decay: Literal["matrices", "evo2-published"] = "matrices"  # which parameters decay
    betas: tuple[Beta, Beta] = (0.9, 0.95)
    clip: Annotated[float, Field(gt=0)] = 1.0  # global gradient norm
    ema: Beta | None = None  # decay a step of averaged weights, which final/ then holds

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
    """The same windows of every held-out set, every time."""

    every: Count = 500  # steps
    windows: Count = 256  # of each set


class Checkpoint(Table):
    """What a killed run goes on from."""

    every: Count = 500  # steps
    keep: Count = 2  # newest ones
    keep_every: Count | None = None  # steps; these are never dropped


class Precision(Table):
    """How the forward pass is computed; master weights and gradient sums are always fp32."""

    compute: Literal["fp32", "bf16"] = "bf16"
    fp8: bool = False  # projections and MLPs in FP8, on Hopper and newer
    compile: bool = False

    @model_validator(mode="after")
    def _fp8_is_narrower(self) -> Self:
        if self.fp8 and self.compute != "bf16":
            raise ValueError(f'fp8 = true needs compute = "bf16", not {self.compute!r}')
        return self


class Memory(Table):
    """What is traded for memory."""

    activation_checkpointing: Annotated[int, Field(ge=0)] = 0  # blocks recomputed together; 0: none


class Parallel(Table):
    """How GPUs share a run; `hyenakernels/parallel/README.md` compares the exchanges."""

    zero: Literal[0, 1, 2, 3] = 0  # ZeRO stage: optimizer, then gradients, then weights sharded
    context: Count = 1  # GPUs that share one window, each a part of its positions
    fir: Literal["overlapped", "halo", "all-to-all", "pipelined"] = "overlapped"  # of SE and MR
    modal: Literal["states", "all-to-all", "pipelined", "fft"] = "states"  # of LI
    attention: Literal["heads", "ring", "zigzag"] = "heads"

    @property
    def schemes(self) -> Schemes:
        """What GPUs that share a window exchange."""
        return Schemes(self.fir, self.modal, self.attention)


class Guard(Table):
    """What happens when a step goes wrong."""

    on_nonfinite: Literal["stop", "skip"] = "stop"
    skip_limit: Count = 10  # skipped steps after which a run stops all the same
    step_deadline: Seconds | None = None  # a slower step dumps all stacks and ends the run


class Log(Table):
    """What is told beside metrics.jsonl."""

    tensorboard: bool = False  # events in OUTPUT/tensorboard; needs the extra `train`


class Recipe(Table):
    """A whole run, from a fresh model of some shape, or from weights."""

    model: str | None = None  # a shape: a TOML beside the recipe, or a shipped one
    shape: dict[str, Any] = {}  # keys of the shape that this run changes
    init: str | None = None  # or weights: what `--model` takes, or the recipe that trains them
    extend: Extend | None = None  # makes the weights of init ready for a longer context
    output: Path
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    data: Data
    batch: Batch
    optimizer: Optimizer
    validation: Validation = Validation()
    checkpoint: Checkpoint = Checkpoint()
    precision: Precision = Precision()
    memory: Memory = Memory()
    parallel: Parallel = Parallel()
    guard: Guard = Guard()
    log: Log = Log()

    def extension(self, context: int) -> Extension | None:
        """What is to be done to initial weights of this context; None for nothing."""
        if self.extend is None or self.extend.to == context:
            return None
        return Extension(self.extend.to, self.extend.scheme)

    def micro(self, world: int) -> int:
        """Windows a forward pass, when `world` GPUs share a step.

        Raises:
            ValueError: They cannot share it evenly; the message begins with table and key.
        """
        context = self.parallel.context
        if world % context:
            raise ValueError(
                f"parallel.context = {context} does not divide {world:,} GPUs; start it by `evo2 "
                f"launch` or torchrun on {context} or a multiple, or set another"
            )
        return self.batch.micro(world // context)

    @model_validator(mode="after")
    def _windows_can_be_shared(self) -> Self:
        context = self.parallel.context
        if context > self.batch.length:
            raise ValueError(
                f"parallel.context = {context} GPUs cannot share batch.length = {self.batch.length}"
            )
        if context > 1 and self.precision.compile:
            raise ValueError(
                f"precision.compile = true does not know the exchanges of parallel.context = "
                f"{context}; set compile = false"
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
