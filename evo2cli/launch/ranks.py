"""Run the ranks of one machine with torchrun or DeepSpeed's launcher.

Both launchers kill their ranks 30 seconds after a signal, even while they save a checkpoint, and do
not report which rank failed. Here signals are forwarded to the ranks directly, and the failed rank
is reported with its exit code.
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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType

import torch
from torch.distributed import DistNetworkError
from torch.distributed.elastic.multiprocessing import PContext
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous import RendezvousError
from torch.distributed.launcher.api import elastic_launch
from torch.distributed.run import config_from_args, parse_args

from evo2cli import console
from evo2cli.errors import UntrustedNumericsError, UserError, counted
from evo2cli.files import temporary_folder
from evo2cli.processes import LAUNCHER, end_with_parent, handled_stops, on_interrupt
from stripedhyena2.errors import reason_of

DEEPSPEED = "deepspeed.launcher.launch"
GRACE = 5  # seconds; ranks that wait for a failed one cannot save a checkpoint anyway

# DeepSpeed's launcher runs each rank through this shell script, which appends the rank and its exit
# code to the file in $0. The shell itself prints nothing.
_REPORTING = """
exec 3>&2 2>/dev/null
(exec "$@" 2>&3 3>&-)
code=$?
echo "$RANK $code" >> "$0"
exit "$code"
"""


class RankError(UserError):
    """A rank failed; the launcher exits with its code.

    Args:
        rank: The rank.
        code: Its exit code; -n if signal n killed it, or 128 + n as shells and `evo2` report that.
    """

    def __init__(self, rank: int, code: int) -> None:
        self.exit_code = code if code > 0 else 128 - code
        names = {128 + number: number.name for number in signal.Signals}
        if self.exit_code in names:
            how = f"was killed by {names[self.exit_code]}"
        else:
            how = f"exited with code {code}, for the reason above"
        super().__init__(f"rank {rank} {how}; the other ranks of this machine were stopped")


@dataclass(frozen=True)
class Group:
    """The ranks of a run.

    Attributes:
        processes: Number of ranks on this machine, and on every other one.
        nodes: Number of machines.
        rendezvous: host:port of the rendezvous of several machines, on the first of them.
    """

    processes: int
    nodes: int = 1
    rendezvous: str | None = None

    @property
    def world(self) -> int:
        """Number of ranks of the run."""
        return self.nodes * self.processes


def command_line(group: Group, program: Sequence[str], launcher: str) -> str:
    """The shell command that is equivalent to `run_ranks`."""
    variables = [f"{name}={shlex.quote(value)}" for name, value in _environment(group).items()]
    if launcher == "deepspeed":
        words = [DEEPSPEED, *_deepspeed_arguments(group), sys.executable, *program]
    else:
        words = ["torch.distributed.run", *_torchrun_arguments(group), *program]
    return " ".join([*variables, shlex.join([sys.executable, "-m", *words])])


def run_ranks(group: Group, program: Sequence[str], launcher: str) -> None:
    """Start the ranks, forward signals to them, and wait until all have exited.

    Args:
        group: The ranks.
        program: Arguments of Python for a rank: a script, or -m and a module, and its arguments.
        launcher: "torchrun" or "deepspeed".

    Raises:
        RankError: A rank failed; this process should exit with its code.
        UserError: The launcher failed, or the rendezvous of several machines did.
    """
    os.environ.update(_environment(group))
    os.environ[LAUNCHER] = "" if launcher == "deepspeed" else str(os.getpid())
    if launcher == "deepspeed":
        with _forwarded_signals(_grandchildren):
            _run_deepspeed(_deepspeed_arguments(group), program)
    else:
        with _forwarded_signals(lambda: _children(os.getpid())), _soon_killed():
            _run_torchrun([*_torchrun_arguments(group), *program])


def _environment(group: Group) -> dict[str, str]:
    """Variables to add to the environment of the ranks."""
    if "OMP_NUM_THREADS" in os.environ:
        return {}
    return {"OMP_NUM_THREADS": str(max(1, torch.get_num_threads() // group.processes))}


def _torchrun_arguments(group: Group) -> list[str]:
    """The arguments of torchrun before the program."""
    endpoint = group.rendezvous or "127.0.0.1:0"  # port 0: any free port
    rendezvous = ["--rdzv-backend", "c10d", "--rdzv-endpoint", endpoint]
    if group.rendezvous is None:
        rendezvous += ["--local-addr", "127.0.0.1"]
    return ["--nnodes", str(group.nodes), "--nproc-per-node", str(group.processes), *rendezvous]


def _run_torchrun(arguments: Sequence[str]) -> None:
    """Run torchrun within this process."""
    config, entrypoint, rest = config_from_args(parse_args(arguments))  # type: ignore[no-untyped-call] # torch
    config.signals_to_handle = "SIGQUIT"  # the other signals are handled here
    logging.disable(logging.ERROR)  # torchrun logs a failure over many lines; we report it in one
    try:
        elastic_launch(config, entrypoint)(*rest)
    except ChildFailedError as error:
        failures = sorted(error.failures.items(), key=lambda failure: failure[1].timestamp)
        raise first_failure({rank: end.exitcode for rank, end in failures}) from None
    except (RendezvousError, DistNetworkError) as error:
        raise UserError(
            f"--rendezvous {config.rdzv_endpoint}: the {config.max_nodes} machines did not meet, "
            f"or one has left ({reason_of(error)}); run the same command on each"
        ) from None
    finally:
        logging.disable(logging.NOTSET)


@contextmanager
def _soon_killed() -> Iterator[None]:
    """Within the context, torchrun kills the other ranks `GRACE` seconds after one has failed.

    Its default is 30 seconds, and it has no option for it.
    """
    close = PContext.close

    def close_soon(
        self: PContext, death_sig: signal.Signals | None = None, timeout: int = GRACE
    ) -> None:
        close(self, death_sig, timeout)

    PContext.close = close_soon  # type: ignore[method-assign]
    try:
        yield
    finally:
        PContext.close = close  # type: ignore[method-assign]


def _deepspeed_arguments(group: Group) -> list[str]:
    """The arguments of DeepSpeed's launcher before the program, which begins with an executable."""
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
    """Run DeepSpeed's launcher as a child process."""
    with temporary_folder() as folder:
        report = folder / "codes"
        reporting = ["sh", "-c", _REPORTING, str(report), sys.executable, *program]
        launcher = subprocess.Popen(  # noqa: S603 - our own program
            [sys.executable, "-m", DEEPSPEED, *arguments, *reporting],
            start_new_session=True,  # Ctrl-C reaches this process alone, which forwards it
            # DeepSpeed's launcher ends its ranks at SIGTERM; SIGKILL would leave them running.
            preexec_fn=partial(end_with_parent, str(os.getpid()), signal.SIGTERM),
        )
        try:
            code = launcher.wait()
        finally:
            launcher.terminate()
            launcher.wait()
            with suppress(ProcessLookupError):  # ranks that survive if the launcher was killed
                os.killpg(launcher.pid, signal.SIGKILL)
        lines = report.read_text().splitlines() if report.exists() else []
    codes = {int(rank): int(code) for rank, code in map(str.split, lines)}
    failed = {rank: code for rank, code in codes.items() if code}
    if failed:
        raise first_failure(failed)
    if code:
        raise UserError(f"DeepSpeed's launcher exited with code {code}, for the reason above")


