"""The shape of a model as a transformers config."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import PreTrainedConfig

from stripedhyena2 import ModelConfig
from stripedhyena2.checkpoint import named_shape
from stripedhyena2.checkpoint.layouts.hf import (
    EOS,
    MODEL_TYPE,
    OTHER_KEYS,
    WRONG_EOS,
    hf_config,
    is_shape,
    read_hf_config,
    write_beside,
)
from stripedhyena2.checkpoint.published import published_config

_ADJUSTABLE = ("architectures", "bos_token_id", "eos_token_id", "pad_token_id")


class Evo2Config(PreTrainedConfig):
    """The config of an Evo 2 model: the keys of the released yml, and transformers' names of them.

    Args:
        values: The keys of a config.json, in any dialect that `read_hf_config` knows; what is not
            given is that of evo2_7b. Other keys, such as `num_labels`, are transformers'.
    """

    model_type = MODEL_TYPE
    keys_to_ignore_at_inference = ["cache", "past_key_values"]  # noqa: RUF012 - as in transformers

    def __init__(self, **values: Any) -> None:
        if not is_shape(values):
            values = {**_canonical(published_config("evo2_7b")), **values}
        canonical = _canonical(read_hf_config(values, "config"))
        canonical |= {key: values[key] for key in _ADJUSTABLE if key in values}
        if canonical["eos_token_id"] == WRONG_EOS:
            canonical["eos_token_id"] = EOS
        others = {key: value for key, value in values.items() if key not in OTHER_KEYS}
        super().__init__(**{**others, **canonical})

    @classmethod
    def from_shape(cls, shape: ModelConfig, **values: Any) -> "Evo2Config":
        """The config of a model of this shape, with other values of transformers.

        Raises:
            ConfigError: The released layout cannot express the shape.
        """
        return cls(**{**_canonical(shape), **values})

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: str | Path, **values: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """As for other configs, also for the names of models; `from_pretrained` calls it."""
        with described(pretrained_model_name_or_path) as source:
            found: tuple[dict[str, Any], dict[str, Any]] = super().get_config_dict(source, **values)
        return found

    @property
    def shape(self) -> ModelConfig:
        """The shape as the model takes it.

        Raises:
            ConfigError: A value is not possible.
        """
        return read_hf_config(vars(self), "config")


@contextmanager
def described(name: str | Path) -> Iterator[str | Path]:
    """Where transformers finds config and tokenizer: the path or repository itself.

    For a name that `stripedhyena2.load` knows it is a folder that is written here, so that the hub
    is not asked.
    """
    shape = named_shape(name)
    if shape is None:
        yield name
        return
    with TemporaryDirectory() as folder:
        Evo2Config.from_shape(shape).save_pretrained(folder)
        write_beside(Path(folder), shape, {})
        yield folder


def _canonical(shape: ModelConfig) -> dict[str, Any]:
    values = hf_config(shape, torch.float32)
    del values["torch_dtype"], values["model_type"]  # of the weights; of the class
    return values
