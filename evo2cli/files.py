"""Files: errors in one line; outputs checked before the work begins, written whole or not at all.

Whatever writes an output file fills a temporary file beside it and renames that at the end, so that
a killed run never leaves half a file under the name of a whole one.
"""

import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from evo2cli.errors import UserError

Write = Callable[[bytes], object]


def check_file(path: Path, option: str, suffixes: tuple[str, ...]) -> None:
    """Refuse an output file with another suffix than `suffixes`, or in a folder that is missing.

    Raises:
        UserError: The message names `option`.
    """
    if path.suffix not in suffixes:
        raise UserError(f"{option} {path}: needs the suffix {' or '.join(suffixes)}")
    check_folder(path, option)


def check_folder(path: Path, option: str) -> None:
    """Refuse an output file that is an existing folder, or in a folder that is missing.

    Raises:
        UserError: The message names `option`.
    """
    if path.is_dir():
        raise UserError(f"{option} {path}: is a folder; name a file")
    if not path.parent.is_dir():
        raise UserError(f"{option} {path}: the folder {path.parent} is missing")


def check_output(output: Path | None, *inputs: Path | None) -> None:
    """Refuse an `--output` as `check_folder` does, or one that is also an input (links followed).

    Raises:
        UserError: The output cannot be written, or would overwrite an input.
    """
    if output is None:
        return
    check_folder(output, "--output")
    for path in inputs:
        if path and output.exists() and path.exists() and output.samefile(path):
            raise UserError(f"--output {output}: would overwrite {path}; name another file")


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn an OSError into one line that says that `path` cannot be read.

    Raises:
        UserError: In place of the OSError.
    """
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an OSError into one line that says that `path` cannot be written.

    Raises:
        UserError: In place of the OSError.
    """
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error})") from None


@contextmanager
def atomic_path(path: Path, *, shared: bool = False) -> Iterator[Path]:
    """Yield the path of a file to fill, which is renamed to `path` when the block succeeds.

    If the block raises, the file is removed and `path` stays as it was. Errors of the block keep
    their type: put `writing(path)` around what writes.

    Args:
        path: Output file.
        shared: Several processes may write the same file at once. The temporary name is then
            unique; otherwise it is fixed, so that what a killed run left is overwritten.

    Raises:
        UserError: The file cannot be renamed.
    """
    part = path.with_name(f"{path.name}.{uuid.uuid4().hex}.part" if shared else f"{path.name}.part")
    try:
        yield part
        with writing(path):
            part.replace(path)
    finally:
        with suppress(OSError):
            part.unlink()


@contextmanager
def open_output(path: Path | None) -> Iterator[Write]:
    """Yield a function that writes bytes to `path`, or to stdout if `path` is None.

    The file appears under its name when everything is written; `.gz` is compressed with bgzip.

    Raises:
        UserError: The file cannot be written.
    """
    if path is None:
        yield sys.stdout.buffer.write
        sys.stdout.buffer.flush()
        return
    with atomic_path(path) as part:
        with writing(path):
            file = part.open("wb")
        stream: Any = file
        if path.suffix == ".gz":
            # Imported late: options of commands import this module, and `--help` must stay quick.
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
            file.close()
