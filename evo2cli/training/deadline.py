"""A watchdog for hanging steps: past a deadline, every rank dumps its stacks and the run ends."""

import faulthandler
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import SEEK_END
from pathlib import Path

from evo2cli import console
from evo2cli.training.ranks import Ranks

# Seconds after the deadline.
REPORT_WAIT = 3  # until one rank reports, whether or not all have dumped their stacks
HARD_EXIT_DELAY = 7  # until faulthandler dumps and exits: unlike Python, C++ cannot block it


@contextmanager
def step_deadline(
    seconds: float | None, folder: Path, ranks: Ranks
) -> Iterator[Callable[[], None]]:
    """Yield a function that restarts the timer; call it at the start of each step.

    A step that hangs on one rank hangs on all of them. When the deadline passes, each rank appends
    the stacks of its threads to stacks-rankN.txt and exits. One rank reports which others wrote
    nothing: they are stopped, or their machine is lost. A launcher can then restart the run.

    Args:
        seconds: Longest time from one restart to the next; None for no deadline.
        folder: Folder of the run.
        ranks: The ranks.
    """
    if seconds is None:
        yield lambda: None
        return
    files = [folder / f"stacks-rank{rank}.txt" for rank in range(ranks.world)]
    own_file = files[ranks.rank]
    with own_file.open("a", encoding="utf-8") as file:
        ranks.barrier()
        before = [_size(path) for path in files]

        def expire() -> None:
            faulthandler.dump_traceback(file)
            os.fsync(file.fileno())  # for the ranks of other machines
            give_up = time.monotonic() + REPORT_WAIT
            while not all(answered := _grown(files, before)) and time.monotonic() < give_up:
                time.sleep(0.1)
            if answered.index(True) == ranks.rank:
                console.say(_report(seconds, own_file, ranks.rank, answered))
            else:
                time.sleep(1)  # the first rank to exit ends all: let the reporting rank be that one
            os._exit(1)

        timer = threading.Timer(seconds, expire)

        def restart() -> None:
            nonlocal timer
            timer.cancel()
            timer = threading.Timer(seconds, expire)
            timer.daemon = True
            timer.start()
            faulthandler.dump_traceback_later(seconds + HARD_EXIT_DELAY, exit=True, file=file)

        try:
            yield restart
        finally:
            timer.cancel()
            faulthandler.cancel_dump_traceback_later()
    if not own_file.stat().st_size:
        own_file.unlink()


def _size(path: Path) -> int:
    """Size of a file, 0 if there is none; it is opened because NFS may cache an earlier size."""
    with suppress(OSError), path.open("rb") as file:
        return file.seek(0, SEEK_END)
    return 0


def _grown(files: list[Path], before: list[int]) -> list[bool]:
    return [_size(path) > size for path, size in zip(files, before, strict=True)]


def _report(seconds: float, own_file: Path, rank: int, answered: list[bool]) -> str:
    silent = [str(other) for other, has_answered in enumerate(answered) if not has_answered]
    who = "; all ranks answered" if len(answered) > 1 else ""
    if silent:
        who = f"; rank{'s' * (len(silent) > 1)} {', '.join(silent)} did not answer"
    others = ", those of other ranks beside it" if sum(answered) > 1 else ""
    return (
        f"a step took longer than guard.step_deadline = {seconds:g} s{who}; the stacks of rank "
        f"{rank} are in {own_file}{others}; run the same command again to resume"
    )
