"""Data parallelism for commands: a worker per device writes a journal of its part of the work.

The main process then writes the output from these journals, in the same way as it resumes a killed
run from its own. So the output is bit for bit that of a run on one device, and a killed run can be
resumed.
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
    """Options (a frozen dataclass) of a command that can run on several devices."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    @property
    def device(self) -> str:
        """One device, or several separated by commas."""

    @property
    def output(self) -> Path | None:
        """The output file; None for stdout."""


T = TypeVar("T", bound=SharedOptions)


@dataclass(frozen=True)
class Part:
    """A part of the work: the records `first` to `end` of the input, 0-based and half-open.

    Attributes:
        journal: Journal of its results; None for no journal.
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
    """The worker of a device failed; the command exits with its exit code."""

    def __init__(self, device: str, reason: str, code: int) -> None:
        super().__init__(f"--device {device}: {reason}")
        self.exit_code = code


def pick_devices(names: str) -> list[str]:
    """Parse `--device`: one device as `open_model` takes it, several, or all GPUs.

    Raises:
        UserError: There are no GPUs; or devices are of different types, whose precision differs.
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
    """The `count` + 1 borders of parts of nearly equal size."""
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

    On a single device that is one part, not computed yet. On several devices, workers have called
    `compute` for each part before.

    Args:
        options: Options of the command.
        devices: Devices; if there are several, each gets a worker.
        borders: Index of the first record of each part, and the end of the last part; empty if the
            input can be read only once.
        compute: Computes a part and writes its journal; gets the options with a single `device`.
        amount: Total for the progress bar (None if unknown), and its unit.

    Raises:
        DeviceError: A worker failed; journals are kept, so that the same command resumes.
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
    """Run each job in its own worker, even a single one; the first failure ends all."""
    devices: dict[Task, str] = {partial(compute, *job): job[0].device for job in jobs}
    with console.progress("score", *amount) as bar:
        try:
            for _ in run_tasks(iter(devices), max(len(devices), 2), bar.advance):
                pass
        except WorkerError as error:
            way_out = "; the same command resumes from there" if error.died else ""
            reason = f"{error}{way_out}"
            raise DeviceError(devices[error.task], reason, error.exit_code) from None
