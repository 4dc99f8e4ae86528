"""The tasks of `evo2 tokenize`; workers import this module and not `run`, so they start faster."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from evo2cli.data.token_writer import PartWriter
from evo2cli.errors import UserError
from evo2cli.files import reading, writing
from evo2cli.genome.source import share_memory
from evo2cli.tokenize.pieces import Piece
from evo2cli.tokenize.reader import PieceReader, Tally
from evo2cli.workers import Advance, Task

_BLOCK = 1 << 20
Hashes = dict[Path, tuple[int, str]]  # size and SHA-256 of files


@dataclass(frozen=True)
class Result:
    """The result of a task, or the error that ended it.

    Attributes:
        number: Number of the task, in the order of the inputs.
        value: The result or the error.
    """

    number: int
    value: Tally | Hashes | UserError


def run_numbered(number: int, task: Task, advance: Advance) -> Result:
    """Run a task, and return its result with its number."""
    try:
        return Result(number, task(advance))
    except UserError as error:
        return Result(number, error)


def read_part(
    reader: PieceReader,
    piece: Piece,
    part: Path,
    held_out: Path,
    output: Path,
    workers: int,
    advance: Advance,
) -> Tally:
    """Read a piece in a worker process into the folder `part`.

    Args:
        reader: Reads it.
        piece: The piece.
        part: The folder; must not exist.
        held_out: File with `content_sha256` of the documents of `valid` files; need not exist.
        output: The token set, for error messages.
        workers: Number of workers, among which the memory limit is divided.
        advance: See `PieceReader.read`.

    Raises:
        UserError: See `PieceReader.read`.
    """
    share_memory(workers)
    with writing(output), PartWriter(part) as writer:
        return reader.read(piece, writer, () if reader.valid else _lines_of(held_out), advance)


@cache
def _lines_of(file: Path) -> frozenset[str]:
    return frozenset(file.read_text(encoding="ascii").split() if file.is_file() else ())


def hash_files(paths: Sequence[Path], is_shown: bool, advance: Advance) -> Hashes:
    """Size and SHA-256 of files; advances the progress bar only if `is_shown`."""
    return {path: _file_sha256(path, advance if is_shown else None) for path in paths}


def _file_sha256(path: Path, advance: Advance | None) -> tuple[int, str]:
    size, digest = 0, hashlib.sha256()
    with reading(path), path.open("rb", buffering=0) as file:
        while block := file.read(_BLOCK):
            digest.update(block)
            size += len(block)
            if advance is not None:
                advance(len(block))
    return size, digest.hexdigest()
