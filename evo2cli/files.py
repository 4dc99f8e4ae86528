"""Output files: checked before the work begins, written whole or not at all."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from evo2cli.errors import UserError

Write = Callable[[bytes], object]


def check_file(path: Path, option: str, suffixes: tuple[str, ...]) -> None:
    """Refuse a file to write that has none of `suffixes`, is a folder, or has none.

    Raises:
        UserError: So it is.
    """
    if path.suffix not in suffixes:
        raise UserError(f"{option} {path}: needs the suffix {' or '.join(suffixes)}")
    check_folder(path, option)


def check_folder(path: Path, option: str) -> None:
    """Refuse a file to write that is a folder, or whose folder is not there.

    Raises:
        UserError: So it is.
    """
    if path.is_dir():
        raise UserError(f"{option} {path}: is a folder; name a file")
    if not path.parent.is_dir():
        raise UserError(f"{option} {path}: the folder {path.parent} is missing")


def check_output(output: Path | None, *inputs: Path | None) -> None:
    """Refuse what `check_folder` does, and an output that is one of the inputs, by whatever name.

    Raises:
        UserError: So it is.
    """
    if output is None:
        return
    check_folder(output, "--output")
    for path in inputs:
        if path and output.exists() and path.exists() and output.samefile(path):
            raise UserError(f"--output {output}: would overwrite {path}; name another file")


@contextmanager
def open_output(path: Path | None) -> Iterator[Write]:
    """Yield what writes to `path`, or to stdout for None.

    The file gets its name when everything is written; `.gz` is written as bgzip.

    Raises:
        UserError: The file cannot be written.
    """
    from Bio.bgzf import BgzfWriter  # here, because options check files and must import fast

    if path is None:
        yield sys.stdout.buffer.write
        sys.stdout.buffer.flush()
        return
    part = path.with_name(f"{path.name}.part")
    with writing(path):
        file = part.open("wb")
        # Biopython declares no types for it.
        stream = BgzfWriter(fileobj=file) if path.suffix == ".gz" else file  # type: ignore[no-untyped-call]

    def write(data: bytes) -> None:
        with writing(path):
            stream.write(data)

    try:
        yield write
        with writing(path):
            stream.close()
            part.replace(path)
    finally:
        file.close()
        part.unlink(missing_ok=True)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """An error of the file system in the user's words.

    Raises:
        UserError: In place of it.
    """
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error})") from None
