"""Divide the inputs into pieces of about equal size that are read independently."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from evo2cli.data.jsonl import is_jsonl
from evo2cli.files import reading
from evo2cli.genome.fasta import has_old_line_ends
from evo2cli.genome.source import WHOLE, Span, is_file, is_plain_file

PIECE = 1 << 24  # bytes as stored, i.e. before decompression
_BLOCK = 1 << 20


@dataclass(frozen=True)
class Piece:
    """A part of the inputs: whole files, or a span of one file.

    Attributes:
        files: The files.
        span: The part of the file to read; `WHOLE` if there are several files.
    """

    files: tuple[Path, ...]
    span: Span = WHOLE

    @property
    def first_files(self) -> tuple[Path, ...]:
        """The files that begin in this piece."""
        return () if self.span.start else self.files


def cut_into_pieces(paths: Sequence[Path]) -> Iterator[Piece]:
    """Divide inputs into pieces, in order.

    Records, lines and compressed files are never cut.

    Raises:
        UserError: A file cannot be read.
    """
    small: list[Path] = []
    size = 0
    for path in paths:
        file_size = path.stat().st_size if is_file(path) else 0
        if small and size + file_size > PIECE:
            yield Piece(tuple(small))
            small, size = [], 0
        if file_size > PIECE:
            yield from (Piece((path,), span) for span in _cut(path, file_size))
        else:
            small.append(path)
            size += file_size
    if small:
        yield Piece(tuple(small))


def _cut(path: Path, size: int) -> Iterator[Span]:
    """Cut a file of `size` bytes into spans."""
    is_lines = is_jsonl(path)
    border = b"\n" if is_lines else b"\n>"
    with reading(path), path.open("rb") as file:
        if not is_plain_file(path) or has_old_line_ends(file.read(_BLOCK)):
            yield WHOLE
            return
        start, line = 0, 1
        while start < size:
            stop = _find(file, border, start + PIECE, size)
            yield Span(start, stop, line)
            if is_lines and stop < size:
                line += _count_lines(file, start, stop)
            start = stop


def _find(file: BinaryIO, border: bytes, start: int, size: int) -> int:
    """Offset just after the first byte of the next `border`; `size` if there is none."""
    start = min(start, size)
    file.seek(start - 1)
    carried = b""
    while block := file.read(_BLOCK):
        text = carried + block
        # Searching for one byte is much faster than for two, the first of which ends every line.
        if border[-1:] in block and (at := text.find(border)) >= 0:
            return start + at
        start += len(text) - 1
        carried = text[-1:]
    return size


def _count_lines(file: BinaryIO, start: int, stop: int) -> int:
    file.seek(start)
    blocks = (file.read(min(_BLOCK, stop - offset)) for offset in range(start, stop, _BLOCK))
    return sum(int(np.count_nonzero(np.frombuffer(b, np.uint8) == ord("\n"))) for b in blocks)
