"""Recognizing out-of-memory errors: a type of its own for GPUs, only words for the host."""

import re

import torch

_DETAIL = re.compile(r"[Tt]ried to allocate [\d.]+ \w+(\. GPU \d+ has .*? is free)?")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that an allocation failed for lack of memory."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    message = str(error)
    return isinstance(error, RuntimeError) and (
        "out of memory" in message or "can't allocate memory" in message
    )


def out_of_memory(error: BaseException) -> str:
    """A short description of such an error, with the size of the allocation if it is known."""
    detail = _DETAIL.search(" ".join(str(error).split()))
    return f"out of memory ({detail[0]})" if detail else "out of memory"
