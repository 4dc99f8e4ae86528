"""GPU memory in training: the configuration of PyTorch's allocator, and its statistics."""

import os

import torch

from evo2cli.models import pick_device


def training_device(name: str) -> torch.device:
    """As `pick_device`, for training: makes the CUDA allocator use expandable segments.

    With segments of fixed size, fragmentation costs time on a GPU that is nearly full: 7B in FP8
    under ZeRO 3 took 1.76 s per step on two H200, and 0.88 s with expandable segments
    (tests/benchmarks/results/training.md). PyTorch reads the setting when it first uses a GPU; a
    setting of the user is kept.
    """
    if not {"PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"} & os.environ.keys():
        os.environ["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"
    return pick_device(name)


def read_memory(device: torch.device) -> tuple[float, int]:
    """Peak allocated memory in GiB, and the number of allocation retries.

    On a retry PyTorch empties its cache, and the GPU stalls.
    """
    peak = torch.cuda.max_memory_allocated(device) / 2**30
    return peak, torch.cuda.memory_stats(device).get("num_alloc_retries", 0)
