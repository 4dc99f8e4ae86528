"""Ranks on one machine, run by torchrun or by DeepSpeed's launcher.

Left to themselves both launchers kill their ranks 30 seconds after a signal, saved or not, and lose
which rank failed how. Here a signal goes past them to the ranks, and the failing rank is named.
"""

import base64
import json
import logging
import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import torch
from torch.distributed import DistNetworkError
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous import RendezvousError
from torch.distributed.launcher.api import elastic_launch
from torch.distributed.run import config_from_args, parse_args

from evo2cli import console
from evo2cli.errors import UntrustedNumericsError, UserError

DEEPSPEED = "deepspeed.launcher.launch"

# A program behind DeepSpeed's launcher: it leaves its rank and its code in the file named first.
_REPORTING = '"$@"; code=$?; echo "$RANK $code" >> "$0"; exit "$code"'


class RankError(UserError):
    """A rank ended badly; the launcher ends with its code."""

    def __init__(self, rank: int, code: int) -> None:
        if code < 0:
            how = f"was ended by {signal.Signals(-code).name}"
        else:
            how = f"ended with exit code {code}, its reason is above"
        super().__init__(f"rank {rank} {how}; the other ranks here were ended too")
        self.exit_code = code if code > 0 else 128 - code


@dataclass(frozen=True)
class Group:
    """The ranks to start here, and the machines they share a run with.

    Attributes:
        processes: Ranks on this machine.
        nodes: Machines, with as many ranks each.
        rendezvous: host:port on the first of several machines.
    """

    processes: int
    nodes: int = 1
    rendezvous: str | None = None

    @property
    def world(self) -> int:
        """Ranks of the run."""
        return self.nodes * self.processes


def command_line(group: Group, program: Sequence[str], launcher: str) -> str:
    """What `run_ranks` starts, as a shell would be told."""
    variables = [f"{name}={shlex.quote(value)}" for name, value in _environment(group).items()]
    if launcher == "deepspeed":
        words = [DEEPSPEED, *_deepspeed_arguments(group), sys.executable, *program]
    else:
        words = ["torch.distributed.run", *_torchrun_arguments(group), *program]
    return " ".join([*variables, shlex.join([sys.executable, "-m", *words])])


def run_ranks(group: Group, program: Sequence[str], launcher: str) -> None:
    """Start the ranks and stay until all have ended; signals go to them.

    Args:
        group: How many, and with whom.
        program: What Python runs as a rank: a script, or -m and a module, and its arguments.
        launcher: "torchrun" or "deepspeed".

    Raises:
        RankError: A rank ended badly; its code is what this process should end with.
        UserError: The launcher failed, or several machines did not meet.
    """
    os.environ.update(_environment(group))
    if launcher == "deepspeed":
        _run_deepspeed(_deepspeed_arguments(group), program)
    else:
        _run_torchrun([*_torchrun_arguments(group), *program])


