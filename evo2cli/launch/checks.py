"""What a launch needs of recipe, machine and disk, checked before anything starts."""

import errno
import importlib.util
import os
import shutil
import socket
from pathlib import Path

import torch

from evo2cli import console
from evo2cli.errors import UserError
from evo2cli.training.plan.disk import checkpoint_bytes
from evo2cli.training.plan.estimate import count_sizes, make_setup
from evo2cli.training.recipe import Recipe
from evo2cli.training.recipe_file import read_shape

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - where NCCL keeps its buffers
SHARED_MEMORY_BYTES = 256 * 2**20  # containers give 64 MiB, which eight GPUs exceed


def num_gpus() -> int:
    """GPUs of this machine that CUDA_VISIBLE_DEVICES leaves."""
    return torch.cuda.device_count()


def free_bytes(folder: Path) -> int:
    """What may still be written to the disk of a folder."""
    return shutil.disk_usage(folder).free


def count_processes(asked: str, device: str) -> int:
    """How many ranks `--local` means: one a GPU, or any number on a CPU.

    Raises:
        UserError: It is no number, or there are not so many GPUs.
    """
    available = 0 if device == "cpu" else num_gpus()
    if asked == "all":
        if not available:
            raise UserError("--local all: no GPU here; give a number to use as many CPU processes")
        return available
    if not asked.isdecimal() or int(asked) < 1:
        raise UserError(f"--local {asked}: must be all, or a number from 1")
    on_gpus = available or device.startswith("cuda")
    if on_gpus and int(asked) > available:
        raise UserError(f"--local {asked}: only {available} GPUs here; use fewer, or --device cpu")
    return int(asked)


def check_gpus(world: int, device: str) -> None:
    """Refuse ranks on GPUs that have no way to talk.

    Raises:
        UserError: This PyTorch has no NCCL.
    """
    if device == "cpu" or not num_gpus() or world == 1:
        return
    if not torch.distributed.is_nccl_available():
        raise UserError(
            f"PyTorch {torch.__version__} has no NCCL, through which GPUs talk; install one that "
            "has it (Linux, CUDA), or use --local 1"
        )
    if SHARED_MEMORY.is_dir() and free_bytes(SHARED_MEMORY) < SHARED_MEMORY_BYTES:
        console.warn(
            f"{SHARED_MEMORY} has {free_bytes(SHARED_MEMORY) / 2**20:,.0f} MiB free; should NCCL "
            "fail, start the container with --shm-size=1g"
        )


def check_recipe(recipe: Recipe, path: Path, world: int) -> None:
    """Refuse a recipe that so many ranks cannot share, or for which DeepSpeed is missing.

    Raises:
        UserError: One of these.
    """
    try:
        recipe.micro(world)
    except ValueError as error:
        raise UserError(f"{path}: {error}; change either") from None
    zero = recipe.parallel.zero
    if (zero or world > 1) and importlib.util.find_spec("deepspeed") is None:
        why = f"parallel.zero = {zero}" if zero else f"a run of {world} ranks"
        raise UserError(f"{path}: {why} needs DeepSpeed; pip install 'evo2cli[train]'")


def check_rendezvous(endpoint: str) -> None:
    """Refuse a place where ranks cannot meet; only the machine that owns it can tell about ports.

    Raises:
        UserError: It is not host:port, or the port is in use.
    """
    host, _, port = endpoint.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise UserError(f"--rendezvous {endpoint}: must be host:port, the first machine's")
    try:
        addresses = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)
    except OSError:
        raise UserError(f"--rendezvous {endpoint}: no machine called {host!r} is known") from None
    family, kind, protocol, _, address = addresses[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise UserError(
                    f"--rendezvous {endpoint}: the port is in use; choose another"
                ) from None


def check_output(recipe: Recipe, path: Path, world: int) -> None:
    """Refuse an output folder that cannot be written, or a disk without room for its checkpoints.

    Raises:
        UserError: One of these.
    """
    output = recipe.output
    there = next(folder for folder in (output, *output.absolute().parents) if folder.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"{output}: {there} is not a folder to write to; choose another --output")
    counts = count_sizes(recipe, read_shape(recipe, path))
    each = checkpoint_bytes(counts, make_setup(recipe, world))
    keep = recipe.checkpoint.keep
    missing = max(1, keep + 1 - len([*output.glob("step-*")]))
    free = free_bytes(there)
    if missing * each > free:
        raise UserError(
            f"{output}: {missing} more checkpoints of {each / 1e9:,.2f} GB ({counts.all:,} "
            f"parameters) need {missing * each / 1e9:,.2f} GB, {there} has {free / 1e9:,.2f} GB "
            f"free; make room, choose another --output, or lower checkpoint.keep = {keep}"
        )
