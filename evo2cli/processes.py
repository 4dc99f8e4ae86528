"""Signal handling: exit cleanly on Ctrl-C or SIGTERM, and end child processes with their parent.

This module is imported before the rest of the program, so it imports nothing slow.
"""

import os
import signal
import sys
from contextlib import suppress
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess

# Ctrl-C; what a batch system or `kill` sends; what a terminal sends when it closes.
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
INTERRUPTED = 130  # exit code: 128 + SIGINT, as in shells

_interrupts: list[int] = []  # signals that `on_interrupt` has received

# Environment variable of ranks that `evo2` starts: the PID of `evo2`, or "" if it is not their
# parent.
LAUNCHER = "EVO2_LAUNCHER"
_PR_SET_PDEATHSIG = 1


def handled_stops() -> list[signal.Signals]:
    """`STOPS` that are not ignored: nohup ignores SIGHUP, a background job of a script SIGINT."""
    return [number for number in STOPS if signal.getsignal(number) != signal.SIG_IGN]


def on_interrupt(number: int, frame: FrameType | None) -> None:
    """Handler of `STOPS`: raises KeyboardInterrupt, but during an import only when it has finished.

    Raised within an import, the exception may reach C++, which swallows it or aborts the process. A
    command that is still importing its implementation has nothing to clean up, and exits at once.
    Only Ctrl-C interrupts the cleanup: a terminal that closes sends SIGHUP twice, and `timeout`
    SIGTERM.
    """
    if _interrupts and number != signal.SIGINT:
        return
    _interrupts.append(number)
    importer = _importer(frame)
    if importer is None:
        signal.default_int_handler(number, frame)
    if importer.f_globals["__name__"].startswith("evo2cli.commands."):
        end_interrupted()
    importer.f_trace = _raise_interrupt
    sys.settrace(lambda *_: None)  # without it, `f_trace` is not called


def _importer(frame: FrameType | None) -> FrameType | None:
    """The frame of the outermost import statement in progress; None if there is none."""
    importer = None
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            importer = frame.f_back
        frame = frame.f_back
    return importer


def _raise_interrupt(_frame: FrameType, _event: str, _argument: object) -> NoReturn:
    raise KeyboardInterrupt


def was_interrupted() -> bool:
    """Whether one of `STOPS` came; C++ may have turned the KeyboardInterrupt into another error."""
    return bool(_interrupts)


def end_interrupted() -> NoReturn:
    """Exit as interrupted, after all cleanup, with 128 + the number of the signal.

    A normal exit would wait for threads, and might report the signal instead of the exit code. Of a
    rank, the launcher tells how it ended.
    """
    for number in STOPS:
        signal.signal(number, signal.SIG_IGN)
    with suppress(OSError, RuntimeError, ValueError):  # closed, or interrupted while writing
        sys.stdout.flush()
    number = signal.Signals(_interrupts[0]) if _interrupts else signal.SIGINT
    how = "interrupted" if number == signal.SIGINT else f"ended by {number.name}"
    if LAUNCHER not in os.environ:
        with suppress(OSError):
            os.write(2, f"evo2: {how}\n".encode())
    os._exit(128 + number)


def start_child(process: "BaseProcess") -> None:
    """Start a child with SIGINT blocked: Ctrl-C reaches only the parent, which ends the child."""
    from multiprocessing.resource_tracker import ensure_running

    ensure_running()  # otherwise `start` would start the tracker, which unblocks SIGINT
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # the child inherits it
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def end_with_parent(parent: str = "", number: int = signal.SIGKILL) -> None:
    """Have the kernel send this process a signal when its parent ends (Linux only).

    Without this, the children of a killed process keep running.

    Args:
        parent: PID of the parent, or "" if unknown; if it has already ended, the signal is sent
            now.
        number: The signal.
    """
    import ctypes

    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)
    except AttributeError:  # not Linux
        return
    if parent and parent != str(os.getppid()):
        os.kill(os.getpid(), number)
