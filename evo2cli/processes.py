"""How processes end: quietly by Ctrl-C, and together with the process that started them.

Everything here must be ready before the rest of the program is loaded.
"""

import os
import signal
import sys
from contextlib import suppress
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess

INTERRUPTED = 130  # 128 + SIGINT, as shells have it

_interrupts: list[int] = []  # that `on_interrupt` has received

# In the environment of ranks that `evo2` starts: their parent, or "" if that is another process.
LAUNCHER = "EVO2_LAUNCHER"
_PR_SET_PDEATHSIG = 1


def on_interrupt(number: int, frame: FrameType | None) -> None:
    """Handle SIGINT: raise KeyboardInterrupt; during an import, once the import is over.

    In the middle of it, the exception may reach C++, which swallows it or aborts the process. A
    command that is importing its own work has nothing to tidy up yet, and ends at once.
    """
    _interrupts.append(number)
    importer = _importer(frame)
    if importer is None:
        signal.default_int_handler(number, frame)
    if importer.f_globals["__name__"].startswith("evo2cli.commands."):
        end_interrupted()
    importer.f_trace = _raise_interrupt
    sys.settrace(lambda *_: None)  # without it, `f_trace` is not called


def _importer(frame: FrameType | None) -> FrameType | None:
    """The frame that waits for an import; of imports within imports, for the outermost."""
    found = None
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            found = frame.f_back
        frame = frame.f_back
    return found


def _raise_interrupt(_frame: FrameType, _event: str, _argument: object) -> NoReturn:
    raise KeyboardInterrupt


def was_interrupted() -> bool:
    """Whether SIGINT came: C++ may have made another exception of KeyboardInterrupt."""
    return bool(_interrupts)


def end_interrupted() -> NoReturn:
    """End this process as interrupted, after all that must be tidied up.

    Python's own way out would wait for threads, and may report SIGINT in place of the exit code.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with suppress(OSError, RuntimeError, ValueError):  # closed, or interrupted while writing
        sys.stdout.flush()
    with suppress(OSError):
        os.write(2, b"evo2: interrupted\n")
    os._exit(INTERRUPTED)


def start_child(process: "BaseProcess") -> None:
    """Start a process that its parent ends: Ctrl-C in a terminal reaches the parent alone."""
    from multiprocessing.resource_tracker import ensure_running

    ensure_running()  # the first child would start it, which unblocks SIGINT
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # the child inherits it
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def end_with_parent(parent: str = "", number: int = signal.SIGKILL) -> None:
    """From now on, the system sends this process a signal when its parent has ended.

    Without this, what a killed process has started runs on. Only Linux has it.

    Args:
        parent: Number of the parent, or "" if unknown; if it has ended, this process ends now.
        number: The signal.
    """
    import ctypes

    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)
    except AttributeError:  # not Linux
        return
    if parent and parent != str(os.getppid()):
        os.kill(os.getpid(), number)
