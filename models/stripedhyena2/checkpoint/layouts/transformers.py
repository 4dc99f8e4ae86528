"""The names of tensors in a pull request that adds Evo 2 to transformers (42210).

Queries, keys and values are three matrices, each with its rows ordered by head; in our layout and
in the released one they are a single matrix.

D channels.
"""

from collections.abc import Callable, Collection

import torch
from torch import Tensor

from stripedhyena2.checkpoint.layouts import vortex
from stripedhyena2.checkpoint.layouts.named import Named, computed_frequencies
from stripedhyena2.checkpoint.tensors import Rule, Table
from stripedhyena2.config import ModelConfig
from stripedhyena2.layout import by_owner, by_part

_RENAMED = (
    ("embedding_layer.", "model.embed_tokens."),
    ("norm.scale", "model.norm.weight"),
    ("pre_norm.scale", "input_layernorm.weight"),
    ("post_norm.scale", "post_attention_layernorm.weight"),
    ("mlp.l1.", "mlp.gate_proj."),
    ("mlp.l2.", "mlp.up_proj."),
    ("mlp.l3.", "mlp.down_proj."),
    ("inner_mha_cls.out_proj.", "attention.o_proj."),
    ("projections.", "filter.projections."),
    ("out_filter_dense.", "filter.out_filter_dense."),
)


class Transformers(Named):
    """The names of the pull request."""

    name = "hf"

    def claims(self, names: Collection[str]) -> bool:
        """Whether there are names that start like those of its modules."""
        return any(name.startswith("model.layers.") for name in names)

    def is_unused(self, name: str) -> bool:
        """Whether a tensor is not used by the model; the head is tied to the embedding."""
        return name == "lm_head.weight" or name.endswith((".filter.t", ".inv_freq"))

    def to_released(self, config: ModelConfig, names: Collection[str], origin: str) -> Table:
        """As in `Named`."""
        del names, origin
        table: dict[str, Rule] = {}
        for ours in vortex.expected(config):
            if ours.endswith("inv_freq"):
                table[ours] = computed_frequencies(config)
            elif ours.endswith("Wqkv.weight"):
                table[ours] = Rule(_projections(ours), lambda *qkv: _fused_qkv(qkv, config))
            else:
                table[ours] = Rule((_renamed(ours),))
        return table

    def from_released(self, config: ModelConfig) -> Table:
        """As in `Named`."""
        table: dict[str, Rule] = {}
        for ours, rule in self.to_released(config, (), "").items():
            for part, name in enumerate(rule.sources):
                by = _split_qkv(part, config) if len(rule.sources) == 3 else rule.convert
                table[name] = Rule((ours,), by)
        return table


def _renamed(released: str) -> str:
    """The name of a tensor that is stored in the same form."""
    block, rest = "", released
    if released.startswith("blocks."):
        _, number, rest = released.split(".", 2)
        block = f"model.layers.{number}.block."
    for ours, theirs in _RENAMED:
        if rest.startswith(ours):
            return block + theirs + rest.removeprefix(ours)
    return block + rest


def _projections(released: str) -> tuple[str, ...]:
    index = released.split(".")[1]
    return tuple(f"model.layers.{index}.block.attention.{part}_proj.weight" for part in "qkv")


def _fused_qkv(qkv: tuple[Tensor, ...], config: ModelConfig) -> Tensor:
    return by_owner(torch.cat(qkv), config.num_heads)


def _split_qkv(part: int, config: ModelConfig) -> Callable[[Tensor], Tensor]:
    return lambda rows: by_part(rows, config.num_heads).chunk(3)[part]
