"""Training memory of one GPU, by component, from formulas: nothing is allocated.

Bytes per parameter, on each of w GPUs:

                weights       gradients             optimizer (masters and two moments)
plain           4             4                     8
ZeRO 1          e             4, temporarily + e    12 / w
ZeRO 2          e             4 / w                 12 / w
ZeRO 3          e / w         4 / w                 12 / w

with e = 2 in bf16 and 4 in fp32. In bf16, autocast in the plain engine also holds bf16 copies of
the weights of matrix products.

Frozen weights take 1, 2 or 4 bytes and have neither gradients nor optimizer state; parameters that
are trained on top of them count as in the plain engine.
"""

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from evo2cli.training.engine import BUCKET as PLAIN_BUCKET
from evo2cli.training.plan.activations import FP32, Dtypes, activations
from evo2cli.training.plan.calibration import (
    BUCKET,
    CHANNELS,
    CONTEXT,
    FRAGMENTATION,
    LIVE,
    PREFETCH,
)
from stripedhyena2 import ModelConfig
from stripedhyena2.costs import count_parameters, parameter_counts
from stripedhyena2.model import MLP_TOKENS
from stripedhyena2.parallelize import Schemes

BF16 = 2
MOMENTS = 2 * FP32


class Frozen(NamedTuple):
    """The frozen base of a fine-tuning run.

    Attributes:
        element: Bytes per weight of its projections.
        trainable: Number of parameters that are trained on top of it.
        has_backward: Whether gradients pass through it, to adapters.
    """

    element: int
    trainable: int
    has_backward: bool


