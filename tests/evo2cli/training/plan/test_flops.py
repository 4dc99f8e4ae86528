"""FLOPs are counted by formula, and the formula counts what the model does."""

from dataclasses import replace

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from evo2cli.training.plan.flops import (
    flops_per_token,
    paper_flops_per_token,
)
from stripedhyena2 import ModelConfig, StripedHyena2
from stripedhyena2.checkpoint.published import published_config

BATCH, LENGTH = 2, 64


def counted(config: ModelConfig, *, backward: bool) -> dict[str, int]:
    """FLOPs by operation, as torch counts them while the model runs."""
    model = StripedHyena2.from_seed(config, seed=0)
    ids = torch.zeros(BATCH, LENGTH, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        logits = model(ids)
        if backward:
            logits.sum().backward()
    counts = counter.get_flop_counts()["Global"]
    return {str(operation).removeprefix("aten."): flops for operation, flops in counts.items()}


def products(counts: dict[str, int]) -> int:
    return counts["mm"] + counts.get("addmm", 0)


def test_dense_and_head_are_the_matrix_products_of_the_model(tiny_config: ModelConfig) -> None:
    flops = flops_per_token(tiny_config, LENGTH)
    tokens = BATCH * LENGTH
    assert products(counted(tiny_config, backward=False)) == tokens * (flops.dense + flops.head)
    both = products(counted(tiny_config, backward=True))
    assert both == 3 * tokens * (flops.dense + flops.head)


def test_attention_is_half_of_the_square_that_torch_counts(tiny_config: ModelConfig) -> None:
    config = replace(tiny_config, stripes="AA")
    with sdpa_kernel(SDPBackend.MATH):
        square = counted(config, backward=False)["bmm"]
    assert square == 2 * BATCH * LENGTH * flops_per_token(config, LENGTH).attention


def test_operators_by_hand(tiny_config: ModelConfig) -> None:
    """D = 24: three featurizers of 3 taps, two gates; 7 taps, or 128 and a skip, or 5 modes.

    A mode takes a decay, a sum of the input, a weight and a sum: 4 FLOPs.
    """
    gates_and_featurizers = 24 * (2 * 3 * 3 + 2)
    short = gates_and_featurizers + 24 * 2 * 7
    medium = gates_and_featurizers + 24 * (2 * 128 + 2)
    long = gates_and_featurizers + 24 * (4 * 5 + 2)
    config = replace(tiny_config, stripes="SMLASML")
    assert flops_per_token(config, LENGTH).operators == 2 * (short + medium + long)


def test_only_attention_grows_with_the_length(tiny_config: ModelConfig) -> None:
    short, long = flops_per_token(tiny_config, 100), flops_per_token(tiny_config, 300)
    assert long.attention == 3 * short.attention
    assert (long.dense, long.operators, long.head) == (short.dense, short.operators, short.head)


def test_training_is_three_forward_passes_and_recomputing_stands_apart(
    tiny_config: ModelConfig,
) -> None:
    flops = flops_per_token(tiny_config, LENGTH)
    assert flops.training == 3 * flops.forward
    assert flops.blocks == flops.forward - flops.head


def test_the_papers_formula_gives_the_papers_rates() -> None:
    """7B and 40B at 16,384 positions: 307 and 345 TFLOP/s a GPU (Figures 2.2 and B.3)."""
    for name, tokens_per_second, teraflops in (
        ("evo2_7b_base", 7282, 307),
        ("evo2_40b_base", 1365, 345),
    ):
        flops = paper_flops_per_token(published_config(name), 16_384)
        assert abs(tokens_per_second * flops / 1e12 / teraflops - 1) < 0.01
