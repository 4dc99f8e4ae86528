"""Predict the time of a step from FLOPs, bytes moved, and the rates in `calibration`.

Predictions are for uncompiled models; `precision.compile` can only be faster.
"""

from dataclasses import dataclass

from evo2cli.training.plan.activations import FP32, Dtypes
from evo2cli.training.plan.calibration import (
    ATTENTION,
    BANDWIDTH,
    BUCKET,
    FP8_MATMUL,
    FP32_MATMUL,
    GPUS_PER_NODE,
    HOOKS,
    LINKS,
    MATMUL,
    OVERLAP,
    PARAMETER_BYTES,
    PREFETCH,
    RING_LINK,
    RING_NETWORK,
    RING_START,
)
from evo2cli.training.plan.flops import BACKWARD, flops_per_token
from evo2cli.training.plan.hardware import Accelerator
from evo2cli.training.plan.memory import BF16, Setup, Sizes
from stripedhyena2 import ModelConfig

PRODUCTS = 5  # weight matrices per block


@dataclass(frozen=True)
class StepTime:
    """Seconds of a step, including recomputation.

    Attributes:
        products: Projections and MLPs.
        attention: Attention.
        operators: Fused Hyena operators, memory-bound.
        elementwise: Norms, residual sums, casts and gates, memory-bound.
        head: From the residual stream to logits, in fp32.
        parameters: Casts, gradient accumulation and the optimizer, memory-bound.
        host: Waiting for Python, i.e. for the hooks of ZeRO 3.
        waiting: Waiting for transfers between GPUs that computation does not hide.
        transfers: All transfers, hidden or not; not part of the total.
    """

    products: float
    attention: float
    operators: float
    elementwise: float
    head: float
    parameters: float
    host: float
    waiting: float
    transfers: float

    @property
    def total(self) -> float:
        """Sum of all parts but `transfers`."""
        return float(sum(vars(self).values())) - self.transfers


def step_time(
    config: ModelConfig, counts: Sizes, setup: Setup, gpu: Accelerator, *, tokens: float
) -> StepTime:
    """Predict the time of a step.

    Args:
        config: Shape of the model.
        counts: Numbers of its parameters.
        setup: How the run uses its GPUs.
        gpu: The GPU model.
        tokens: Tokens of a step on one GPU.
    """
    products, attention, head = (tokens * time for time in _computed(config, setup, gpu))
    bandwidth = gpu.bandwidth * BANDWIDTH
    operators, elementwise = (tokens * size / bandwidth for size in _moved(config, setup, gpu))
    per_micro_batch, per_step = PARAMETER_BYTES[setup.zero]
    trainable = setup.num_trainable(counts)
    sharded = trainable if setup.is_plain else trainable / setup.gpus
    moved = setup.accumulation * trainable * per_micro_batch + sharded * per_step
    transfers = _transfers(config, counts, setup, gpu)
    hidden = OVERLAP * min(transfers, products + attention + operators + elementwise)
    waiting = transfers - hidden if setup.zero == 3 else transfers
    exchanges = _exchanges(config, setup, gpu, tokens)
    # Ring attention exchanges keys and values while it computes.
    overlapped = 0 if setup.schemes.attention == "heads" else OVERLAP * attention
    return StepTime(
        products,
        attention,
        operators,
        elementwise,
        head,
        moved / bandwidth,
        HOOKS * config.depth * (_passes(setup) + 1) * setup.accumulation if setup.zero == 3 else 0,
        waiting + max(0.0, exchanges - overlapped),
        transfers + exchanges,
    )


def _passes(setup: Setup) -> int:
    """Forward passes over the blocks per micro-batch, including recomputation."""
    return 2 if setup.checkpointing and _backward(setup) else 1


def _backward(setup: Setup) -> int:
    """Number of gradients computed per matrix product, each as many FLOPs as itself."""
    if setup.frozen is None:
        return BACKWARD
    return 1 if setup.frozen.has_backward else 0


def _computed(config: ModelConfig, setup: Setup, gpu: Accelerator) -> tuple[float, float, float]:
    """Seconds per token of matrix products, of attention and of the head."""
    flops = flops_per_token(config, setup.length)
    times = _backward(setup) + _passes(setup)
    fp32 = gpu.fp32 * FP32_MATMUL
    narrow = setup.compute == "bf16"
    rate = gpu.bf16 * MATMUL if narrow else fp32
    if setup.fp8 and gpu.fp8 is not None:
        rate = gpu.fp8 * FP8_MATMUL
    # An MLP that computes a sequence in chunks recomputes each of them in the backward pass.
    recomputes = _backward(setup) > 0 and setup.mlp_tokens < setup.tokens
    mlp = 2 * 3 * config.width * config.mlp_width * config.depth
    return (
        (times * flops.dense + (mlp if recomputes else 0)) / rate,
        # Queries, keys and values have gradients even where weights are frozen.
        (times + (_backward(setup) == 1))
        * flops.attention
        / (gpu.bf16 * ATTENTION if narrow else fp32),
        (1 + _backward(setup)) * flops.head / fp32,
    )


