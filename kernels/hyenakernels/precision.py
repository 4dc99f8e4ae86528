"""One rule for every operator: accumulate in fp32 or better, whatever the input's dtype."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def accumulation_dtype(x: Tensor) -> torch.dtype:
    """The dtype in which sums over `x` are accumulated: float64 for float64, else float32."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


@contextmanager
def full_precision(x: Tensor) -> Iterator[None]:
    """Keep autocast from lowering the precision of products on `x`'s device."""
    with torch.autocast(x.device.type, enabled=False):
        yield