@dataclass(frozen=True)
class Setup:
    """How a run uses its GPUs.

    Attributes:
        gpus: Number of GPUs.
        zero: ZeRO stage; 0 for the plain engine.
        length: Positions of a window.
        micro: Micro-batch: windows per forward pass on one context-parallel group.
        accumulation: Gradient accumulation: micro-batches per step.
        checkpointing: Blocks per checkpointed segment; 0 without activation checkpointing.
        compute: Dtype of matrix products.
        fp8: Whether projections and MLPs compute in FP8.
        ema: Whether an EMA of the weights is kept.
        context: Degree of context parallelism: GPUs that share a window.
        schemes: Exchanges of context parallelism.
        frozen: The frozen base; None if all weights are trained.
    """

    gpus: int
    zero: int
    length: int
    micro: int
    accumulation: int
    checkpointing: int
    compute: Literal["fp32", "bf16"]
    fp8: bool = False
    ema: bool = False
    context: int = 1
    schemes: Schemes = field(default_factory=Schemes)
    frozen: Frozen | None = None

    def num_trainable(self, counts: "Sizes") -> int:
        """Number of trainable parameters."""
        return counts.all if self.frozen is None else self.frozen.trainable

    @property
    def is_plain(self) -> bool:
        """Whether the plain engine runs it."""
        return self.zero == 0

    @property
    def dtypes(self) -> Dtypes:
        """Element sizes: the plain engine autocasts fp32 weights, DeepSpeed's weights are bf16."""
        compute = BF16 if self.compute == "bf16" else FP32
        if self.frozen is not None:
            return Dtypes(compute, max(compute, self.frozen.element))
        return Dtypes(compute, FP32 if self.is_plain else compute)

    @property
    def tokens(self) -> int:
        """Tokens of one forward pass on one GPU."""
        return self.micro * -(-self.length // self.context)

    @property
    def mlp_tokens(self) -> int:
        """Tokens of one forward pass that an MLP computes at once."""
        return min(self.tokens, self.micro * MLP_TOKENS)


@dataclass(frozen=True)
class Sizes:
    """Numbers of parameters.

    Attributes:
        all: Parameters of the model in training form.
        folded: Parameters of the model in inference form.
        block: Parameters of the largest block.
        products: Parameters of the projections and MLPs.
        largest: Parameters of the largest tensor.
    """

    all: int
    folded: int
    block: int
    products: int
    largest: int


def sizes(config: ModelConfig, *, published: bool = False) -> Sizes:
    """Count the parameters of a model.

    Args:
        config: Shape of the model.
        published: Whether poles are trained in the redundant form of the published runs.
    """
    counts = parameter_counts(config, training=True, published=published)
    blocks = [0] * config.depth
    for name, count in counts.items():
        if name.startswith("blocks."):
            blocks[int(name.split(".")[1])] += count
    products = sum(
        count
        for name, count in counts.items()
        if name.startswith("blocks.") and name.endswith(("weight", "bias"))
    )
    return Sizes(
        sum(counts.values()),
        count_parameters(config),
        max(blocks),
        products,
        max(counts.values()),
    )


@dataclass(frozen=True)
class Memory:
    """Bytes on one GPU at the peak of a step.

    Attributes:
        weights: Parameters, and their EMA if the run keeps one.
        copies: bf16 copies that autocast makes of fp32 weights.
        gradients: Accumulated gradients, and the one being added.
        optimizer: fp32 masters and Adam's moments.
        activations: Activations of one micro-batch, and temporaries of its backward pass.
        communication: Gradient buckets, and weights gathered from other GPUs.
        framework: CUDA, NCCL and the fragmentation of torch's allocator.
    """

    weights: float
    copies: float
    gradients: float
    optimizer: float
    activations: float
    communication: float
    framework: float

    @property
    def allocated(self) -> float:
        """Prediction of `torch.cuda.max_memory_allocated`."""
        return self.total - self.framework

    @property
    def total(self) -> float:
        """Memory that the GPU must have."""
        return float(sum(vars(self).values()))


def memory_per_gpu(config: ModelConfig, counts: Sizes, setup: Setup) -> Memory:
    """Peak memory of a step on one GPU.

    The peak can be at the loss, in the blocks, or at the end of the backward pass, when all
    gradients exist.
    """
    frozen = setup.frozen
    # Without a backward pass, the activations of one block at a time are in memory.
    group = 1 if frozen is not None and not frozen.has_backward else setup.checkpointing
    kept = activations(
        config,
        setup.dtypes,
        tokens=setup.tokens,
        checkpointing=group,
        mlp_tokens=setup.mlp_tokens,
        shared=setup.context > 1,
    )
    held, grown = _gradients(counts, setup)
    element = setup.dtypes.compute
    casts = setup.dtypes.is_autocast
    in_flight = counts.largest * (element + FP32 if casts else element)
    if frozen is not None:  # large weights have no gradients; FP8 ones are cast up to multiply
        in_flight = counts.largest * element if frozen.element == 1 else 0
    # With activation checkpointing, weights are cast again for the recomputation; without it the
    # casts of the forward pass are kept.
    copy = counts.products * BF16 / config.depth if casts else 0
    peaks = [
        (held, 0 if setup.checkpointing else copy * config.depth, kept.at_loss),
        (held + in_flight, copy * kept.group_blocks, kept.in_blocks),
        (grown + in_flight, copy, kept.at_end),
    ]
    gradients, copies, alive = max(peaks, key=sum)
    weights, optimizer = _states(counts, setup)
    parts = (weights, copies, gradients, optimizer, alive, _communication(counts, setup))
    framework = CONTEXT + FRAGMENTATION * sum(parts) + (CHANNELS if setup.gpus > 1 else 0)
    return Memory(*parts, framework)


def _states(counts: Sizes, setup: Setup) -> tuple[float, float]:
    """Bytes of weights, and of optimizer state."""
    trainable = setup.num_trainable(counts)
    if setup.frozen is not None:
        others = (counts.all - counts.products) * max(BF16, setup.frozen.element)
        weights = counts.products * setup.frozen.element + others + trainable * FP32
        return weights, trainable * MOMENTS
    if setup.is_plain:
        return counts.all * FP32 * (2 if setup.ema else 1), counts.all * MOMENTS
    weights = counts.all * setup.dtypes.compute
    optimizer = counts.all * (FP32 + MOMENTS) / setup.gpus
    return (weights / setup.gpus if setup.zero == 3 else weights), optimizer


def _gradients(counts: Sizes, setup: Setup) -> tuple[float, float]:
    """Bytes of gradients before a step's last backward pass, and at its end."""
    whole = setup.num_trainable(counts) * FP32
    if setup.zero >= 2:
        return whole / setup.gpus, whole / setup.gpus
    if setup.zero == 1 and setup.compute == "bf16":
        # DeepSpeed accumulates in fp32, and adds the bf16 gradients of all parameters at the end.
        return whole, whole + counts.all * BF16
    return (0 if setup.accumulation == 1 else whole), whole


def _communication(counts: Sizes, setup: Setup) -> float:
    """Bytes of communication buffers; DeepSpeed's buckets are full-size for any model."""
    if setup.is_plain:
        return min(PLAIN_BUCKET, setup.num_trainable(counts)) * FP32 if setup.gpus > 1 else 0
    narrow = setup.compute == "bf16"
    sent = min(BUCKET, counts.all) * FP32  # fp32 copy of a bucket that is sent
    if setup.zero == 1:
        return sent if narrow else BUCKET * FP32
    if setup.zero == 2:
        return BUCKET * BF16 + sent if narrow else BUCKET * FP32
    gathered = min(counts.all, LIVE + PREFETCH) * setup.dtypes.compute
    return BUCKET * FP32 + sent + gathered
