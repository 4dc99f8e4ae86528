"""Models for tests."""

import torch

from stripedhyena2 import ModelConfig, StripedHyena2


@torch.no_grad()
def random_model(config: ModelConfig) -> StripedHyena2:
    """A random fp64 model whose every weight matters: no filter is near zero as at the start."""
    model = StripedHyena2.from_seed(config, seed=0).double().eval()
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "pole" not in name:
            noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            parameter.add_(0.2 * noise)
    return model
