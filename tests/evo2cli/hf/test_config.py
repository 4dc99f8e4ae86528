"""The config and the tokenizer of transformers are those of any other folder of Evo 2."""

import json
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from transformers import AutoConfig, AutoTokenizer

from evo2cli.hf import Evo2Config, Evo2ForCausalLM, Evo2Tokenizer
from stripedhyena2 import ConfigError, ModelConfig
from stripedhyena2.checkpoint import named_shape
from stripedhyena2.checkpoint.published import published_config
from tests.stripedhyena2.test_hf_layout import LAYER_TYPES, PATTERN


def test_a_config_is_evo2_7b_unless_told_otherwise(tiny_config: ModelConfig) -> None:
    assert Evo2Config().shape == published_config("evo2_7b")
    wide = Evo2Config(hidden_size=8192, num_labels=3)
    assert wide.shape == replace(published_config("evo2_7b"), width=8192)
    assert wide.num_labels == 3
    assert Evo2Config.from_shape(tiny_config).shape == tiny_config
    with pytest.raises(ConfigError, match="num_heads = 32 does not divide width = 100"):
        Evo2Config(hidden_size=100)


@pytest.mark.parametrize("values", [PATTERN, LAYER_TYPES], ids=["pattern", "layer-types"])
def test_every_dialect_is_saved_in_one(values: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**values, "id2label": {"0": "x"}}))
    config = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(config, Evo2Config)
    assert config.shape == published_config("evo2_7b")
    config.save_pretrained(tmp_path / "again")
    again = AutoConfig.from_pretrained(tmp_path / "again")
    assert again.shape == config.shape
    assert again.num_labels == 1
    assert not {"layer_types", "hybrid_override_pattern"} & vars(again).keys()


@pytest.mark.parametrize("name", ["nano", "evo2_7b"])
def test_names_of_models_need_no_network(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub may have a repository of the same name, and a cluster may have no network."""
    asked: list[object] = []

    def refuse(_: socket.socket, address: object) -> None:
        asked.append(address)
        raise ConnectionRefusedError

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    shape = named_shape(name)
    assert shape is not None
    config = Evo2Config.from_pretrained(name, num_labels=3)
    assert (config.shape, config.num_labels) == (shape, 3)
    tokenizer = Evo2Tokenizer.from_pretrained(name, padding_side="right")
    assert tokenizer("ACGT")["input_ids"] == list(b"ACGT")
    assert (tokenizer.model_max_length, tokenizer.padding_side) == (shape.context, "right")
    assert tokenizer.name_or_path == name
    if name == "nano":
        assert Evo2ForCausalLM.from_pretrained(name).config.shape == shape
    assert not asked


def test_the_wrong_end_of_documents_is_corrected() -> None:
    assert Evo2Config(**{**PATTERN, "eos_token_id": 2}).eos_token_id == 0
    assert Evo2Config(**{**PATTERN, "eos_token_id": 10}).eos_token_id == 10


def test_a_tokenizer_is_bytes(tokenizer: Evo2Tokenizer, tmp_path: Path) -> None:
    text = "ACGTNacgtn|D__BACTERIA;P__X|<300> Āā é\x00\x01"
    tokenizer.save_pretrained(tmp_path)
    for one in (tokenizer, AutoTokenizer.from_pretrained(tmp_path)):
        assert one(text)["input_ids"] == list(text.encode())
        assert one.decode(list(text.encode())) == text
        assert (len(one), one.eos_token_id, one.pad_token_id) == (512, 0, 1)
        assert one.padding_side == "left"
