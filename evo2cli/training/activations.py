"""What a forward pass keeps for the backward pass, tensor by tensor, in bytes a token.

The tensors are those that autograd saves of `stripedhyena2.model` and `.operators`, with the fused
operators of a GPU; `tests/evo2cli/training/test_activations.py` counts them on the model itself.

D channels, M inner channels of the MLP, V vocabulary, H heads.
"""

from dataclasses import dataclass

from hyenakernels.launch import modal_segment
from stripedhyena2 import ModelConfig
from stripedhyena2.config import ATTENTION, LONG

FP32 = 4


@dataclass(frozen=True)
class Dtypes:
    """Bytes of a number.

    Attributes:
        compute: In products and operators.
        residual: In the residual stream.
    """

    compute: int
    residual: int

    @property
    def is_autocast(self) -> bool:
        """Whether fp32 weights are cast for their products."""
        return self.residual > self.compute


def block_bytes(config: ModelConfig, index: int, dtypes: Dtypes) -> float:
    """What one block keeps, a token, its input in fp32 included.

    Both norms keep their input and their quotient in fp32 (4 D + 4 D) and two roots. In the compute
    dtype of e bytes: inputs of the projections (D) and of the MLP (D, under autocast twice: each of
    its two products casts its own), the operator's input and output (3 D + D), and the MLP's gate,
    up and product (3 M; in the first block M more for its GELU). Attention adds rotated queries and
    keys (2 D) and the fp32 sums of its softmax; Hyena-LI the fp32 states before its segments.
    """
    width, element = config.width, dtypes.compute
    inputs = 3 if dtypes.is_autocast else 2
    inner = 4 if index == 0 else 3
    kept = 2 * (2 * FP32 * width + 2 * FP32)
    kept += element * ((inputs + 4) * width + inner * config.mlp_width)
    if config.stripes[index] == ATTENTION:
        kept += 2 * element * width + FP32 * config.num_heads
    elif config.stripes[index] == LONG:
        return kept + FP32 * config.num_modes * width / modal_segment(width)
    return kept


def working_bytes(config: ModelConfig, dtypes: Dtypes) -> float:
    """What the backward pass of a block needs at most beside what was kept, a token.

    That is in its MLP: the gradient of the residual stream, and two as wide as the MLP. The fused
    operators need less later, when the MLP's tensors are gone.
    """
    return dtypes.residual * config.width + 2 * dtypes.compute * config.mlp_width


def head_bytes(config: ModelConfig) -> tuple[float, float]:
    """What final norm, head and loss keep in fp32, a token, and what they need beside it.

    Kept: the norm's input, quotient and output (3 D), logits and their log-softmax (2 V).
    """
    kept = FP32 * (3 * config.width + 2 * config.vocabulary)
    needed = max(FP32 * (2 * config.width + config.vocabulary), 2 * FP32 * config.vocabulary)
    return kept, needed


@dataclass(frozen=True)
class Activations:
    """Of one micro-batch, in bytes.

    Attributes:
        at_loss: When the backward pass begins: kept by all blocks (or the inputs of the groups that
            are recomputed) and by the head, and the head's gradients.
        first_group: In the backward pass of the last blocks, which comes first.
        last_group: In the backward pass of the first blocks, which comes last.
    """

    at_loss: float
    first_group: float
    last_group: float

    @property
    def most(self) -> float:
        """At their peak."""
        return max(self.at_loss, self.first_group, self.last_group)


def activations(
    config: ModelConfig, dtypes: Dtypes, *, tokens: int, checkpointing: int
) -> Activations:
    """What a micro-batch keeps, when the input of every `checkpointing` blocks is kept (0: all).

    Args:
        config: The shape.
        dtypes: Of the run.
        tokens: Of the micro-batch.
        checkpointing: Blocks recomputed together.
    """
    blocks = [block_bytes(config, index, dtypes) for index in range(config.depth)]
    working = working_bytes(config, dtypes)
    head_kept, head_needed = head_bytes(config)
    if not checkpointing:
        whole = sum(blocks)
        at_loss = whole + head_kept + head_needed
        return Activations(tokens * at_loss, tokens * (whole + working), tokens * working)
    groups = [
        sum(blocks[first : first + checkpointing])
        for first in range(0, config.depth, checkpointing)
    ]
    one_input = dtypes.residual * config.width
    inputs = one_input * len(groups)
    # In fp32 the first norm keeps the input itself, which is counted already.
    shared = one_input if dtypes.residual == FP32 else 0
    return Activations(
        at_loss=tokens * (inputs + head_kept + head_needed),
        first_group=tokens * (inputs + groups[-1] - shared + working),
        last_group=tokens * (one_input + groups[0] - shared + working),
    )
