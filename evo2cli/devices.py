"""One command on several devices: a process for each fills the journal of its part of the work.

One process then writes the output from these journals, as it would resume from its own after a
kill. So the output has the bytes of a run on one device, and a killed run resumes where it stopped.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import Field, dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

from evo2cli import console
from evo2cli.errors import UserError
from evo2cli.files import beside, temporary_folder
from evo2cli.gpus import num_gpus
from evo2cli.journal import journal_of
from evo2cli.workers import Task, WorkerError, run_tasks
from stripedhyena2.progress import Progress


class SharedOptions(Protocol):
    """Options of a command that several devices can share: a frozen dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    @property
    def device(self) -> str:
        """One device, or several with commas."""

    @property
    def output(self) -> Path | None:
        """The output file; None for stdout."""


T = TypeVar("T", bound=SharedOptions)


@dataclass(frozen=True)
class Part:
    """A part of the work: the records `first` to `end` of the input, 0-based and half-open.

    Attributes:
        journal: File that keeps its results; None to keep none.
        first: Index of the first record.
        end: Index after the last record; None for the end of the input.
    """

    journal: Path | None
    first: int = 0
    end: int | None = None

    @property
    def size(self) -> int | None:
        """Number of records; None for all."""
        return None if self.end is None else self.end - self.first


class DeviceError(UserError):
    """The process of a device failed; the command ends with its exit code."""

    def __init__(self, device: str, reason: str, code: int) -> None:
        super().__init__(f"--device {device}: {reason}")
        self.exit_code = code


def pick_devices(names: str) -> list[str]:
    """The devices that `--device` names: one as `open_model` takes it, several, or all GPUs.

    Raises:
        UserError: There are no GPUs; or devices are of two kinds, which would differ in precision.
    """
    if names == "all":
        if not num_gpus():
            raise UserError("--device all: there is no GPU here; use --device cpu")
        return [f"cuda:{index}" for index in range(num_gpus())]
    devices = names.split(",")
    if len({device.partition(":")[0] for device in devices}) > 1:
        raise UserError(f"--device {names}: devices that share work must be of one kind")
    return devices


def even_borders(total: int, count: int) -> list[int]:
    """The borders of `count` parts of nearly equal size."""
    return [total * index // count for index in range(count + 1)]


@contextmanager
def open_parts(
    options: T,
    devices: Sequence[str],
    borders: Sequence[int],
    compute: Callable[[T, Part, Progress], None],
    amount: tuple[int | None, str],
) -> Iterator[list[Part]]:
    """Yield the parts of the work, whose journals make up the output.

    For a single device that is one part with nothing computed yet. For several devices, `compute`
    has filled the journal of each part.

    Args:
        options: Options of the command.
        devices: Devices; if there are several, a process runs on each.
        borders: Index of the first record of each part, and the end of the last part; empty if the
            input can be read only once.
        compute: Fills the journal of a part; gets the options with `device` set to one device.
        amount: Amount of work, and its unit.

    Raises:
        DeviceError: A process has failed; journals stay, so that the same command resumes.
    """
    output = options.output
    if len(devices) == 1:
        yield [Part(journal_of(output))]
        return
    if not borders:
        raise UserError(f"--device {options.device}: only one process can read stdin; give a file")
    with temporary_folder() as folder:
        names = [f".{index}-of-{len(devices)}.journal" for index in range(1, len(devices) + 1)]
        parts = [
            Part(beside(output, name) or folder / name, first, end)
            for name, (first, end) in zip(names, pairwise(borders), strict=True)
        ]
        jobs = [(replace(options, device=d), p) for d, p in zip(devices, parts, strict=True)]
        _run([job for job in jobs if job[1].size], compute, amount)
        yield parts


def _run(
    jobs: Sequence[tuple[T, Part]],
    compute: Callable[[T, Part, Progress], None],
    amount: tuple[int | None, str],
) -> None:
    """Run a process for each job, also for a single one; the first that fails ends all."""
    devices: dict[Task, str] = {partial(compute, *job): job[0].device for job in jobs}
    with console.progress("score", *amount) as bar:
        try:
            for _ in run_tasks(iter(devices), max(len(devices), 2), bar.advance):
                pass
        except WorkerError as error:
            way_out = "; the same command resumes from there" if error.died else ""
            reason = f"{error}{way_out}"
            raise DeviceError(devices[error.task], reason, error.exit_code) from None
