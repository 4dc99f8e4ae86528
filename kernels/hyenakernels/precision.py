"""One rule for every operator: sums are kept in fp32 or better, whatever the input's dtype."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def accumulation_dtype(x: Tensor) -> torch.dtype:
    """The dtype in which sums over `x` are kept: float64 for float64, float32 for all others."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


@contextmanager
def full_precision(x: Tensor) -> Iterator[None]:
    """Keep autocast from narrowing the products inside an operator on `x`'s device."""
    with torch.autocast(x.device.type, enabled=False):
        yield
