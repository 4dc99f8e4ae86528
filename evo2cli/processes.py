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
    """Handle SIGINT: raise KeyboardInterrupt, or end at once in the middle of an import.

    There, an exception may reach C++, which swallows it or aborts the process.
    """
    _interrupts.append(number)
    caller = frame
    while caller is not None:
        if caller.f_code.co_filename.startswith("<frozen importlib"):
            end_interrupted()
        caller = caller.f_back
    signal.default_int_handler(number, frame)


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
