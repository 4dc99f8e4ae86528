"""Check recipe and machine before any rank starts."""

import errno
import importlib.util
import socket
from pathlib import Path

from evo2cli import gpus
from evo2cli.errors import UserError
from evo2cli.training.recipe import Recipe
from evo2cli.training.recipe_file import naming
from evo2cli.training.state import locked_run


def count_processes(local: str, device: str) -> int:
    """The number of ranks for `--local`: at most one per GPU; any number on CPUs.

    Raises:
        UserError: It is not a number, or there are fewer GPUs.
    """
    available = 0 if device == "cpu" else gpus.num_gpus()
    if local == "all":
        if not available:
            raise UserError("--local all: this machine has no GPU; give a number of CPU processes")
        return available
    if not local.isdecimal() or int(local) < 1:
        raise UserError(f"--local {local}: must be all, or a number from 1")
    on_gpus = available or device.startswith("cuda")
    if on_gpus and int(local) > available:
        raise UserError(
            f"--local {local}: this machine has {available} GPUs; use fewer, or --device cpu"
        )
    return int(local)


def check_recipe(recipe: Recipe, world: int) -> None:
    """Refuse a recipe whose batch `world` ranks cannot divide, or that needs a missing DeepSpeed.

    Raises:
        UserError: One of these.
    """
    with naming(recipe.file):
        recipe.micro(world)
    zero = recipe.parallel.zero
    if (zero or world > 1) and importlib.util.find_spec("deepspeed") is None:
        reason = f"parallel.zero = {zero}" if zero else f"a run of {world} ranks"
        raise UserError(f"{recipe.file}: {reason} needs DeepSpeed; pip install 'evo2cli[train]'")


def check_rendezvous(endpoint: str) -> None:
    """Refuse an unusable rendezvous endpoint; a port in use is noticed only on its own machine.

    Raises:
        UserError: It is not host:port, the host is unknown, or the port is in use.
    """
    host, _, port = endpoint.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise UserError(f"--rendezvous {endpoint}: must be host:port of the first machine")
    try:
        addresses = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)
    except OSError:
        raise UserError(f"--rendezvous {endpoint}: unknown host {host!r}") from None
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


def check_no_run(output: Path) -> None:
    """Refuse an output folder that another run has locked; rank 0 will lock it for this run.

    Raises:
        OutputInUseError: Another run trains into it.
    """
    if output.is_dir():
        with locked_run(output):
            pass
