"""The GPUs of this machine, for commands that start several processes."""

import shutil
from pathlib import Path

import torch

from evo2cli import console
from evo2cli.errors import UserError

_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - where NCCL allocates its buffers
_MIN_SHARED_MEMORY = 256 * 2**20  # bytes; containers have 64 MiB by default, too few for 8 GPUs


def num_gpus() -> int:
    """Number of visible GPUs of this machine, as limited by CUDA_VISIBLE_DEVICES."""
    return torch.cuda.device_count()


def check_communication(world: int, device: str) -> None:
    """Refuse several ranks on GPUs without NCCL; warn of a small /dev/shm.

    Raises:
        UserError: PyTorch was built without NCCL.
    """
    if device == "cpu" or not num_gpus() or world == 1:
        return
    if not torch.distributed.is_nccl_available():
        raise UserError(
            f"PyTorch {torch.__version__} has no NCCL, which GPUs communicate through; install a "
            "build for Linux and CUDA, or use a single process"
        )
    if _SHARED_MEMORY.is_dir():
        free = shutil.disk_usage(_SHARED_MEMORY).free
        if free < _MIN_SHARED_MEMORY:
            console.warn(
                f"{_SHARED_MEMORY} has {free / 2**20:,.0f} MiB free; if NCCL fails, start the "
                "container with --shm-size=1g"
            )
