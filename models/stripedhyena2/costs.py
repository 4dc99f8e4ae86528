"""Sizes that follow from the shape of a model: parameters, and bytes of weights and cache."""

import torch
from torch import nn

from stripedhyena2.config import ModelConfig
from stripedhyena2.layers import projection_names
from stripedhyena2.model import StripedHyena2
from stripedhyena2.operators.hyena import Hyena
from stripedhyena2.parametrization import trainable


def parameter_counts(
    config: ModelConfig, *, training: bool = False, published: bool = False
) -> dict[str, int]:
    """The number of elements of every parameter, by name; allocates at most the filters.

    Args:
        config: Shape of the model.
        training: Count the training form of the filters, as after `trainable`.
        published: As for `trainable`.
    """
    with torch.device("meta"):
        model = StripedHyena2(config)
    if training:
        # Arithmetic on the meta device would import torch._dynamo, which takes a second.
        for mixer in model.modules():
            if isinstance(mixer, Hyena):
                for name, filters in [*mixer.operator.named_parameters()]:
                    mixer.operator.register_parameter(name, nn.Parameter(torch.ones(filters.shape)))
        trainable(model, config.original_context, published=published)
    return {name: parameter.numel() for name, parameter in model.named_parameters()}


def count_parameters(config: ModelConfig) -> int:
    """The total number of parameters of a model of this shape, in inference form."""
    return sum(parameter_counts(config).values())


def weight_bytes(config: ModelConfig, element: int = 2, *, float8: bool = False) -> int:
    """Bytes of the weights of a model of this shape.

    Args:
        config: Shape of the model.
        element: Bytes of a parameter.
        float8: Whether projections and MLPs are in FP8: one byte per weight, and an fp32 scale per
            output channel.
    """
    total = element * count_parameters(config)
    if not float8:
        return total
    with torch.device("meta"):
        model = StripedHyena2(config)
    shapes = [model.get_parameter(f"{name}.weight").shape for name in projection_names(config)]
    return total - sum((element - 1) * shape.numel() - 4 * shape[0] for shape in shapes)


def state_bytes(config: ModelConfig, length: int, element: int = 2) -> int:
    """Bytes of the cache of one sequence of `length` tokens.

    Args:
        config: Shape of the model.
        length: Tokens seen.
        element: Bytes of an activation.
    """
    return sum(mixer.state_bytes(config, length, element) for mixer in config.mixers)
