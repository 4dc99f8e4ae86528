"""One command on several devices: a process for each fills the journal of its part of the work.

One process then writes the output from the journals, as it would from its own after a kill. So the
bytes are those of one device, whatever the layout, and a killed run goes on where it stopped.
"""

import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, suppress
from dataclasses import dataclass, replace
from itertools import pairwise
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import TemporaryDirectory

from evo2cli import console
from evo2cli.errors import UserError, explain
from evo2cli.gpus import num_gpus
from evo2cli.journal import journal_of
from evo2cli.score.options import ScoreOptions

Advance = Callable[[float], object]


@dataclass(frozen=True)
class Part:
    """Some of the work.

    Attributes:
        journal: Where its results are kept; None for nowhere.
        first: The first record, counted from 0.
        end: The last one + 1; None for all there are.
    """

    journal: Path | None
    first: int = 0
    end: int | None = None

    @property
    def size(self) -> int | None:
        """How many records; None for all there are."""
        return None if self.end is None else self.end - self.first


Compute = Callable[[ScoreOptions, Part, Advance], None]


class DeviceError(UserError):
    """The process of a device ended badly; the command ends with its code."""

    def __init__(self, device: str, reason: str, code: int) -> None:
        super().__init__(f"--device {device}: {reason}")
        self.exit_code = code


def pick_devices(names: str) -> list[str]:
    """The devices that `--device` names: one as `open_model` takes it, several, or all GPUs.

    Raises:
        UserError: There are no GPUs, or devices of two kinds, which would differ in precision.
    """
    if names == "all":
        if not num_gpus():
            raise UserError("--device all: no GPU here; use cpu")
        return [f"cuda:{index}" for index in range(num_gpus())]
    devices = names.split(",")
    if len({device.partition(":")[0] for device in devices}) > 1:
        raise UserError(f"--device {names}: devices that share work must be of one kind")
    return devices


def even_borders(total: int | None, count: int) -> list[int]:
    """Where `count` parts of about as many records begin and end; of an unknown total none."""
    return [] if total is None else [total * index // count for index in range(count + 1)]


@contextmanager
def open_parts(
    options: ScoreOptions,
    devices: Sequence[str],
    borders: Sequence[int],
    compute: Compute,
    amount: tuple[int | None, str],
) -> Iterator[list[Part]]:
    """Yield the parts whose journals make up the output.

    For a single device that is one part, and nothing has been computed yet; for several, `compute`
    has run for each of them.

    Args:
        options: Of the command.
        devices: A process runs on each, unless there is only one.
        borders: The first record of each part, and the end of the last one.
        compute: Fills the journal of a part, with `device` of the options being one of them.
        amount: How much work there is, and what is counted.

    Raises:
        DeviceError: A process has failed; journals stay, so that the same command goes on.
    """
    output = options.output
    if len(devices) == 1:
        yield [Part(journal_of(output))]
        return
    if not borders:
        raise UserError(f"--device {options.device}: stdin has one reader only; give a file")
    with TemporaryDirectory() as folder:
        place = output or Path(folder, "stdout")
        parts = [
            Part(place.with_name(f"{place.name}.{index}-of-{len(devices)}.journal"), first, end)
            for index, (first, end) in enumerate(pairwise(borders), start=1)
        ]
        jobs = [(replace(options, device=d), p) for d, p in zip(devices, parts, strict=True)]
        _run([job for job in jobs if job[1].size], compute, amount)
        yield parts


def _run(
    jobs: Sequence[tuple[ScoreOptions, Part]], compute: Compute, amount: tuple[int | None, str]
) -> None:
    """A process for each job; the first that fails ends all."""
    context = multiprocessing.get_context("spawn")  # what CUDA needs
    running: dict[Connection, tuple[str, BaseProcess]] = {}
    with console.progress("score", *amount) as bar:
        try:
            for options, part in jobs:
                ours, theirs = context.Pipe(duplex=False)
                process: BaseProcess = context.Process(
                    target=_work, args=(compute, options, part, theirs), daemon=True
                )
                process.start()
                theirs.close()
                running[ours] = (options.device, process)
            while running:
                for pipe in wait(list(running)):
                    assert isinstance(pipe, Connection)
                    if (done := _heard(pipe, *running[pipe])) is None:
                        del running[pipe]
                    else:
                        bar.advance(done)
        finally:
            for _, process in running.values():
                process.terminate()
                process.join()


def _heard(pipe: Connection, device: str, process: BaseProcess) -> float | None:
    """How much was done since the last word of a process; None when it has ended well."""
    try:
        word = pipe.recv()
    except EOFError:
        process.join()
        if process.exitcode:
            how = f"exit code {process.exitcode}"
            if process.exitcode < 0:
                how = signal.Signals(-process.exitcode).name
            reason = f"its process was ended by {how}; the same command goes on from there"
            raise DeviceError(device, reason, 1) from None
        return None
    if isinstance(word, tuple):
        raise DeviceError(device, *word)
    return float(word)


def _work(compute: Compute, options: ScoreOptions, part: Part, pipe: Connection) -> None:
    """What runs on a device. It says nothing but through the pipe: another process says it once."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who started us ends us
    with suppress(BrokenPipeError), Path(os.devnull).open("w") as nowhere, redirect_stderr(nowhere):
        try:
            compute(options, part, pipe.send)
        except BrokenPipeError:
            raise  # who started us has gone: so do we
        except Exception as error:
            explained = explain(error)
            if explained is None:
                traceback.print_exc(file=sys.__stderr__)
                explained = f"{type(error).__name__}: {error}", 1
            pipe.send(explained)
