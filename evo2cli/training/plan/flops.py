"""Floating point operations of a model, by formula: one multiply-add is two.

Every count is for one token of a window of L positions. D channels, M inner channels of the MLP,
V vocabulary.
"""

from dataclasses import dataclass

from stripedhyena2 import ModelConfig

BACKWARD = 2  # a product has two gradients, each as large as itself


@dataclass(frozen=True)
class Flops:
    """FLOPs of a forward pass, a token.

    Attributes:
        dense: Projections and MLPs of all blocks.
        operators: What stands between the projections of the Hyena blocks.
        attention: Scores and weighted sums of the attention blocks, causal, and whatever else
            grows with the length.
        head: From the residual stream to logits.
    """

    dense: float
    operators: float
    attention: float
    head: float

    @property
    def blocks(self) -> float:
        """Everything but the head: what activation checkpointing computes once more."""
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
    """FLOPs of a forward pass, a token of a window of `length`.

    dense      2 (4 D^2 + 3 D M) a block
    operators  as `Mixer.flops` of each block says; so for attention
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
    """Training FLOPs per token as the StripedHyena 2 paper counts: 6 N_dense + 10 n_attn L D.

    N_dense are the weights of projections and MLPs, n_attn the attention blocks, which are counted
    with more than the causal half (2 L D); operators and head are not counted.

    Source: recovered from Figures 2.2 and B.3 of arXiv:2503.01868, whose bars it fits.
    """
    flops = flops_per_token(config, length)
    return 3 * flops.dense + 5 * flops.attention