def _environment(group: Group) -> dict[str, str]:
    """What ranks must find in their environment, beside what is there already."""
    if "OMP_NUM_THREADS" in os.environ:
        return {}
    return {"OMP_NUM_THREADS": str(max(1, torch.get_num_threads() // group.processes))}


def _torchrun_arguments(group: Group) -> list[str]:
    """What torchrun is told before the program."""
    where = ["--rdzv-backend", "c10d", "--rdzv-endpoint", group.rendezvous or "127.0.0.1:0"]
    if group.rendezvous is None:
        where += ["--local-addr", "127.0.0.1"]  # port 0, above, is any free one
    return ["--nnodes", str(group.nodes), "--nproc-per-node", str(group.processes), *where]


def _run_torchrun(arguments: Sequence[str]) -> None:
    """Run torchrun within this process."""
    config, entrypoint, rest = config_from_args(parse_args(arguments))  # type: ignore[no-untyped-call] # torch
    config.signals_to_handle = "SIGQUIT"  # the others are ours
    for name in [name for name in logging.root.manager.loggerDict if "torch.distributed" in name]:
        logging.getLogger(name).setLevel(logging.CRITICAL)  # we say it in one line
    try:
        with _signals_for(lambda: _children(os.getpid())):
            elastic_launch(config, entrypoint)(*rest)
    except ChildFailedError as error:
        raise first_failure({rank: end.exitcode for rank, end in error.failures.items()}) from None
    except (RendezvousError, DistNetworkError) as error:
        raise UserError(
            f"--rendezvous {config.rdzv_endpoint}: the {config.max_nodes} machines have not met, "
            f"or one has gone ({str(error).splitlines()[0]}); start the same command on each"
        ) from None


def _deepspeed_arguments(group: Group) -> list[str]:
    """What DeepSpeed's launcher is told before the program, which begins with an executable."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = visible.split(",") if visible else [str(index) for index in range(group.processes)]
    world = json.dumps({"localhost": devices[: group.processes]}).encode()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    encoded = base64.urlsafe_b64encode(world).decode()
    options = [f"--world_info={encoded}", f"--master_port={port}", "--no_local_rank"]
    return [*options, "--no_python", "--quiet"]


def _run_deepspeed(arguments: Sequence[str], program: Sequence[str]) -> None:
    """Run DeepSpeed's launcher below this process."""
    with tempfile.TemporaryDirectory() as folder:
        ends = Path(folder) / "ends"
        reporting = ["sh", "-c", _REPORTING, str(ends), sys.executable, *program]
        with _signals_for(_grandchildren):
            launcher = subprocess.Popen(  # noqa: S603 - our own program
                [sys.executable, "-m", DEEPSPEED, *arguments, *reporting],
                start_new_session=True,  # a Ctrl-C in the terminal is ours to pass on
            )
            try:
                code = launcher.wait()
            finally:
                launcher.terminate()
                launcher.wait()
        lines = ends.read_text().splitlines() if ends.exists() else []
    codes = {int(rank): int(end) for rank, end in map(str.split, lines)}
    failed = {rank: end for rank, end in codes.items() if end}
    if failed:
        raise first_failure(failed)
    if code:
        raise UserError(f"DeepSpeed's launcher ended with exit code {code}; its reason is above")


def first_failure(codes: Mapping[int, int]) -> RankError:
    """The failure to tell: one that had a reason of its own, or else the earliest.

    Args:
        codes: Of the ranks that ended badly, in the order in which they did; -n for signal n.
    """
    reasons = (UserError.exit_code, UntrustedNumericsError.exit_code)
    rank = next((rank for rank, code in codes.items() if code in reasons), next(iter(codes)))
    return RankError(rank, codes[rank])


def _children(process: int) -> list[int]:
    """The processes that a process has started and that have not ended."""
    files = [*Path(f"/proc/{process}/task").glob("*/children")]
    if files:
        text = " ".join(file.read_text() for file in files)
    else:  # not Linux
        command = ["pgrep", "-P", str(process)]
        text = subprocess.run(command, capture_output=True, text=True, check=False).stdout  # noqa: S603 - ours
    return [int(number) for number in text.split()]


def _grandchildren() -> list[int]:
    """Ranks behind DeepSpeed's launcher: below us and it, each under the shell that reports it."""
    level = [os.getpid()]
    for _ in range(3):
        level = [child for process in level for child in _children(process)]
    return level


@contextmanager
def _signals_for(ranks: Callable[[], list[int]]) -> Iterator[None]:
    """While inside, asking this process to stop asks all ranks to save and exit.

    A second Ctrl-C kills them. With no rank there yet, this process ends at once.
    """
    received: list[int] = []

    def forward(number: int, _frame: FrameType | None) -> None:
        received.append(number)
        impatient = received.count(signal.SIGINT) > 1
        found = ranks()
        if not found:
            if impatient or len(received) == 1:
                raise SystemExit(128 + number)
            return  # they have obeyed, and the launcher is about to end
        what = "killing them" if impatient else "asking them to save and exit"
        console.say(f"{signal.Signals(number).name}: {len(found)} ranks, {what}")
        for rank in found:
            with suppress(ProcessLookupError):
                os.kill(rank, signal.SIGKILL if impatient else signal.SIGTERM)

    stops = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    heard = [number for number in stops if signal.getsignal(number) != signal.SIG_IGN]  # nohup
    before = {number: signal.signal(number, forward) for number in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
