"""config.json of Evo 2 in three dialects, and the files beside the weights."""

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from stripedhyena2 import ConfigError, ModelConfig
from stripedhyena2.checkpoint.layouts.hf import (
    CARD,
    GENERATION,
    TOKENIZER,
    TOKENIZER_CONFIG,
    hf_config,
    is_shape,
    read_hf_config,
    write_beside,
)
from stripedhyena2.checkpoint.published import PUBLISHED, published_config
from tests.hostile import refusal

# As the exporters of other projects write them, for the shape of evo2_7b; written down by hand.
PATTERN: dict[str, Any] = {
    "model_type": "evo2",
    "architectures": ["Evo2ForCausalLM"],
    "hybrid_override_pattern": "SDH*SDHSDH*SDHSDH*SDHSDH*SDHSDH*",
    "layers_block_type": ["mamba", "mamba", "mamba", "attention"],
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "intermediate_size": 11264,
    "num_groups_hyena": 4096,
    "num_groups_hyena_medium": 256,
    "num_groups_hyena_short": 256,
    "hcs_filter_length": 7,
    "hcm_filter_length": 128,
    "hcl_state_size": 16,
    "short_conv_length": 3,
    "rms_norm_eps": 1e-6,
    "rotary_base": 10000,
    "rope_theta": 10000,
    "seq_len_interpolation_factor": 128,
    "max_position_embeddings": 1048576,
    "tie_word_embeddings": True,
    "remove_activation_post_first_layer": True,
    "vocab_size": 512,
    "eos_token_id": 0,
    "pad_token_id": 1,
}
LAYER_TYPES: dict[str, Any] = {
    "model_type": "evo2",
    "layer_types": [
        "attention" if index in (3, 10, 17, 24, 31) else "hyena" for index in range(32)
    ],
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "intermediate_size": 11264,
    "hyena_filters": 256,
    "hyena_order": 4,
    "hyena_kernel_size": 3,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000,
    "rope_scaling": {"rope_type": "linear", "factor": 128},
    "max_position_embeddings": 1048576,
    "vocab_size": 512,
    "tie_word_embeddings": True,
}


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_a_shape_is_written_and_read(name: str) -> None:
    config = published_config(name)
    values = json.loads(json.dumps(hf_config(config, torch.bfloat16)))
    assert read_hf_config(values, "x") == config
    assert values["num_hidden_layers"] == config.depth
    assert values["torch_dtype"] == "bfloat16"
    assert (values["eos_token_id"], values["pad_token_id"]) == (0, 1)


def test_the_released_yml_is_a_config(shared: Path) -> None:
    manifest = json.loads((shared / "manifests" / "evo2_7b.json").read_text())
    values = {"model_type": "evo2", **manifest["config"]}
    assert read_hf_config(values, "x") == published_config("evo2_7b")


@pytest.mark.parametrize("values", [PATTERN, LAYER_TYPES], ids=["pattern", "layer-types"])
def test_other_dialects_mean_the_same_shape(values: dict[str, Any], caplog: Any) -> None:
    assert is_shape(values)
    assert read_hf_config(values, "x") == published_config("evo2_7b")
    assert not caplog.records


def without(values: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name != key}