def _moved(config: ModelConfig, setup: Setup, gpu: Accelerator) -> tuple[float, float]:
    """Memory traffic in bytes per token of fused operators, and of norms and elementwise parts.

    What attention moves outside of its products, and quantization to FP8, count as elementwise.
    """
    recomputed = _passes(setup) - 1
    forward, backward = elementwise_bytes(config, setup.dtypes)
    if setup.fp8 and gpu.fp8 is not None:
        rounded = rounding_bytes(config)
        forward, backward = forward + rounded[0], backward + rounded[1]
    if not _backward(setup):
        backward = 0
    elementwise: float = config.depth * (forward * (1 + recomputed) + backward)
    operators = 0.0
    for mixer in config.mixers:
        moved = mixer.moved_bytes(config, setup.dtypes.compute, recomputed)
        if mixer.is_quadratic:
            elementwise += moved
        else:
            operators += moved
    return operators, elementwise


def elementwise_bytes(config: ModelConfig, dtypes: Dtypes) -> tuple[int, int]:
    """Memory traffic per token of norms, residual sums, casts and the MLP's gate of a block.

    With r and c bytes per element of the residual stream and of products: the norms r + c and
    2 (r + c), the second sum 2 r + c, the gate 3 c; in the backward pass their gradients, the sums
    where two gradients meet (3 r and 3 c), the bias (c), and under autocast two casts between r and
    c.

    Returns:
        The bytes of the forward pass, and of the backward pass.
    """
    r, c, is_cast = dtypes.residual, dtypes.compute, dtypes.is_autocast
    forward = (5 * r + 4 * c) * config.width + 3 * c * config.mlp_width
    backward = (8 * r + 6 * c + is_cast * (r + 2 * c)) * config.width + 6 * c * config.mlp_width
    return forward, backward


def rounding_bytes(config: ModelConfig) -> tuple[int, int]:
    """Memory traffic per token of quantization to FP8 in a block: forward, and backward.

    Forward the inputs of the four linear layers, backward the gradients of their outputs: each
    2-byte element is read once for the maximum and once to be rounded, and written by rows and by
    columns.
    """
    inputs = 3 * config.width + config.mlp_width
    gradients = 5 * config.width + 2 * config.mlp_width
    return (2 * BF16 + 2) * inputs, (2 * BF16 + 2) * gradients


def _transfers(config: ModelConfig, counts: Sizes, setup: Setup, gpu: Accelerator) -> float:
    """Seconds of the collectives of a step.

    Fp32 gradients are all-reduced once per step (twice around the ring), under ZeRO 2 at every
    micro-batch. ZeRO 1 and 2 also all-gather weights. ZeRO 3 reduce-scatters gradients (once around
    the ring), and all-gathers weights for every pass of every micro-batch.
    """
    if setup.gpus == 1:
        return 0
    trainable = setup.num_trainable(counts)
    gradients, weights = trainable * FP32, counts.all * setup.dtypes.compute
    buckets = -(-trainable // BUCKET)
    summed = _ring(gradients, buckets, setup, gpu)
    if setup.is_plain:
        return 2 * summed
    if setup.zero < 3:
        times = setup.accumulation if setup.zero == 2 else 1
        return 2 * times * summed + _ring(weights, buckets, setup, gpu)
    gathers = min(PRODUCTS * config.depth, -(-counts.all // PREFETCH))
    passes = _passes(setup) + 1
    return setup.accumulation * (passes * _ring(weights, gathers, setup, gpu) + summed)


def _exchanges(config: ModelConfig, setup: Setup, gpu: Accelerator, tokens: float) -> float:
    """Seconds of the exchanges of context parallelism in a step.

    Hyena blocks send so little that only latency counts.
    """
    count = setup.context
    if count == 1:
        return 0
    numbers = sum(
        mixer.sent_numbers(config, setup.schemes.of(mixer), count) for mixer in config.mixers
    )
    passes = _passes(setup) + 1
    size = numbers * setup.dtypes.compute * tokens * passes
    width = gpu.link if count <= GPUS_PER_NODE else gpu.network
    return size / (width * LINKS) + 2 * config.depth * passes * setup.accumulation * RING_START


def _ring(size: float, collectives: int, setup: Setup, gpu: Accelerator) -> float:
    """Seconds to pass `size` bytes once around the ring of all GPUs, in so many collectives."""
    nodes = -(-setup.gpus // GPUS_PER_NODE)
    width = gpu.link if nodes == 1 else min(gpu.link, gpu.network * GPUS_PER_NODE)
    start = RING_START + (setup.gpus - nodes) * RING_LINK + (nodes - 1) * RING_NETWORK
    return collectives * start + size * (1 - 1 / setup.gpus) / (width * LINKS)
