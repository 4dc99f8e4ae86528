"""The free memory of a GPU, and out-of-memory errors."""

import re

import torch

_DETAIL = re.compile(r"[Tt]ried to allocate [\d.]+ \w+(\. GPU \d+ has .*? is free)?")


def free_bytes(device: torch.device) -> int:
    """Bytes that can be allocated on a GPU: free ones, and those cached by PyTorch's allocator."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory could not be allocated.

    For GPUs there is an error type; for host memory only the message tells.
    """
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    message = str(error)
    return isinstance(error, RuntimeError) and (
        "out of memory" in message or "can't allocate memory" in message
    )


def out_of_memory(error: BaseException) -> str:
    """A short description of an out-of-memory error, with the size of the allocation if known."""
    detail = _DETAIL.search(" ".join(str(error).split()))
    return f"out of memory ({detail[0]})" if detail else "out of memory"