@pytest.mark.parametrize(
    ("values", "key"),
    [
        (PATTERN, "num_groups_hyena_short"),
        (PATTERN, "intermediate_size"),
        (without(PATTERN, "rope_theta"), "rotary_base"),
        (LAYER_TYPES, "hyena_filters"),
        (LAYER_TYPES, "max_position_embeddings"),
        (hf_config(published_config("evo2_7b"), torch.float32), "hcs_layer_idxs"),
    ],
)
def test_a_missing_key_is_named(values: dict[str, Any], key: str) -> None:
    named = "rope_theta" if key == "rotary_base" else key
    with pytest.raises(ConfigError, match=f"^here: the key '{named}' is missing"):
        read_hf_config(without(values, key), "here")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model_type": "llama"}, "model_type = 'llama' is not an Evo 2 model"),
        (
            {"model_type": "evo2"},
            "has none of hybrid_override_pattern, hcl_layer_idxs, layer_types",
        ),
        ({**PATTERN, "hybrid_override_pattern": "SDX"}, "has the letter 'X'; known are S, D, H"),
        ({**PATTERN, "tie_word_embeddings": False}, "tie_word_embeddings = False is not supported"),
        ({**LAYER_TYPES, "layer_types": ["mamba"]}, r"layer_types\[0\] = 'mamba'"),
        ({**LAYER_TYPES, "hidden_size": 4095}, "num_heads = 32 does not divide width = 4095"),
    ],
)
def test_another_model_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_hf_config(values, "here")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({**PATTERN, "eos_token_id": 2}, "eos_token_id = 2 is the mistake of an early converter"),
        (without(LAYER_TYPES, "rope_scaling"), "1,048,576 without a factor of interpolation"),
    ],
)
def test_traces_of_wrong_conversions_are_said(
    values: dict[str, Any], message: str, caplog: Any
) -> None:
    with caplog.at_level(logging.WARNING):
        read_hf_config(values, "here")
    assert message in caplog.text


def test_a_tokenizer_stands_beside_that_knows_bytes_alone(
    tiny_config: ModelConfig, tmp_path: Path
) -> None:
    from tokenizers import Tokenizer

    config = replace(tiny_config, context=4096)
    write_beside(tmp_path, config, {"license": "Apache-2.0"})
    tokenizer = Tokenizer.from_file(str(tmp_path / TOKENIZER))
    tokenizer.encode_special_tokens = True
    assert tokenizer.get_vocab_size() == config.vocabulary
    text = "".join(map(chr, range(128))) + "|D__BACTERIA;P__X|<300> Āā é"
    ids = tokenizer.encode(text).ids
    assert ids == list(text.encode())
    assert tokenizer.decode(ids, skip_special_tokens=False) == text
    settings = json.loads((tmp_path / TOKENIZER_CONFIG).read_text())
    assert tokenizer.token_to_id(settings["eos_token"]) == 0
    assert tokenizer.token_to_id(settings["pad_token"]) == 1
    assert settings["model_max_length"] == 4096
    generation = json.loads((tmp_path / GENERATION).read_text())
    assert generation == {"eos_token_id": 0, "pad_token_id": 1}


def test_the_card_says_where_weights_come_from(tiny_config: ModelConfig, tmp_path: Path) -> None:
    provenance = {
        "trained_by": "evo2cli 0.3.0",
        "before": {
            "license": "Apache-2.0", "source": "evo2_7b.pt", "commit": "bda0089", "sha256": "c666"
        },
    }  # fmt: skip
    write_beside(tmp_path, tiny_config, provenance)
    card = (tmp_path / CARD).read_text()
    assert "\nlicense: apache-2.0\n" in card.split("---")[1]
    for fact in ("evo2_7b.pt", "bda0089", "c666"):
        assert f"`{fact}`" in card
    (tmp_path / CARD).write_text("mine")
    write_beside(tmp_path, tiny_config, {})
    assert (tmp_path / CARD).read_text() == "mine"


@pytest.mark.parametrize("value", [5, "x", [], {}, None, True, [None]], ids=repr)
@pytest.mark.parametrize("dialect", ["released", "pattern", "layer types"])
def test_a_value_of_any_type_is_read_or_one_line(dialect: str, value: object) -> None:
    values = {
        "released": hf_config(published_config("evo2_7b"), torch.float32),
        "pattern": PATTERN,
        "layer types": LAYER_TYPES,
    }[dialect]
    for key in values:
        changed = {**values, key: value}
        line = refusal(lambda changed=changed: read_hf_config(changed, "config.json"), ConfigError)
        assert not line or line.startswith("config.json: ")
