"""What a model weighs, by its shape: parameters, counted on the meta device, and its state."""

import torch

from stripedhyena2.config import ModelConfig
from stripedhyena2.model import StripedHyena2
from stripedhyena2.parametrization import trainable


def parameter_counts(
    config: ModelConfig, *, training: bool = False, published: bool = False
) -> dict[str, int]:
    """The size of every parameter of a model, by name; nothing is allocated.

    Args:
        config: Shape of the model.
        training: Whether its filters are in training form, as `trainable` puts it on.
        published: Which training form.
    """
    with torch.device("meta"):
        model = StripedHyena2(config)
        if training:
            trainable(model, config.original_context, published=published)
    return {name: parameter.numel() for name, parameter in model.named_parameters()}


def count_parameters(config: ModelConfig) -> int:
    """The number of parameters of a model of this shape, in inference form."""
    return sum(parameter_counts(config).values())


def state_bytes(config: ModelConfig, length: int, element: int = 2) -> int:
    """Bytes that one sequence of `length` tokens needs in the cache.

    Args:
        config: Shape of the model.
        length: Tokens seen.
        element: Bytes of an activation.
    """
    return sum(mixer.state_bytes(config, length, element) for mixer in config.mixers)