def first_failure(codes: Mapping[int, int]) -> RankError:
    """The failure to report: a rank that printed its reason, or else the earliest.

    Args:
        codes: Exit codes of the failed ranks, as `RankError` takes them, the earliest first.
    """
    reasons = (UserError.exit_code, UntrustedNumericsError.exit_code)
    rank = next((rank for rank, code in codes.items() if code in reasons), next(iter(codes)))
    return RankError(rank, codes[rank])


def _children(process: int) -> list[int]:
    """The running child processes of a process."""
    files = [*Path(f"/proc/{process}/task").glob("*/children")]
    if files:
        text = " ".join(file.read_text() for file in files)
    else:  # not Linux
        command = ["pgrep", "-P", str(process)]
        text = subprocess.run(command, capture_output=True, text=True, check=False).stdout  # noqa: S603 - ours
    return [int(number) for number in text.split()]


def _grandchildren() -> list[int]:
    """The ranks under DeepSpeed's launcher: children of shells that are its children."""
    level = [os.getpid()]
    for _ in range(3):
        level = [child for process in level for child in _children(process)]
    return level


@contextmanager
def _forwarded_signals(ranks: Callable[[], list[int]]) -> Iterator[None]:
    """Within the context, SIGTERM, SIGINT or SIGHUP make all ranks save a checkpoint and exit.

    A second Ctrl-C kills them. If no rank runs yet, this process exits at once; if the signal kills
    a rank, because it is not ready to save, this process exits as if the signal had killed it.
    """
    received: list[int] = []

    def forward(number: int, frame: FrameType | None) -> None:
        received.append(number)
        impatient = received.count(signal.SIGINT) > 1
        running = ranks()
        if not running:
            if impatient or len(received) == 1:
                on_interrupt(number, frame)
            return  # the ranks have exited, and the launcher is about to
        what = "killing them" if impatient else "asking them to save and exit"
        console.say(f"{signal.Signals(number).name}: {counted(len(running), 'rank')}, {what}")
        for rank in running:
            with suppress(ProcessLookupError):
                os.kill(rank, signal.SIGKILL if impatient else signal.SIGTERM)

    before = {number: signal.signal(number, forward) for number in handled_stops()}
    try:
        yield
    except RankError as error:
        if received and error.exit_code - 128 in (signal.SIGTERM, signal.SIGKILL):
            on_interrupt(received[0], None)
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
