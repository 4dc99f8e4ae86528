"""The free memory of a GPU, and errors that say that memory is used up."""

import re

import torch

_DETAIL = re.compile(r"[Tt]ried to allocate [\d.]+ \w+(\. GPU \d+ has .*? is free)?")


def free_bytes(device: torch.device) -> int:
    """Bytes that can be allocated on a GPU: free ones, and those that PyTorch holds unused."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that an allocation failed for lack of memory.

    GPUs have a type of error for that; of the host, only the message tells.
    """
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
