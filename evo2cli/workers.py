"""A pool of worker processes that ends cleanly on Ctrl-C and reports a dead worker in one line."""

import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Callable, Generator, Iterator
from contextlib import redirect_stderr, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from evo2cli.errors import UserError, explain
from evo2cli.processes import end_with_parent, start_child

Advance = Callable[[float], None]
# Must be picklable: a module-level function with its arguments bound by `partial`.
Task = Callable[[Advance], Any]


class WorkerError(UserError):
    """A task failed, or its worker died; the command exits with its exit code.

    Attributes:
        task: The task.
        died: Whether the worker died.
    """

    def __init__(self, task: Task, reason: str, code: int, *, died: bool = False) -> None:
        super().__init__(reason)
        self.task, self.exit_code, self.died = task, code, died


@dataclass(frozen=True)
class _Done:
    value: Any


@dataclass(frozen=True)
class _Failed:
    reason: str
    code: int


def run_tasks(
    tasks: Iterator[Task | None], count: int, advance: Advance
) -> Generator[Any, None, None]:
    """Run tasks in worker processes, and yield their results in the order of completion.

    Args:
        tasks: The tasks; each is taken once a worker is idle. None means that the next task must
            wait until a running one has finished.
        count: Largest number of workers; with 1, tasks run one by one in this process.
        advance: Called with the amounts that tasks pass to their own `Advance`.

    Raises:
        WorkerError: A worker died or a task raised an error; the other workers are killed.
    """
    if count == 1:
        for task in tasks:
            assert task is not None
            yield task(advance)
        return
    workers: dict[Connection, BaseProcess] = {}
    running: dict[Connection, Task] = {}
    try:
        while True:
            while len(running) < count and (task := next(tasks, None)) is not None:
                idle = next((pipe for pipe in workers if pipe not in running), None)
                pipe = idle or _start(workers)
                running[pipe] = task
                with suppress(BrokenPipeError):  # the worker died; `_receive` will report it
                    pipe.send(task)
            if not running:
                return
            for ready in wait(list(running)):
                assert isinstance(ready, Connection)
                message = _receive(ready, workers[ready], running[ready])
                if isinstance(message, _Done):
                    del running[ready]
                    yield message.value
                else:
                    advance(message)
    finally:
        for process in workers.values():
            process.kill()
        for process in workers.values():
            process.join()


def _start(workers: dict[Connection, BaseProcess]) -> Connection:
    """Start a worker; returns our end of its pipe."""
    context = multiprocessing.get_context("spawn")  # CUDA and threads do not survive a fork
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs,), daemon=True)
    start_child(process)
    theirs.close()
    workers[ours] = process
    return ours


def _receive(pipe: Connection, process: BaseProcess, task: Task) -> float | _Done:
    """The next message of a worker: progress, or the result of its task.

    Raises:
        WorkerError: The worker died, or its task raised an error.
    """
    try:
        message: float | _Done | _Failed = pipe.recv()
    except (EOFError, ConnectionResetError):
        process.join()
        code = process.exitcode or 0
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        raise WorkerError(task, f"its process was ended by {how}", 1, died=True) from None
    if isinstance(message, _Failed):
        raise WorkerError(task, message.reason, message.code)
    return message


def _work(pipe: Connection) -> None:
    """Main loop of a worker: run tasks from a pipe; only the parent prints, so stderr is muted."""
    end_with_parent()
    with (
        suppress(EOFError, BrokenPipeError, ConnectionResetError),  # the parent is gone
        Path(os.devnull).open("w") as devnull,
        redirect_stderr(devnull),
    ):
        while True:
            pipe.send(_run(pipe.recv(), pipe.send))


def _run(task: Task, advance: Advance) -> _Done | _Failed:
    try:
        return _Done(task(advance))
    except (BrokenPipeError, ConnectionResetError):
        raise
    except Exception as error:
        explained = explain(error)
        if explained is None:
            traceback.print_exc(file=sys.__stderr__)
            explained = f"{type(error).__name__}: {error}", 1
        return _Failed(*explained)
