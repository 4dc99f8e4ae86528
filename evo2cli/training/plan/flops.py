"""Floating point operations of a model, by formula: one multiply-add is two.

Every count is for one token of a window of L. D channels, M inner channels of the MLP, F featurizer
taps, K taps, S modes, V vocabulary.
"""

from dataclasses import dataclass

from stripedhyena2 import ModelConfig
from stripedhyena2.config import ATTENTION, LONG, MEDIUM, SHORT

BACKWARD = 2  # a product has two gradients, each as large as itself


@dataclass(frozen=True)
class Flops:
    """FLOPs of a forward pass, a token.

    Attributes:
        dense: Projections and MLPs of all blocks.
        operators: What stands between the projections of the Hyena blocks.
        attention: Scores and weighted sums of the attention blocks, causal.
        head: From the residual stream to logits.
    """

    dense: float
    operators: float
    attention: float
    head: float

    @property
    def blocks(self) -> float:
        """Everything but the head: what activation checkpointing computes again."""
        return self.dense + self.operators + self.attention

    @property
    def forward(self) -> float:
        """All of it."""
        return self.blocks + self.head

    @property
    def training(self) -> float:
        """Forward and backward, without what is only computed again."""
        return (1 + BACKWARD) * self.forward


def flops_per_token(config: ModelConfig, length: int) -> Flops:
    """FLOPs of a forward pass, a token of a window of `length`.

    dense      2 (4 D^2 + 3 D M) a block
    operators  a Hyena block: featurizer 2 F 3D; two gates 2 D; and inside
               SE  2 K D
               MR  2 K D + 2 D for the skip
               LI  4 S D (each mode decays and adds, is weighted and summed) + 2 D for the skip
    attention  2 L D a block: scores and weighted sums are 2 D each for every position seen, and
               a token sees half of the window on average
    head       2 V D

    Norms, activations, rotary positions, residual sums, embedding and loss are not counted.
    """
    width = config.width
    dense = 2 * (4 * width**2 + 3 * width * config.mlp_width) * config.depth
    operators = sum(_operator(config, kind) for kind in config.stripes if kind != ATTENTION)
    attention = 2 * length * width * config.stripes.count(ATTENTION)
    return Flops(dense, operators, attention, head=2 * config.vocabulary * width)


def _operator(config: ModelConfig, kind: str) -> int:
    multiply_adds = {
        SHORT: config.num_short_taps,
        MEDIUM: config.num_medium_taps + 1,
        LONG: 2 * config.num_modes + 1,
    }
    gates = 2
    return config.width * (2 * (3 * config.num_featurizer_taps + multiply_adds[kind]) + gates)


def training_flops_per_token(config: ModelConfig, length: int) -> float:
    """Model FLOPs of training, a token: 3 times `flops_per_token`, never with recomputation.

    Model FLOPs utilization is this times tokens a second, over the peak of the GPUs.
    """
    return flops_per_token(config, length).training


def recomputed_flops_per_token(config: ModelConfig, length: int) -> float:
    """What activation checkpointing adds to training, a token: the blocks forward once more."""
    return flops_per_token(config, length).blocks


def paper_flops_per_token(config: ModelConfig, length: int) -> float:
    """Training FLOPs a token as the StripedHyena 2 paper counts: 6 N_dense + 10 n_attn L D.

    N_dense are the weights of projections and MLPs, n_attn the attention blocks, which are counted
    with more than the causal half; operators and head are not counted.

    Source: recovered from Figures 2.2 and B.3 of arXiv:2503.01868, whose bars it fits.
    """
    dense = flops_per_token(config, length).dense
    return 3 * dense + 10 * config.stripes.count(ATTENTION) * length * config.width
