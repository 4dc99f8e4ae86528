"""Megatron-Bridge and NeMo 2: the torch.distributed checkpoints that BioNeMo writes.

Hyena operators keep Savanna's names below `decoder.layers.{i}`, and the first two matrices of an
MLP are concatenated. Where Transformer Engine fuses a norm with the projection after it, the norm's
weights are stored under the projection.
"""

import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stripedhyena2.checkpoint.layouts.named import Named, computed_frequencies
from stripedhyena2.checkpoint.layouts.savanna import Savanna
from stripedhyena2.checkpoint.tensors import Rule, Table
from stripedhyena2.config import ConfigError, ModelConfig, make_config
from stripedhyena2.values import read_values, shown

_BLOCK = re.compile(r"sequential\.(\d+)\.(.+)")
_FIRST_MATRICES = re.compile(r"(.*mlp\.)w([12])\.weight")


class Bridge(Named):
    """The names of Megatron-Bridge and NeMo 2."""

    name = "bridge"

    def claims(self, names: Collection[str]) -> bool:
        """Whether there are names that start like those of Megatron's modules."""
        return any(name.startswith("decoder.layers.") for name in names)

    def is_unused(self, name: str) -> bool:
        """Whether a tensor is not used by the model."""
        return name.endswith(("_extra_state", ".filter.t", ".inv_freq"))

    def has_any_length(self, name: str) -> bool:
        """As in `Savanna`."""
        return Savanna().has_any_length(name)

    def to_released(self, config: ModelConfig, names: Collection[str], origin: str) -> Table:
        """As in `Named`."""
        del origin  # `translate` checks that all names exist

        def theirs(name: str) -> str:
            candidates = list(_candidates(name, config))
            return next(
                (candidate for candidate in candidates if candidate in names), candidates[0]
            )

        table: dict[str, Rule] = {}
        for ours, rule in _savanna_rules(config):
            if ours.endswith("inv_freq"):
                table[ours] = computed_frequencies(config)
            elif matrix := _FIRST_MATRICES.fullmatch(rule.sources[0]):
                half = _first_half if matrix[2] == "1" else _second_half
                table[ours] = Rule((theirs(rule.sources[0]),), half)
            else:
                table[ours] = Rule(tuple(theirs(part) for part in rule.sources), rule.convert)
        return table

    def from_released(self, config: ModelConfig) -> Table:
        """As in `Named`, with the fused norms of Transformer Engine."""
        table: dict[str, Rule] = {}
        for savanna, rule in Savanna().from_released(config).items():
            if savanna.endswith("inv_freq"):
                continue
            theirs = next(_candidates(savanna, config))
            if theirs in table:
                table[theirs] = Rule(
                    (*table[theirs].sources, *rule.sources), lambda *both: torch.cat(both)
                )
            else:
                table[theirs] = rule
        return table


def _savanna_rules(config: ModelConfig) -> Iterator[tuple[str, Rule]]:
    names = list(Savanna().from_released(config))
    yield from Savanna().to_released(config, names, "").items()


def _candidates(savanna: str, config: ModelConfig) -> Iterator[str]:
    """The names that a tensor of Savanna can have here, the usual one first."""
    if savanna.endswith("word_embeddings.weight"):
        yield "embedding.word_embeddings.weight"
        return
    match = _BLOCK.fullmatch(savanna)
    assert match
    index, rest = int(match[1]) - 2, match[2]
    if rest == "norm.weight":
        yield "decoder.final_norm.weight"
        return
    is_attention = config.stripes[index] == "A"
    projection = "self_attention.linear_qkv" if is_attention else "mixer.dense_projection"
    if is_attention:
        rest = rest.replace("mixer.dense_projection.", "self_attention.linear_qkv.")
        rest = rest.replace("mixer.dense.", "self_attention.linear_proj.")
    rest = _FIRST_MATRICES.sub(r"\1linear_fc1.weight", rest)
    rest = rest.replace("mlp.w3.", "mlp.linear_fc2.")
    layer = f"decoder.layers.{index}."
    if rest == "input_layernorm.weight":
        yield f"{layer}{projection}.layer_norm_weight"
        yield f"{layer}norm.weight"
    if rest == "pre_mlp_layernorm.weight":
        yield f"{layer}mlp.linear_fc1.layer_norm_weight"
    yield layer + rest


def _first_half(rows: Tensor) -> Tensor:
    return rows[: len(rows) // 2]


def _second_half(rows: Tensor) -> Tensor:
    return rows[len(rows) // 2 :]


# Keys of the model in run_config.yaml, and ours.
_KEYS = {
    "hidden_size": "width",
    "num_attention_heads": "num_heads",
    "ffn_hidden_size": "mlp_width",
    "num_groups_hyena_short": "num_short_filter_groups",
    "num_groups_hyena_medium": "num_medium_filter_groups",
    "seq_length": "context",
    "rotary_base": "rotary_base",
}
_LETTERS = {"S": "S", "D": "M", "H": "L", "*": "A"}


def read_run_config(file: Path) -> ModelConfig:
    """The shape in the run configuration that is stored beside the tensors.

    Raises:
        ConfigError: It cannot be read, or a key is missing.
    """
    values = read_values(file, ConfigError)
    model = values.get("model", values.get("config", values))
    if not isinstance(model, dict):
        raise ConfigError(f"{file}: its key 'model' is not a mapping; give a config")
    missing = [key for key in ("hybrid_override_pattern", *_KEYS) if model.get(key) is None]
    if missing:
        raise ConfigError(f"{file}: the key {missing[0]!r} is missing; give a config")
    shape = {ours: model[theirs] for theirs, ours in _KEYS.items()}
    stripes = stripes_of(model["hybrid_override_pattern"], str(file))
    scale = model.get("seq_len_interpolation_factor") or 1
    positions = interpolated(shape["context"], scale, str(file))
    return make_config({**shape, "stripes": stripes, **positions}, str(file))


def stripes_of(pattern: object, origin: str) -> str:
    """The stripes of a `hybrid_override_pattern`.

    Raises:
        ConfigError: It has an unknown letter, or is not text.
    """
    if not isinstance(pattern, str):
        raise ConfigError(f"{origin}: hybrid_override_pattern = {shown(pattern)} is not text")
    if unknown := sorted(set(pattern) - set(_LETTERS)):
        raise ConfigError(
            f"{origin}: hybrid_override_pattern has the letter {unknown[0]!r}; known are "
            f"{', '.join(_LETTERS)}"
        )
    return "".join(_LETTERS[letter] for letter in pattern)


def interpolated(context: object, factor: object, origin: str) -> dict[str, Any]:
    """The keys of a shape whose positions are divided by a factor.

    Raises:
        ConfigError: Context or factor is not a positive number.
    """
    for value in (context, factor):
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise ConfigError(
                f"{origin}: a context of {shown(context)} positions, interpolated by "
                f"{shown(factor)}: both must be positive numbers"
            )
    assert isinstance(context, int | float)
    assert isinstance(factor, int | float)
    base = None if factor == 1 or context % factor else int(context / factor)
    return {"context": context, "rotary_scale": factor, "base_context": base}
