"""GPU memory in training: the configuration of PyTorch's allocator, and its statistics."""

import torch

from evo2cli.models import pick_device


def training_device(name: str) -> torch.device:
    """As `pick_device`, for training: makes the CUDA allocator use expandable segments.

    With segments of fixed size, fragmentation costs time on a GPU that is nearly full: 7B in FP8
    under ZeRO 3 took 1.76 s per step on two H200, and 0.88 s with expandable segments
    (tests/benchmarks/results/training.md).
    """
    return pick_device(name, allocator="expandable_segments:True")


def read_memory(device: torch.device) -> tuple[float, int]:
    """Peak allocated memory in GiB, and the number of allocation retries.

    On a retry PyTorch empties its cache, and the GPU stalls.
    """
    peak = torch.cuda.max_memory_allocated(device) / 2**30
    return peak, torch.cuda.memory_stats(device).get("num_alloc_retries", 0)
