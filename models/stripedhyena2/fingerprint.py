"""A short hash that identifies a model in results and checkpoints."""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

from stripedhyena2.config import ModelConfig

_SAMPLES = 4096  # values of each tensor that are hashed: reading all of a 40B model takes minutes


def fingerprint(config: ModelConfig, tensors: Mapping[str, Tensor]) -> str:
    """Twelve hexadecimal digits: a hash of the shape, the dtypes and a sample of each tensor."""
    digest = hashlib.sha256(repr(config).encode())
    for name, tensor in sorted(tensors.items()):
        flat = tensor.detach().reshape(-1)
        sample = flat[:: max(1, len(flat) // _SAMPLES)].contiguous().cpu()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(sample.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:12]
