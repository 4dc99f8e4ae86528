"""Files: one-line errors, early checks of outputs, locks and atomic writes.

`stripedhyena2.outputs` implements them, also for links, devices and pipes.
"""

import hashlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from evo2cli import console
from evo2cli.errors import UserError

Write = Callable[[bytes], object]
_CHUNK = 1 << 24  # bytes hashed at a time


class OutputOptions(Protocol):
    """Options of a command with a single output."""

    @property
    def output(self) -> Path | None:
        """The file or folder; None for stdout."""


OptionsT = TypeVar("OptionsT", bound=OutputOptions)
P = ParamSpec("P")
T = TypeVar("T")


def check_file(path: Path, option: str, suffixes: tuple[str, ...]) -> None:
    """Refuse an output file without one of these suffixes, or in a folder that does not exist.

    Raises:
        UserError: The message names `option`.
    """
    if path.suffix not in suffixes:
        raise UserError(f"{option} {path}: needs the suffix {' or '.join(suffixes)}")
    check_folder(path, option)


def check_folder(path: Path, option: str) -> None:
    """Refuse an output file that is an existing folder, or in a folder that does not exist.

    Raises:
        UserError: The message names `option`.
    """
    if path.is_dir():
        raise UserError(f"{option} {path}: is a folder; name a file")
    if not path.parent.is_dir():
        raise UserError(f"{option} {path}: the folder {path.parent} is missing")


def check_output(output: Path | None, *inputs: Path | None, option: str = "--output") -> None:
    """Refuse an output as `check_folder` does, or one that is also an input (links followed).

    Raises:
        UserError: The output cannot be written, or would overwrite an input; the message names
            `option`.
    """
    if output is None:
        return
    check_folder(output, option)
    for path in inputs:
        if path and output.exists() and path.exists() and output.samefile(path):
            raise UserError(f"{option} {output}: would overwrite {path}; name another file")


def reading(path: Path) -> AbstractContextManager[None]:
    """Turn an OSError into a one-line error that `path` cannot be read.

    Raises:
        UserError: In place of the OSError.
    """
    return _explained(path, "read")


def writing(path: Path) -> AbstractContextManager[None]:
    """Turn an OSError into a one-line error that `path` cannot be written.

    Raises:
        UserError: In place of the OSError.
    """
    return _explained(path, "written")


@contextmanager
def _explained(path: Path, done: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: cannot be {done} ({error.strerror or error})") from None


def sha256(paths: Sequence[Path]) -> str:
    """SHA-256 of concatenated files, with a progress bar: a large model takes minutes."""
    digest = hashlib.sha256()
    total = sum(path.stat().st_size for path in paths)
    with console.progress("check", total, "bytes") as bar:
        for path in paths:
            with path.open("rb") as file:
                while chunk := file.read(_CHUNK):
                    digest.update(chunk)
                    bar.advance(len(chunk))
    return digest.hexdigest()


# The functions below import `stripedhyena2` late: the options of commands import this module, and
# `evo2 --help` must start fast.


def size_and_time(file: Path) -> tuple[int, int]:
    """Size in bytes and modification time in nanoseconds, to detect that a file has changed."""
    stat = file.stat()
    return stat.st_size, stat.st_mtime_ns


def is_stream(path: Path | None) -> bool:
    """Whether an output is stdout (None), a device or a pipe, and not a file."""
    from stripedhyena2 import outputs

    return path is None or outputs.is_stream(path)


def require_utf8(path: Path, form: str) -> None:
    """Refuse a path that is not UTF-8, for a format whose library does not support it.

    Raises:
        UserError: The path is not UTF-8.
    """
    from stripedhyena2.outputs import is_utf8

    if not is_utf8(path):
        raise UserError(f"{path}: {form} needs a path in UTF-8; rename file or folder")


def beside(output: Path | None, suffix: str) -> Path | None:
    """The path of an auxiliary file next to an output; None for a stream.

    Args:
        output: The output; links are followed.
        suffix: Appended to the name of the output, e.g. ".journal".
    """
    from stripedhyena2 import outputs

    if output is None or outputs.is_stream(output):
        return None
    real = outputs.real_path(output)
    return real.with_name(f"{real.name}{suffix}")


@contextmanager
def locked(output: Path | None) -> Iterator[None]:
    """Lock an output, if it is a file or folder, against other commands that write it.

    Raises:
        OutputInUseError: Another process holds the lock.
        UserError: The folder of the output cannot be written.
    """
    from stripedhyena2 import outputs

    with ExitStack() as stack:
        if output is not None:
            with writing(output):
                stack.enter_context(outputs.locked(output))
        yield


def locks_output(
    work: Callable[Concatenate[OptionsT, P], T],
) -> Callable[Concatenate[OptionsT, P], T]:
    """Decorate the main function of a command to hold the lock of `options.output` meanwhile.

    Of several ranks, only rank 0 writes the output and locks it.
    """

    @wraps(work)
    def run(options: OptionsT, /, *args: P.args, **others: P.kwargs) -> T:
        check_output(options.output)
        is_first = os.environ.get("RANK", "0") == "0"
        with locked(options.output if is_first else None):
            return work(options, *args, **others)

    return run


@contextmanager
def atomic_path(path: Path, *, wait: bool = False) -> Iterator[Path]:
    """Yield the path of a temporary file, which is renamed to `path` if the block succeeds.

    If the block raises, the file is removed and `path` stays unchanged. Errors of the block keep
    their type: wrap what writes in `writing(path)`.

    Args:
        path: Output file; a device or a pipe gets the bytes once the file is complete.
        wait: Wait while another process writes the same file.

    Raises:
        OutputInUseError: Another process writes the file.
        UserError: The file cannot be written.
    """
    from stripedhyena2 import outputs

    with ExitStack() as stack:
        with writing(path):
            part = stack.enter_context(outputs.atomic_path(path, wait=wait))
        yield part
        with writing(path):
            stack.close()


@contextmanager
def open_output(path: Path | None) -> Iterator[Write]:
    """Yield a function that writes bytes to `path`, or to stdout if `path` is None.

    A file is renamed to `path` once it is complete; a device or a pipe gets the bytes as they come.
    `.gz` is compressed with bgzip.

    Raises:
        OutputInUseError: Another process writes the file.
        UserError: It cannot be written.
    """
    if path is None:
        yield sys.stdout.buffer.write
        sys.stdout.buffer.flush()
        return
    with nullcontext(path) if is_stream(path) else atomic_path(path) as part:
        with writing(path):
            file = part.open("wb")
        stream: Any = file
        if path.suffix == ".gz":
            from Bio.bgzf import BgzfWriter

            stream = BgzfWriter(fileobj=file)  # type: ignore[no-untyped-call]

        def write(data: bytes) -> None:
            with writing(path):
                stream.write(data)

        try:
            yield write
            with writing(path):
                stream.close()
        finally:
            with suppress(OSError):  # of a full disk, which has been reported
                file.close()


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """Yield a temporary folder; removes those that killed processes have left behind."""
    from stripedhyena2 import outputs

    with outputs.temporary_folder() as folder:
        yield folder
