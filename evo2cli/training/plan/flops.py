"""FLOPs of a model, by formula; a multiply-add counts as two.

Every count is for one token of a window of L positions. D channels, M inner channels of the MLP,
V vocabulary.
"""

from dataclasses import dataclass

from stripedhyena2 import ModelConfig

BACKWARD = 2  # a matrix product has two gradients, each as many FLOPs as itself


@dataclass(frozen=True)
class Flops:
    """FLOPs of a forward pass, per token.

    Attributes:
        dense: Projections and MLPs of all blocks.
        operators: Hyena operators, without their projections.
        attention: Causal scores and weighted sums of the attention blocks, and anything else that
            grows with the length.
        head: From the residual stream to logits.
    """

    dense: float
    operators: float
    attention: float
    head: float

    @property
    def blocks(self) -> float:
        """Everything but the head, which is what activation checkpointing recomputes."""
        return self.dense + self.operators + self.attention

    @property
    def forward(self) -> float:
        """A whole forward pass."""
        return self.blocks + self.head

    @property
    def training(self) -> float:
        """Forward and backward, without recomputation.

        Model FLOPs utilization (MFU) is this times tokens per second, over the peak of the GPU.
        """
        return (1 + BACKWARD) * self.forward


def flops_per_token(config: ModelConfig, length: int) -> Flops:
    """FLOPs of a forward pass, per token of a window of `length`.

    dense      2 (4 D^2 + 3 D M) per block
    operators  `Mixer.flops` of each block; likewise for attention
    head       2 V D

    Norms, activations, rotary positions, residual sums, embedding and loss are not counted.
    """
    width = config.width
    dense = 2 * (4 * width**2 + 3 * width * config.mlp_width) * config.depth
    quadratic = [mixer for mixer in config.mixers if mixer.is_quadratic]
    others = [mixer for mixer in config.mixers if not mixer.is_quadratic]
    return Flops(
        dense,
        operators=sum(mixer.flops(config, length) for mixer in others),
        attention=sum(mixer.flops(config, length) for mixer in quadratic),
        head=2 * config.vocabulary * width,
    )


def paper_flops_per_token(config: ModelConfig, length: int) -> float:
    """Training FLOPs per token as the StripedHyena 2 paper counts them: 6 N_dense + 10 n_attn L D.

    N_dense is the number of weights of projections and MLPs, n_attn that of attention blocks, each
    of which counts for more than the causal half (2 L D); operators and head are not counted.

    Source: recovered from Figures 2.2 and B.3 of arXiv:2503.01868, whose bars it fits.
    """
    flops = flops_per_token(config, length)
    return 3 * flops.dense + 5 * flops.attention
