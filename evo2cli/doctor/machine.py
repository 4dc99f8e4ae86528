"""Processors, memory, disk and packages of this machine."""

import os
import platform
import re
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants

from evo2cli import __version__
from hyenakernels.float8.op import runs_float8
from stripedhyena2.checkpoint.precision import sums_like_hopper
from stripedhyena2.host import available_bytes

# Optional packages and what they are used for.
OPTIONAL = {
    "triton": "fused kernels on GPUs",
    "deepspeed": "training on several GPUs",
    "tensorboard": "training curves",
    "wandb": "training curves in Weights & Biases",
    "matplotlib": "--plot",
    "pyarrow": "Parquet",
    "pyBigWig": "bigWig",
}
_DRIVER = Path("/proc/driver/nvidia/version")
_LIMIT = Path("/sys/fs/cgroup/memory.max")


def describe_machine() -> dict[str, Any]:
    """Describe hardware and software as JSON values; None where unknown."""
    cache = Path(constants.HF_HUB_CACHE)
    existing = next(folder for folder in (cache, *cache.absolute().parents) if folder.is_dir())
    return {
        "evo2cli": __version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "driver": _driver(),
        "cpus": os.process_cpu_count() if hasattr(os, "process_cpu_count") else os.cpu_count(),
        "memory_bytes": memory_bytes(),
        "available_bytes": available_bytes(),
        "gpus": [_gpu(index) for index in range(torch.cuda.device_count())],
        "cache": str(cache),
        "cache_free_bytes": shutil.disk_usage(existing).free,
        "packages": {name: _version(name) for name in OPTIONAL},
    }


def memory_bytes() -> int:
    """Memory of the machine in bytes, or the cgroup limit of a container if that is lower."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = _LIMIT.read_text().strip() if _LIMIT.is_file() else "max"
    return min(total, int(limit)) if limit.isdecimal() else total


def _driver() -> str | None:
    match = re.search(r"Kernel Module\D*(\d[\d.]+)", _read(_DRIVER))
    return match[1] if match else None


def _read(file: Path) -> str:
    return file.read_text(encoding="utf-8") if file.is_file() else ""


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _gpu(index: int) -> dict[str, Any]:
    device = torch.device("cuda", index)
    properties = torch.cuda.get_device_properties(device)
    free, _ = torch.cuda.mem_get_info(device)
    fp8 = "simulated for models trained so, --dtype fp8 refused"
    if runs_float8(device):
        fp8 = "yes, Hopper's sums" if sums_like_hopper(device) else "yes, other sums than Hopper's"
    return {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "memory_bytes": properties.total_memory,
        "free_bytes": free,
        "fp8": fp8,
    }
