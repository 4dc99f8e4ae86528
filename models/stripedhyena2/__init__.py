"""StripedHyena 2: the model of Evo 2, its checkpoints, scoring, embeddings and generation.

    from stripedhyena2 import load

    model = load("nano")                # or a folder, a released .pt, a published name
    model.score(["ACGTACGT"])           # mean log-likelihood per base, in nats
    model.embed(["ACGTACGT"])           # {layer: [N, D]}
    model.generate("ACGT", num_tokens=20)
    logits = model(ids)                 # ids [B, L] int64 -> logits [B, L, 512] fp32
    cache = model.new_cache(batch_size=1)
    model(ids[:, :100], cache=cache)    # any number of tokens at a time

Names are imported when they are first used, so that modules without torch (`stripedhyena2.dna`,
`stripedhyena2.errors`) stay cheap to import.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stripedhyena2.cache import Cache as Cache
    from stripedhyena2.checkpoint import CheckpointError as CheckpointError
    from stripedhyena2.checkpoint import load as load
    from stripedhyena2.checkpoint import save as save
    from stripedhyena2.config import ConfigError as ConfigError
    from stripedhyena2.config import ModelConfig as ModelConfig
    from stripedhyena2.config import read_config as read_config
    from stripedhyena2.decoding import Decoder as Decoder
    from stripedhyena2.errors import InputError as InputError
    from stripedhyena2.errors import NonFiniteError as NonFiniteError
    from stripedhyena2.generation import GeneratedSequence as GeneratedSequence
    from stripedhyena2.generation import NonFiniteLogitsError as NonFiniteLogitsError
    from stripedhyena2.generation import Request as Request
    from stripedhyena2.generation import Sample as Sample
    from stripedhyena2.generation import generate as generate
    from stripedhyena2.mixer import Mixer as Mixer
    from stripedhyena2.model import StripedHyena2 as StripedHyena2
    from stripedhyena2.parametrization import trainable as trainable
    from stripedhyena2.sampling import Sampler as Sampler
    from stripedhyena2.sampling import Uniforms as Uniforms

_MODULES = {
    "Cache": "cache",
    "CheckpointError": "checkpoint",
    "ConfigError": "config",
    "Decoder": "decoding",
    "GeneratedSequence": "generation",
    "InputError": "errors",
    "Mixer": "mixer",
    "ModelConfig": "config",
    "NonFiniteError": "errors",
    "NonFiniteLogitsError": "generation",
    "Request": "generation",
    "Sample": "generation",
    "Sampler": "sampling",
    "StripedHyena2": "model",
    "Uniforms": "sampling",
    "generate": "generation",
    "load": "checkpoint",
    "read_config": "config",
    "save": "checkpoint",
    "trainable": "parametrization",
}


__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(_MODULES)
