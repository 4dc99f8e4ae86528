"""StripedHyena 2: the model of Evo 2, its checkpoints, its cache and what it generates.

from stripedhyena2 import load
model = load("nano")                    # or a folder, a released .pt, a published name
logits = model(ids)                     # ids [B, L] int64 -> logits [B, L, 512] fp32
cache = model.new_cache(batch_size=1)
model(ids[:, :100], cache=cache)        # any number of tokens at a time
"""

from stripedhyena2.cache import Cache
from stripedhyena2.checkpoint import CheckpointError, load, save
from stripedhyena2.config import ConfigError, ModelConfig, read_config
from stripedhyena2.decoding import Decoder
from stripedhyena2.generation import NonFiniteLogitsError, Request, Sample, generate
from stripedhyena2.model import StripedHyena2
from stripedhyena2.operators import Mixer
from stripedhyena2.parametrization import trainable
from stripedhyena2.sampling import Sampler, Uniforms

__all__ = [
    "Cache",
    "CheckpointError",
    "ConfigError",
    "Decoder",
    "Mixer",
    "ModelConfig",
    "NonFiniteLogitsError",
    "Request",
    "Sample",
    "Sampler",
    "StripedHyena2",
    "Uniforms",
    "generate",
    "load",
    "read_config",
    "save",
    "trainable",
]
