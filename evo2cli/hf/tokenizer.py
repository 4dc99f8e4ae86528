"""The byte-level tokenizer of Evo 2."""

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from evo2cli.hf.config import config_source
from stripedhyena2.checkpoint.layouts.hf import tokenizer, tokenizer_config


class Evo2Tokenizer(PreTrainedTokenizerFast):
    """Token ids are byte values (A is 65); no special tokens are added and case is kept.

    Token 0 is the end of a document, token 1 padding. Ids from 256 on are unused.

    Args:
        values: As for other transformers tokenizers; pads on the left by default.
    """

    def __init__(self, **values: Any) -> None:
        for name in ("tokenizer_file", "tokenizer_object", "vocab", "merges"):
            values.pop(name, None)  # there is only one vocabulary
        settings = {key: value for key, value in tokenizer_config().items() if key not in _OF_FILE}
        bytes_tokenizer = Tokenizer.from_str(json.dumps(tokenizer()))
        super().__init__(tokenizer_object=bytes_tokenizer, **{**settings, **values})

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path, *inputs: Any, **values: Any
    ) -> Any:
        """As in transformers, and also by the name of a model."""
        with config_source(pretrained_model_name_or_path) as source:
            tokenizer = super().from_pretrained(source, *inputs, **values)
        tokenizer.name_or_path = str(pretrained_model_name_or_path)
        return tokenizer


_OF_FILE = ("tokenizer_class",)
