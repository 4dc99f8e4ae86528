"""Activation memory: bytes per token that a forward pass saves for the backward pass.

The tensors are those that autograd saves in `stripedhyena2.model`, with the fused operators of a
GPU; tests/evo2cli/training/plan/test_activations.py counts them on the model.

D channels, M inner channels of the MLP, V vocabulary.
"""

from dataclasses import dataclass

from evo2cli.training.plan.calibration import SHARED
from stripedhyena2 import ModelConfig

FP32 = 4


@dataclass(frozen=True)
class Dtypes:
    """Element sizes of a run's activations.

    Attributes:
        compute: Bytes per element in matrix products and operators.
        residual: Bytes per element of the residual stream.
    """

    compute: int
    residual: int

    @property
    def is_autocast(self) -> bool:
        """Whether weights are cast to a narrower dtype for their products."""
        return self.residual > self.compute


def block_bytes(config: ModelConfig, index: int, dtypes: Dtypes) -> float:
    """Bytes per token that one block saves, including its input but not its MLP.

    Both norms save their input (D in the dtype of the residual stream) and an fp32 root. In the
    compute dtype: the outputs of both norms (2 D), and what the mixer saves (`Mixer.saved_bytes`).
    """
    width, element = config.width, dtypes.compute
    kept = 2 * (dtypes.residual * width + FP32) + 2 * element * width
    return kept + config.mixers[index].saved_bytes(config, element)


def mlp_bytes(config: ModelConfig, index: int, dtypes: Dtypes) -> float:
    """Bytes that the MLP of a block saves, per token that it computes at once.

    In the compute dtype: its gate, up and product (3 M; in the first block M more for its GELU).
    """
    return dtypes.compute * (4 if index == 0 else 3) * config.mlp_width


def working_bytes(config: ModelConfig, dtypes: Dtypes) -> float:
    """Temporary bytes per token at the peak of a block's backward pass, on top of what was saved.

    The peak is in its MLP: the gradient of the residual stream, and two tensors as wide as the MLP.
    The fused operators need less later, when the MLP's tensors are freed.
    """
    return dtypes.residual * config.width + 2 * dtypes.compute * config.mlp_width


def chunked_working_bytes(config: ModelConfig, dtypes: Dtypes, share: float) -> float:
    """As `working_bytes`, for an MLP that computes in chunks; includes what a chunk saves.

    The gradient of the residual stream (under autocast also in the compute dtype), and the larger
    of two peaks: in the last chunk, what it saves and needs (5 M), the gradient of its output (D),
    and the gradients of the inputs of the other chunks (D); or at the end, the gradients of all
    inputs, and their concatenation (2 D).

    Args:
        config: Shape of the model.
        dtypes: Element sizes.
        share: Fraction of the tokens in one chunk.
    """
    width, element = config.width, dtypes.compute
    wide = mlp_bytes(config, 1, dtypes) + 2 * element * config.mlp_width
    in_chunk = share * (wide + element * width) + (1 - share) * element * width
    gradient = (dtypes.residual + (element if dtypes.is_autocast else 0)) * width
    return gradient + max(in_chunk, 2 * element * width)


def head_bytes(config: ModelConfig) -> tuple[float, float]:
    """Bytes per token that final norm, head and loss save, and temporary bytes on top, all fp32.

    Saved: the norm's input and output (2 D) and the logits' log-softmax (V). Temporary: gradients
    of log-softmax and logits (2 V); later, when the norm's output is freed, those of the norm
    (2 D).
    """
    kept = FP32 * (2 * config.width + config.vocabulary)
    needed = FP32 * max(2 * config.vocabulary, config.width)
    return kept, needed


@dataclass(frozen=True)
class Activations:
    """Bytes of activations of one micro-batch at three points of the backward pass.

    Attributes:
        at_loss: At its start: what all blocks (or the inputs of the checkpointed segments) and the
            head save, and the head's gradients.
        in_blocks: At the peak within the blocks.
        at_end: At its end, in the first blocks.
        group_blocks: Number of blocks whose activations exist at the same time.
    """

    at_loss: float
    in_blocks: float
    at_end: float
    group_blocks: int


def activations(
    config: ModelConfig,
    dtypes: Dtypes,
    *,
    tokens: int,
    checkpointing: int,
    mlp_tokens: int | None = None,
    shared: bool = False,
) -> Activations:
    """Activation memory of a micro-batch.

    Args:
        config: Shape of the model.
        dtypes: Element sizes.
        tokens: Tokens of the micro-batch.
        checkpointing: Blocks per checkpointed segment; 0 without activation checkpointing.
        mlp_tokens: Tokens per chunk of an MLP that computes, and recomputes, in chunks; None for
            all at once.
        shared: Whether windows are shared with other GPUs (context parallelism).
    """
    blocks = [block_bytes(config, index, dtypes) for index in range(config.depth)]
    if mlp_tokens is None or mlp_tokens >= tokens:
        blocks = [kept + mlp_bytes(config, i, dtypes) for i, kept in enumerate(blocks)]
        working = working_bytes(config, dtypes)
    else:
        working = chunked_working_bytes(config, dtypes, mlp_tokens / tokens)
    if shared:
        working += SHARED * dtypes.compute * config.width
    head_kept, head_needed = head_bytes(config)
    one_input = dtypes.residual * config.width
    if not checkpointing:
        at_loss = sum(blocks) + head_kept + head_needed
        in_blocks, at_end = sum(blocks) + working, blocks[0] + working
    else:
        groups = [
            sum(blocks[first : first + checkpointing])
            for first in range(0, config.depth, checkpointing)
        ]
        at_loss = one_input * len(groups) + head_kept + head_needed
        # The saved input of a segment is also that of its first norm, so it counts once.
        alive = [one_input * index + group + working for index, group in enumerate(groups)]
        in_blocks, at_end = max(alive), alive[0]
    together = min(checkpointing or config.depth, config.depth)
    return Activations(tokens * at_loss, tokens * in_blocks, tokens * at_end, together)
