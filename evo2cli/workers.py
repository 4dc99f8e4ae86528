"""Tasks in processes of their own: quiet by Ctrl-C, and one line if a process dies."""

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
# A function of a module with its arguments bound by `partial`: it travels to another process.
Task = Callable[[Advance], Any]


class WorkerError(UserError):
    """A task failed, or its process died; the command ends with its exit code.

    Attributes:
        task: The task.
        died: Whether its process died.
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
    """Run tasks in processes, and yield what they return, in the order in which they finish.

    Args:
        tasks: The tasks; each is taken when there is a process for it. None says that the next one
            depends on a task that has not finished.
        count: Number of processes at most; with 1, the tasks run one by one in this process.
        advance: Called with the amounts that tasks give to their `Advance`.

    Raises:
        WorkerError: A process died, or a task raised an error there; the others are ended.
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
                with suppress(BrokenPipeError):  # it died; its answer will tell
                    pipe.send(task)
            if not running:
                return
            for ready in wait(list(running)):
                assert isinstance(ready, Connection)
                answer = _receive(ready, workers[ready], running[ready])
                if isinstance(answer, _Done):
                    del running[ready]
                    yield answer.value
                else:
                    advance(answer)
    finally:
        for process in workers.values():
            process.kill()
        for process in workers.values():
            process.join()


def _start(workers: dict[Connection, BaseProcess]) -> Connection:
    """Start a process; returns our end of its pipe."""
    context = multiprocessing.get_context("spawn")  # CUDA and threads do not survive a fork
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs,), daemon=True)
    start_child(process)
    theirs.close()
    workers[ours] = process
    return ours


def _receive(pipe: Connection, process: BaseProcess, task: Task) -> float | _Done:
    """The next answer of a process.

    Raises:
        WorkerError: It died, or its task raised an error.
    """
    try:
        answer: float | _Done | _Failed = pipe.recv()
    except (EOFError, ConnectionResetError):
        process.join()
        code = process.exitcode or 0
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        raise WorkerError(task, f"its process was ended by {how}", 1, died=True) from None
    if isinstance(answer, _Failed):
        raise WorkerError(task, answer.reason, answer.code)
    return answer


def _work(pipe: Connection) -> None:
    """Run the tasks that come through a pipe, silently: only the parent process prints."""
    end_with_parent()
    with (
        suppress(EOFError, BrokenPipeError, ConnectionResetError),  # the parent is gone
        Path(os.devnull).open("w") as nowhere,
        redirect_stderr(nowhere),
    ):
        while True:
            pipe.send(_answer(pipe.recv(), pipe.send))


def _answer(task: Task, advance: Advance) -> _Done | _Failed:
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
