"""Which path runs: the Triton kernels on a GPU, the references elsewhere."""

import logging
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

_LOG = logging.getLogger(__name__)

HAS_TRITON = find_spec("triton") is not None

KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MOST_TAPS, MOST_FEATURIZER_TAPS, MOST_MODES, MOST_CHANNELS = 256, 4, 64, 16_384


@cache
def say_once(reason: str) -> None:
    """Log why no kernel runs."""
    _LOG.warning("%s; the slower reference runs instead", reason)


def kernels_take(
    z_BLC: Tensor,
    num_featurizer_taps: int = 1,
    *,
    num_taps: int = 1,
    num_modes: int = 1,
    width: int = 1,
) -> bool:
    """Whether the kernels compute this; on a GPU a refusal is logged, once for each reason.

    Args:
        z_BLC: The input.
        num_featurizer_taps: Of the featurizer, where there is one.
        num_taps: Of the filter.
        num_modes: Of the filter.
        width: Channels that a program takes whole.
    """
    if not z_BLC.is_cuda or z_BLC.numel() == 0:
        return False
    reasons = {
        "triton is not installed": not HAS_TRITON,
        f"{z_BLC.dtype} has no kernel": z_BLC.dtype not in KERNEL_DTYPES,
        f"featurizers of more than {MOST_FEATURIZER_TAPS} taps have no kernel": (
            num_featurizer_taps > MOST_FEATURIZER_TAPS
        ),
        f"filters of more than {MOST_TAPS} taps have no kernel": num_taps > MOST_TAPS,
        f"filters of more than {MOST_MODES} modes have no kernel": num_modes > MOST_MODES,
        f"norms of more than {MOST_CHANNELS} channels have no kernel": width > MOST_CHANNELS,
    }
    for reason, applies in reasons.items():
        if applies:
            say_once(reason)
            return False
    return True


def packed(*tensors: Tensor | None) -> bool:
    """Whether all are contiguous, as kernels read what is no projection."""
    return all(x is None or x.is_contiguous() for x in tensors)


def rows(x_BLC: Tensor) -> Tensor:
    """`x` as the kernels read it: channels side by side, rows any stride apart."""
    return x_BLC if x_BLC.stride(2) == 1 else x_BLC.contiguous()


def batch_stride(x_BLC: Tensor) -> int:
    """Elements from a sequence to the next; none needed where there is one.

    The stride of a single long sequence passes 32 bits, for which every kernel would be compiled
    once more.
    """
    return x_BLC.stride(0) if x_BLC.shape[0] > 1 else 0


def last_rows(x_BLC: Tensor, past_BPC: Tensor) -> Tensor:
    """The past of what follows `x`: as many of the newest rows as `past` holds, in a copy."""
    count, length = past_BPC.shape[1], x_BLC.shape[1]
    if length >= count:
        return x_BLC[:, length - count :].clone()
    return torch.cat([past_BPC[:, length:].to(x_BLC.dtype), x_BLC], dim=1)
