"""The transformers config of Evo 2."""

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
    """Configuration of an Evo 2 model: the keys of the released yml, also by transformers' names.

    Args:
        values: The keys of a config.json, in any dialect that `read_hf_config` knows. Without a
            list of blocks among them, missing keys are those of evo2_7b. Other keys, such as
            `num_labels`, are passed on to transformers.
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
        """The config of a model of this shape, with further config values such as `num_labels`.

        Raises:
            ConfigError: The released layout cannot express the shape.
        """
        return cls(**{**_canonical(shape), **values})

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: str | Path, **values: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """As in transformers, and also by the name of a model; called by `from_pretrained`."""
        with config_source(pretrained_model_name_or_path) as source:
            config: tuple[dict[str, Any], dict[str, Any]] = super().get_config_dict(
                source, **values
            )
        return config

    @property
    def shape(self) -> ModelConfig:
        """The shape of the model.

        Raises:
            ConfigError: A value is not valid.
        """
        return read_hf_config(vars(self), "config")


@contextmanager
def config_source(name: str | Path) -> Iterator[str | Path]:
    """Yield the path or repository from which transformers can load config and tokenizer.

    For a model name known to `stripedhyena2.load`, it is a temporary folder written here, so that
    nothing is requested from the Hub.
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
    del values["torch_dtype"], values["model_type"]  # properties of the weights and of the class
    return values
