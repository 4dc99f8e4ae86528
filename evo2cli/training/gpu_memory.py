"""Memory of the GPUs that train: how PyTorch takes it, and whether it is short."""

import os

import torch

from evo2cli.models import pick_device


def training_device(name: str) -> torch.device:
    """As `pick_device`, for a run that trains: what PyTorch takes of a GPU can grow in place.

    Otherwise it takes blocks of fixed sizes, and of a GPU that is nearly full the gaps between them
    are lost: 7B in FP8 under ZeRO 3 took 1.76 s a step on two H200, and 0.88 s in memory that grows
    (tests/benchmarks/results/training.md). PyTorch reads the setting when it first uses a GPU; the
    user's own is kept.
    """
    if not {"PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"} & os.environ.keys():
        os.environ["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"
    return pick_device(name)


def read_memory(device: torch.device) -> tuple[float, int]:
    """The peak of this process in GiB, and how often PyTorch had to empty its cache to go on.

    Each of these times the GPU stood still.
    """
    peak = torch.cuda.max_memory_allocated(device) / 2**30
    return peak, torch.cuda.memory_stats(device).get("num_alloc_retries", 0)
