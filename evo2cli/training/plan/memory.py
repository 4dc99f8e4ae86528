"""What one GPU holds while it trains, by component, from formulas: nothing is allocated.

N parameters, w GPUs. Bytes a parameter before and after they are shared:

                weights       gradients             optimizer (masters and two moments)
plain           4             4                     8
ZeRO 1          e             4, and e a while      12 / w
ZeRO 2          e             4 / w                 12 / w
ZeRO 3          e / w         4 / w                 12 / w

with e = 2 in bf16 and 4 in fp32. The plain engine also holds bf16 copies of what it multiplies.
"""

from dataclasses import dataclass
from typing import Literal

import torch

from evo2cli.training.plan.activations import FP32, Dtypes, activations
from evo2cli.training.plan.calibration import (
    BUCKET,
    CHANNELS,
    CONTEXT,
    FRAGMENTATION,
    LIVE,
    PREFETCH,
)
from stripedhyena2 import ModelConfig, StripedHyena2
from stripedhyena2.parametrization import trainable

BF16 = 2
MOMENTS = 2 * FP32


@dataclass(frozen=True)
class Setup:
    """How a run uses its GPUs.

    Attributes:
        gpus: In all.
        zero: ZeRO stage; 0 for the plain engine, in one process.
        length: Positions of a window.
        micro: Windows a forward pass on one GPU, or on those that share them.
        accumulation: Forward passes a step.
        checkpointing: Blocks recomputed together; 0 for none.
        compute: Dtype of products.
        fp8: Whether projections and MLPs multiply in FP8.
        averaged: Whether averaged weights are kept too.
        context: GPUs that share a window, each a part of its positions.
        attention: How attention exchanges between them.
    """

    gpus: int
    zero: int
    length: int
    micro: int
    accumulation: int
    checkpointing: int
    compute: Literal["fp32", "bf16"]
    fp8: bool = False
    averaged: bool = False
    context: int = 1
    attention: Literal["heads", "ring", "zigzag"] = "heads"

    @property
    def is_plain(self) -> bool:
        """Whether the plain engine runs it."""
        return self.zero == 0

    @property
    def dtypes(self) -> Dtypes:
        """Bytes of numbers: the plain engine autocasts over fp32, DeepSpeed's weights are bf16."""
        compute = BF16 if self.compute == "bf16" else FP32
        return Dtypes(compute, FP32 if self.is_plain else compute)

    @property
    def tokens(self) -> int:
        """Of one forward pass on one GPU."""
        return self.micro * -(-self.length // self.context)


@dataclass(frozen=True)
class Sizes:
    """Numbers of parameters.

    Attributes:
        all: Of the model in training form.
        block: Of its largest block.
        products: Of the projections and MLPs.
        largest: Of the largest tensor.
    """

    all: int
    block: int
    products: int
    largest: int


def sizes(config: ModelConfig, *, published: bool = False) -> Sizes:
    """Count the parameters of the model itself, on the meta device.

    Args:
        config: Its shape.
        published: Whether poles train in the redundant form of the published runs.
    """
    with torch.device("meta"):
        model = StripedHyena2(config)
        trainable(model, config.original_context, published=published)
    counts = {name: parameter.numel() for name, parameter in model.named_parameters()}
    blocks = [sum(p.numel() for p in block.parameters()) for block in model.blocks]
    products = sum(n for name, n in counts.items() if name.endswith(("weight", "bias")))
    products -= model.embedding.weight.numel()
    return Sizes(sum(counts.values()), max(blocks), products, max(counts.values()))


@dataclass(frozen=True)
class Memory:
    """Bytes on one GPU at the peak of a step.

    Attributes:
        weights: Parameters, with averaged ones if there are.
        copies: bf16 copies that autocast makes of fp32 weights.
        gradients: Sums, and what is on its way into them.
        optimizer: fp32 masters and Adam's moments.
        activations: Of one micro-batch, and what its backward pass needs beside them.
        communication: Buckets of gradients, and weights gathered from other GPUs.
        framework: What torch's allocator does not count or loses between its pieces.
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
        """What `torch.cuda.max_memory_allocated` will say."""
        return self.total - self.framework

    @property
    def total(self) -> float:
        """What has to fit the GPU."""
        return float(sum(vars(self).values()))


def memory_per_gpu(config: ModelConfig, counts: Sizes, setup: Setup) -> Memory:
    """The peak of a step on one GPU.

    It can be at the loss, in the blocks, or at the end of the backward pass, when all gradients
    exist.
    """
    kept = activations(config, setup.dtypes, tokens=setup.tokens, checkpointing=setup.checkpointing)
    held, grown = _gradients(counts, setup)
    element = setup.dtypes.compute
    casts = setup.dtypes.is_autocast
    on_its_way = counts.largest * (element + FP32 if casts else element)
    # What is recomputed casts its weights anew; what is kept keeps the casts of the forward pass.
    copy = counts.products * BF16 / config.depth if casts else 0
    moments = [
        (held, 0 if setup.checkpointing else copy * config.depth, kept.at_loss),
        (held + on_its_way, copy * kept.group_blocks, kept.in_blocks),
        (grown + on_its_way, copy, kept.at_end),
    ]
    gradients, copies, alive = max(moments, key=sum)
    weights, optimizer = _states(counts, setup)
    parts = (weights, copies, gradients, optimizer, alive, _communication(counts, setup))
    framework = CONTEXT + FRAGMENTATION * sum(parts) + (CHANNELS if setup.gpus > 1 else 0)
    return Memory(*parts, framework)


def _states(counts: Sizes, setup: Setup) -> tuple[float, float]:
    """Bytes of weights, and of optimizer states."""
    if setup.is_plain:
        return counts.all * FP32 * (2 if setup.averaged else 1), counts.all * MOMENTS
    weights = counts.all * setup.dtypes.compute
    optimizer = counts.all * (FP32 + MOMENTS) / setup.gpus
    return (weights / setup.gpus if setup.zero == 3 else weights), optimizer


def _gradients(counts: Sizes, setup: Setup) -> tuple[float, float]:
    """Bytes of gradients before a step's last backward pass, and at its end."""
    whole = counts.all * FP32
    if setup.zero >= 2:
        return whole / setup.gpus, whole / setup.gpus
    if setup.zero == 1 and setup.compute == "bf16":
        # DeepSpeed keeps fp32 sums, and adds the bf16 gradients of all parameters at the end.
        return whole, whole + counts.all * BF16
    return (0 if setup.accumulation == 1 else whole), whole


def _communication(counts: Sizes, setup: Setup) -> float:
    """DeepSpeed's buffers. A bucket is as large as it may become, whatever the model's size."""
    if setup.is_plain:
        return 0
    narrow = setup.compute == "bf16"
    sent = min(BUCKET, counts.all) * FP32  # a bucket's copy in what is sent
    if setup.zero == 1:
        return sent if narrow else BUCKET * FP32
    if setup.zero == 2:
        return BUCKET * BF16 + sent if narrow else BUCKET * FP32
    gathered = min(counts.all, LIVE + PREFETCH) * setup.dtypes.compute
    return BUCKET * FP32 + sent + gathered
