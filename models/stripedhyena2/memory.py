"""How PyTorch says that memory is short: of a GPU by a type of its own, of the machine in words."""

import re

import torch

_DETAIL = re.compile(r"[Tt]ried to allocate [\d.]+ \w+(\. GPU \d+ has .*? is free)?")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there is not as much memory as was asked for."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    told = str(error)
    return isinstance(error, RuntimeError) and (
        "out of memory" in told or "can't allocate memory" in told
    )


def out_of_memory(error: BaseException) -> str:
    """Such an error in a few words: how much was asked for, where it says that."""
    detail = _DETAIL.search(" ".join(str(error).split()))
    return f"out of memory ({detail[0]})" if detail else "out of memory"
