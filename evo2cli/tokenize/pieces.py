"""Cut the inputs into pieces that are read independently, each about as much work as the others."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from evo2cli.data.jsonl import is_jsonl
from evo2cli.files import reading
from evo2cli.genome.fasta import has_old_line_ends
from evo2cli.genome.source import WHOLE, Span, is_file, is_plain_file

PIECE = 1 << 24  # stored bytes
_BLOCK = 1 << 20


@dataclass(frozen=True)
class Piece:
    """A part of the inputs: whole files, or one span of a file.

    Attributes:
        files: The files.
        span: The part of them to read; `WHOLE` if there are several.
    """

    files: tuple[Path, ...]
    span: Span = WHOLE

    @property
    def first_files(self) -> tuple[Path, ...]:
        """The files whose first piece this is."""
        return () if self.span.start else self.files


def cut_into_pieces(paths: Sequence[Path]) -> Iterator[Piece]:
    """Cut inputs into pieces, in order.

    A record or line is never cut, nor is a compressed file.

    Raises:
        UserError: A file cannot be read.
    """
    small: list[Path] = []
    size = 0
    for path in paths:
        own = path.stat().st_size if is_file(path) else 0
        if small and size + own > PIECE:
            yield Piece(tuple(small))
            small, size = [], 0
        if own > PIECE:
            yield from (Piece((path,), span) for span in _cut(path, own))
        else:
            small.append(path)
            size += own
    if small:
        yield Piece(tuple(small))


def _cut(path: Path, size: int) -> Iterator[Span]:
    """Spans of a file of `size` bytes."""
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
    """The offset of what follows the first byte of the first border after `start`, or `size`."""
    start = min(start, size)
    file.seek(start - 1)
    carried = b""
    while block := file.read(_BLOCK):
        text = carried + block
        # Looking for one byte is much faster than for two, of which every line has the first.
        if border[-1:] in block and (at := text.find(border)) >= 0:
            return start + at
        start += len(text) - 1
        carried = text[-1:]
    return size


def _count_lines(file: BinaryIO, start: int, stop: int) -> int:
    file.seek(start)
    blocks = (file.read(min(_BLOCK, stop - offset)) for offset in range(start, stop, _BLOCK))
    return sum(int(np.count_nonzero(np.frombuffer(b, np.uint8) == ord("\n"))) for b in blocks)
