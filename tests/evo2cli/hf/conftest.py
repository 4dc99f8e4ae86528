"""The tiny model as a model of transformers, in fp64."""

import pytest

from evo2cli.hf import Evo2Config, Evo2ForCausalLM, Evo2Tokenizer
from stripedhyena2 import ModelConfig, StripedHyena2


@pytest.fixture(scope="session")
def tokenizer() -> Evo2Tokenizer:
    return Evo2Tokenizer()


@pytest.fixture
def causal(tiny_config: ModelConfig, tiny_model: StripedHyena2) -> Evo2ForCausalLM:
    return Evo2ForCausalLM(Evo2Config.from_shape(tiny_config), tiny_model).eval()
