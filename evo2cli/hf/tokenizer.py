"""Bytes as token ids."""

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from evo2cli.hf.config import described
from stripedhyena2.checkpoint.layouts.hf import tokenizer, tokenizer_config


class Evo2Tokenizer(PreTrainedTokenizerFast):
    """Every byte is the token of that id: A is 65. Nothing is added, upper-cased or replaced.

    Token 0 ends a document, token 1 is padding. Ids from 256 on stand for no byte.

    Args:
        values: As for other tokenizers of transformers; padding stands on the left by default.
    """

    def __init__(self, **values: Any) -> None:
        for name in ("tokenizer_file", "tokenizer_object", "vocab", "merges"):
            values.pop(name, None)  # all vocabularies are the same
        settings = {key: value for key, value in tokenizer_config().items() if key not in _OF_FILE}
        bytes_tokenizer = Tokenizer.from_str(json.dumps(tokenizer()))
        super().__init__(tokenizer_object=bytes_tokenizer, **{**settings, **values})

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path, *inputs: Any, **values: Any
    ) -> Any:
        """As for other tokenizers, also for the names of models."""
        with described(pretrained_model_name_or_path) as source:
            tokenizer = super().from_pretrained(source, *inputs, **values)
        tokenizer.name_or_path = str(pretrained_model_name_or_path)
        return tokenizer


_OF_FILE = ("tokenizer_class",)
