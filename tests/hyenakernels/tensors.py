"""Random tensors, leaves of autograd, and how far a result may be from the exact one."""

import torch
from torch import Tensor

Inputs = list[Tensor | None]


def random(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Normal numbers, drawn in fp64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def leaves(inputs: Inputs, dtype: torch.dtype | None = None) -> Inputs:
    """Copies that gather gradients."""
    return [
        None if tensor is None else tensor.detach().to(dtype or tensor.dtype).requires_grad_()
        for tensor in inputs
    ]


def assert_close(name: str, value: Tensor, exact: Tensor, tolerance: float) -> None:
    """||value - exact|| is at most the tolerance times ||exact||."""
    assert value.shape == exact.shape, name
    scale = exact.norm().item()
    error = (value.double() - exact).norm().item()
    assert error <= tolerance * scale + 1e-30, f"{name}: {error / scale:.2e} > {tolerance:.0e}"
