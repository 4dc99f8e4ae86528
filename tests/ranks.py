"""Checks on several gloo ranks: one set of processes runs all cases of a module.

Ranks are forked from a server that has already imported the packages they need. They do not search
those for waste: that takes long, and would copy the memory that they share.
"""

import gc
import itertools
import json
import multiprocessing
import os
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

TIMEOUT = timedelta(seconds=120)  # of ranks that wait for one that failed

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    [
        "pytest",
        "torch._dynamo",
        "stripedhyena2.parallelize",
        "evo2cli.app",
        "evo2cli.train.run",
        "evo2cli.finetune.run",
        "evo2cli.score.run",
        "evo2cli.launch.ranks",
        "deepspeed.runtime.zero.muon.original_muon",
        "deepspeed.runtime.superoffload.superoffload_stage3",  # what its engine imports at a start
        "deepspeed.module_inject.auto_ep_layer",
        "setuptools",
        "matplotlib.figure",
        "matplotlib.backends.backend_agg",
        "sklearn.linear_model",
    ]
)

Attempt = Callable[..., None]  # takes a label, a check, and the arguments of the check


def failures_on_ranks(
    count: int, folder: Path, checks: Callable[[int, Attempt], None]
) -> dict[str, str]:
    """Run `checks` on `count` processes; returns the errors by label.

    Args:
        count: The number of ranks.
        folder: An empty folder for the rendezvous and the results.
        checks: A module-level function of a rank and an `Attempt`, by which it runs each check.
    """
    mp.start_processes(_work, args=(count, folder, checks), nprocs=count, start_method="forkserver")
    found: dict[str, str] = {}
    for rank in range(count):
        found |= json.loads((folder / f"{rank}.json").read_text())
    return found


def _work(rank: int, count: int, folder: Path, checks: Callable[[int, Attempt], None]) -> None:
    gc.freeze()
    torch.set_num_threads(1)
    meeting = f"file://{folder}/meet"
    dist.init_process_group(
        "gloo", init_method=meeting, rank=rank, world_size=count, timeout=TIMEOUT
    )
    failures: dict[str, str] = {}

    def attempt(label: str, check: Callable[..., None], *arguments: Any) -> None:
        try:
            check(*arguments)
        except Exception as error:
            failures[label] = f"rank {rank}: {error!r}"

    checks(rank, attempt)
    (folder / f"{rank}.json").write_text(json.dumps(failures))
    dist.destroy_process_group()


def wait_until(condition: Callable[[], bool], seconds: float = 600) -> None:
    """Wait until a condition holds; it is an error if it never does."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def free_port() -> int:
    """A port of this machine where nothing listens now."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


@dataclass(frozen=True)
class Hold:
    """Where a command waits for a signal: at the end of a call of a method.

    Attributes:
        owner: A class.
        method: Its method.
        call: Which call, from 1.
    """

    owner: type
    method: str
    call: int

    def install(self, held: Path) -> None:
        """Let this process wait there as long as a file exists, which it makes."""
        run, calls, parent = getattr(self.owner, self.method), itertools.count(1), os.getppid()

        def run_and_wait(*arguments: Any, **named: Any) -> Any:
            result = run(*arguments, **named)
            if next(calls) == self.call:
                held.touch()
                while held.exists() and os.getppid() == parent:
                    time.sleep(0.01)
            return result

        setattr(self.owner, self.method, run_and_wait)


class World:
    """The ranks of one `evo2` command, started as a launcher starts them."""

    def __init__(
        self, count: int, folder: Path, name: str, arguments: list[str], hold: Hold | None = None
    ) -> None:
        """Start the ranks in a folder, where each writes its stderr to `name`-`rank`.log."""
        self.logs = [folder / f"{name}-{rank}.log" for rank in range(count)]
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        self.ranks: list[ForkServerProcess] = []
        for rank, log in enumerate(self.logs):
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
            environment = {} if count == 1 else {**address, **own}
            self.ranks.append(forked(log, _command, arguments, folder, environment, hold, log))

    @property
    def is_running(self) -> bool:
        """Whether all ranks are running."""
        return all(rank.is_alive() for rank in self.ranks)

    def signal(self, number: int) -> None:
        """Send a signal to every rank."""
        for rank in self.ranks:
            os.kill(rank.pid, number)

    def end_held(self, number: int) -> list[int]:
        """Send a signal to ranks that are held, once all of them are; returns their exit codes."""
        held = [log.with_suffix(".held") for log in self.logs]
        wait_until(lambda: all(file.exists() for file in held) or not self.is_running)
        assert self.is_running, self.finish()[1]
        self.signal(number)
        for file in held:
            file.unlink()
        return self.finish()[0]

    def finish(self) -> tuple[list[int], str]:
        """Wait for all ranks; when one fails, kill the others.

        Returns:
            The exit codes, and the logs of all ranks.
        """
        waiting = {rank.sentinel: rank for rank in self.ranks}
        while waiting:
            for sentinel in wait(list(waiting)):
                rank = waiting.pop(sentinel)
                rank.join()
                if rank.exitcode:
                    for other in waiting.values():
                        other.join(timeout=10)
                        other.kill()
        codes = [rank.exitcode for rank in self.ranks]
        return codes, "".join(log.read_text() for log in self.logs)


def forked(log: Path, run: Callable[..., None], *arguments: Any) -> ForkServerProcess:
    """Run a module-level function in a process that has imported what a command imports.

    It writes stderr to a file, and nothing to stdout.
    """
    process = SERVER.Process(target=_logged, args=(log, run, *arguments))
    process.start()
    return process


def _logged(log: Path, run: Callable[..., None], *arguments: Any) -> None:
    gc.freeze()
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)  # for the processes that it starts
    with log.open("w") as said:
        os.dup2(said.fileno(), sys.stderr.fileno())
    with Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())
    run(*arguments)


def _command(
    arguments: list[str], folder: Path, environment: dict[str, str], hold: Hold | None, log: Path
) -> None:
    from evo2cli.app import main

    if hold is not None:
        hold.install(log.with_suffix(".held"))
    os.chdir(folder)
    os.environ.update(environment)
    sys.argv = ["evo2", *arguments]
    main()
