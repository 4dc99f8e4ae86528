"""Documents in a .jsonl file: one JSON object per line, the document under the key "text".

The file is memory-mapped, and an index holds the byte range of each text, so that reading a window
touches only its own documents. A text stored without JSON escapes (any text of DNA and tags) is
read in place; a text with escapes is decoded as a whole.
"""

import json
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import numpy as np

from evo2cli import console
from evo2cli.data.documents import Bytes, IndexedDocuments, Integers
from evo2cli.data.index_cache import cached_index
from evo2cli.errors import UserError
from evo2cli.genome.source import STDIN, WHOLE, Span, TextLimit, first_bytes, read_blocks

_KEY = "text"


class JsonlDocuments(IndexedDocuments):
    """The texts of a .jsonl file, as UTF-8.

    Args:
        name: The path as the user gave it.
        path: The file, not compressed.

    Raises:
        UserError: The file cannot be read, or a line of it is broken.
    """

    def __init__(self, name: str, path: Path) -> None:
        index = cached_index([path], rows=3, build=lambda: _build_index(path))
        offsets, self._starts, self._stops = index
        super().__init__(name, offsets, {"bytes": path.stat().st_size})
        self._file = np.asarray(np.memmap(path, np.uint8, "r"))
        self._decoded: tuple[int, bytes] = (-1, b"")

    def read_document(self, document: int, start: int, count: int) -> Bytes:
        """`count` bytes of one document, from its byte `start`."""
        begin, stop = int(self._starts[document]), int(self._stops[document])
        length = int(self.offsets[document + 1] - self.offsets[document]) - 1
        if stop - begin == length:
            return self._file[begin + start : begin + start + count]
        if self._decoded[0] != document:  # the index holds the whole line, longer than its text
            self._decoded = document, decode(self._file[begin:stop].tobytes())
        return np.frombuffer(self._decoded[1], np.uint8, count, start)


def is_jsonl(path: Path) -> bool:
    """Whether a file (compressed or not) or stdin looks like JSON lines; nothing is consumed.

    Raises:
        UserError: It cannot be read.
    """
    if path != STDIN and not path.is_file():
        return False  # a pipe: bytes read from it could not be read again
    return first_bytes(path).lstrip().startswith(b"{")


def read_texts(
    path: Path, advance: Callable[[int], None] | None = None, span: Span = WHOLE
) -> Iterator[tuple[int, bytes]]:
    """Stream the texts of a .jsonl file, plain or compressed, with their 1-based line numbers.

    Args:
        path: The file; "-" is stdin.
        advance: Called with the number of stored bytes read since its last call.
        span: The part of the file to read.

    Raises:
        UserError: The file cannot be read, or a line of it is broken.
    """
    for number, _, line in _lines(path, advance, span):
        try:
            text = decode(line)
        except ValueError as error:
            _refuse(path, number, error)
        yield number, text


def decode(line: bytes) -> bytes:
    """The text of a line, as UTF-8.

    Raises:
        ValueError: The line is not a JSON object in UTF-8, has no string under "text", or its text
            contains an unpaired surrogate or the character NUL.
    """
    try:
        record = json.loads(line.decode())
    except RecursionError:
        raise ValueError("its values are nested too deeply") from None
    if not isinstance(record, dict):
        raise ValueError("not a JSON object")
    if _KEY not in record:
        raise ValueError(f'no key "{_KEY}"')
    if not isinstance(record[_KEY], str):
        raise ValueError(f'"{_KEY}" is not a string')
    text: bytes = record[_KEY].encode()
    if b"\0" in text:
        raise ValueError("the text contains the character NUL, which marks the end of a document")
    return text


def _lines(
    path: Path, advance: Callable[[int], None] | None = None, span: Span = WHOLE
) -> Iterator[tuple[int, int, bytes]]:
    """Number, offset in the (decompressed) file, and bytes of each line that is not blank."""
    number, offset, size = span.line, span.start, 0
    parts: list[bytes] = []
    limit = TextLimit(path)
    for block in read_blocks(path, advance, span):
        *ends, rest = block.split(b"\n") if block else (b"", b"")
        for end in ends:
            line = b"".join([*parts, end])
            parts, size = [], 0
            if line.strip():
                yield number, offset, line
            number, offset = number + 1, offset + len(line) + 1
        parts.append(rest)
        size += len(rest)
        limit.check(size, f"line {number:,}")


def _build_index(path: Path) -> Integers:
    """The index [3, D + 1] of the D non-empty texts.

    Row 0 holds their offsets in the token stream; rows 1 and 2 the first and one-past-last byte in
    the file, of the text itself where it has no JSON escapes, otherwise of its whole line.

    Raises:
        UserError: A line is broken.
    """
    lengths, starts, stops = array("q"), array("q"), array("q")
    with console.progress(f"index {path.name}", path.stat().st_size, "bytes") as bar:
        for number, offset, line in _lines(path, bar.advance):
            try:
                text = decode(line)
            except ValueError as error:
                _refuse(path, number, error)
            if not text:
                continue
            start, stop = 0, len(line)
            if (at := line.find(text)) >= 0:  # equal bytes will do, whatever key they belong to
                start, stop = at, at + len(text)
            lengths.append(len(text) + 1)
            starts.append(offset + start)
            stops.append(offset + stop)
    index = np.zeros((3, len(lengths) + 1), np.int64)
    np.cumsum(lengths, out=index[0, 1:])
    index[1, :-1], index[2, :-1] = starts, stops
    return index


def _refuse(path: Path, number: int, error: ValueError) -> NoReturn:
    reason = str(error)
    if isinstance(error, json.JSONDecodeError):
        reason = f"broken JSON at character {error.pos + 1:,} ({error.msg})"
    elif isinstance(error, UnicodeDecodeError):
        reason = "not UTF-8"
    elif isinstance(error, UnicodeEncodeError):
        reason = "the text contains an unpaired surrogate"
    raise UserError(f"{path}: line {number:,}: {reason}") from None
