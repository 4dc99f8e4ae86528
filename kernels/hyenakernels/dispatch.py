"""Dispatch: the Triton kernels on a GPU if they support the input, else the references."""

import logging
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor
from torch.nn.functional import pad

_LOG = logging.getLogger(__name__)

HAS_TRITON = find_spec("triton") is not None

KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MAX_TAPS, MAX_FEATURIZER_TAPS, MAX_MODES, MAX_CHANNELS = 256, 4, 64, 16_384


@cache
def warn_once(reason: str) -> None:
    """Log once why the reference runs instead of a kernel."""
    _LOG.warning("%s; the slower reference runs instead", reason)


def kernels_support(
    z_BLC: Tensor,
    num_featurizer_taps: int = 1,
    *,
    num_taps: int = 1,
    num_modes: int = 1,
    width: int = 1,
) -> bool:
    """Whether the kernels support this input; on a GPU, each reason why not is logged once.

    Args:
        z_BLC: The input.
        num_featurizer_taps: 1 without a featurizer.
        num_taps: 1 without an FIR filter.
        num_modes: 1 without a modal filter.
        width: The number of channels that one program has to hold at the same time.
    """
    if not z_BLC.is_cuda or z_BLC.numel() == 0:
        return False
    reason = _unsupported_reason(z_BLC.dtype, num_featurizer_taps, num_taps, num_modes, width)
    if reason:
        warn_once(reason)
    return not reason


def _unsupported_reason(
    dtype: torch.dtype, num_featurizer_taps: int, num_taps: int, num_modes: int, width: int
) -> str:
    """Why no kernel supports an input; empty if the kernels do."""
    if not HAS_TRITON:
        return "triton is not installed"
    if dtype not in KERNEL_DTYPES:
        return f"{dtype} has no kernel"
    if num_featurizer_taps > MAX_FEATURIZER_TAPS:
        return f"featurizers of more than {MAX_FEATURIZER_TAPS} taps have no kernel"
    if num_taps > MAX_TAPS:
        return f"filters of more than {MAX_TAPS} taps have no kernel"
    if num_modes > MAX_MODES:
        return f"filters of more than {MAX_MODES} modes have no kernel"
    if width > MAX_CHANNELS:
        return f"norms of more than {MAX_CHANNELS} channels have no kernel"
    return ""


def all_contiguous(*tensors: Tensor | None) -> bool:
    """Whether all tensors are contiguous; None counts as contiguous."""
    return all(x is None or x.is_contiguous() for x in tensors)


def contiguous_rows(x_BLC: Tensor) -> Tensor:
    """`x` with unit stride along the channels, as kernels read projections.

    The row stride may be anything, so a slice of a wider tensor is not copied.
    """
    return x_BLC if x_BLC.stride(2) == 1 else x_BLC.contiguous()


def batch_stride(x_BLC: Tensor) -> int:
    """The stride from one sequence to the next, in elements; 0 for a single sequence.

    The stride of a single long sequence can exceed 32 bits, for which Triton would compile every
    kernel a second time.
    """
    return x_BLC.stride(0) if x_BLC.shape[0] > 1 else 0


def last_rows(x_BLC: Tensor, past_BPC: Tensor | None, count: int) -> Tensor:
    """A copy of the last rows of [past, x]: the past for the samples that follow.

    Args:
        x_BLC: The samples.
        past_BPC: The `count` rows before them; zeros when None.
        count: The number of rows of a past.
    """
    length = x_BLC.shape[1]
    if length >= count:
        return x_BLC[:, length - count :].clone()
    if past_BPC is None:
        return pad(x_BLC, (0, 0, count - length, 0))
    return torch.cat([past_BPC[:, length:].to(x_BLC.dtype), x_BLC], dim=1)
