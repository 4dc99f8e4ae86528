"""Documents in a .jsonl file: one JSON object a line, the document under the key "text".

The file itself is mapped. Its index says where each text stands between its quotes, so that a
window costs no more than the documents it touches. A text without a JSON escape (all that hold
nothing but DNA and tags) is read in place; one with escapes has to be decoded whole.
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
from evo2cli.genome.source import STDIN, first_bytes, read_blocks

_KEY = "text"
_BLANKS = tuple(" \t\r\n")
_parse = json.JSONDecoder().raw_decode


class JsonlDocuments(IndexedDocuments):
    """The texts of a .jsonl file, as UTF-8.

    Args:
        name: What the user calls it.
        path: The file, not compressed.

    Raises:
        UserError: It cannot be read, or a line of it is broken.
    """

    def __init__(self, name: str, path: Path) -> None:
        index = cached_index([path], rows=3, build=lambda: _build_index(path))
        offsets, self._starts, self._stops = index
        super().__init__(name, offsets, {"bytes": path.stat().st_size})
        self._file = np.asarray(np.memmap(path, np.uint8, "r"))
        self._decoded: tuple[int, bytes] = (-1, b"")

    def read_document(self, document: int, start: int, count: int) -> Bytes:
        """`count` bytes of one document from its own `start` on."""
        begin, stop = int(self._starts[document]), int(self._stops[document])
        length = int(self.offsets[document + 1] - self.offsets[document]) - 1
        if stop - begin == length:  # an escape is always longer than what it stands for
            return self._file[begin + start : begin + start + count]
        if self._decoded[0] != document:
            self._decoded = document, decode(self._file[begin:stop].tobytes())
        return np.frombuffer(self._decoded[1], np.uint8, count, start)


def is_jsonl(path: Path) -> bool:
    """Whether a file (compressed or not) or stdin begins as JSON lines do; nothing is consumed.

    Raises:
        UserError: It cannot be read.
    """
    if path != STDIN and not path.is_file():
        return False  # a pipe: what is read from it is gone
    return first_bytes(path).lstrip().startswith(b"{")


def read_texts(
    path: Path, advance: Callable[[int], None] | None = None
) -> Iterator[tuple[int, bytes]]:
    """Stream the texts of a .jsonl file, plain or compressed, with their line numbers from 1.

    Args:
        path: The file; "-" is stdin.
        advance: Called with the number of stored bytes read since its last call.

    Raises:
        UserError: It cannot be read, or a line of it is broken.
    """
    for number, _, line in _lines(path, advance):
        try:
            start, stop = find_text(line)
            text = decode(line[start:stop])
        except ValueError as error:
            _refuse(path, number, error)
        yield number, text


def find_text(line: bytes) -> tuple[int, int]:
    """Where the text stands in its line, its quotes not included.

    Raises:
        ValueError: The line is no JSON object, or has no string under "text".
    """
    text = line.decode("latin-1")  # JSON's own signs are ASCII, so places in it are bytes
    at = _after(text, 0, "{")
    found = None
    is_empty = text[_skip(text, at) :].startswith("}")
    while not is_empty:
        key_start = _skip(text, at)
        key, at = _parse(text, key_start)
        if not isinstance(key, str):
            raise json.JSONDecodeError("a key is no string", text, key_start)
        start = _skip(text, _after(text, at, ":"))
        value, at = _parse(text, start)
        if key == _KEY:
            if not isinstance(value, str):
                raise ValueError(f'"{_KEY}" is no string')
            found = start + 1, at - 1
        at = _skip(text, at)
        if text[at : at + 1] != ",":
            break
        at += 1
    at = _skip(text, _after(text, at, "}"))
    if at < len(text):
        raise json.JSONDecodeError("more than one object", text, at)
    if found is None:
        raise ValueError(f'no key "{_KEY}"')
    return found


def decode(raw: bytes) -> bytes:
    """What stands between the quotes of a JSON string, as UTF-8.

    Raises:
        ValueError: It is no UTF-8, or holds half a surrogate pair or the character NUL.
    """
    if b"\\" in raw:
        raw = json.loads(f'"{raw.decode()}"').encode()
    elif not raw.isascii():
        raw.decode()
    if b"\0" in raw:
        raise ValueError("the text holds the character NUL, which ends documents")
    return raw


def _skip(text: str, at: int) -> int:
    """The place of the first sign that is not white space."""
    while text[at : at + 1] in _BLANKS:
        at += 1
    return at


def _after(text: str, at: int, sign: str) -> int:
    """The place after a sign that must come next.

    Raises:
        ValueError: Something else comes.
    """
    at = _skip(text, at)
    if text[at : at + 1] != sign:
        raise json.JSONDecodeError(f"expected {sign!r}", text, at)
    return at + 1


def _lines(
    path: Path, advance: Callable[[int], None] | None = None
) -> Iterator[tuple[int, int, bytes]]:
    """Number, place in the (decompressed) file, and bytes of each line that is not blank."""
    number, place = 1, 0
    parts: list[bytes] = []
    for block in read_blocks(path, advance):
        *ends, rest = block.split(b"\n") if block else (b"", b"")
        for end in ends:
            line = b"".join([*parts, end])
            parts = []
            if line.strip():
                yield number, place, line
            number, place = number + 1, place + len(line) + 1
        parts.append(rest)


def _build_index(path: Path) -> Integers:
    """Stream offsets, and first and one-past-last byte of each text that is not empty, [3, D + 1].

    Raises:
        UserError: A line is broken.
    """
    lengths, starts, stops = array("q"), array("q"), array("q")
    with console.progress(f"index {path.name}", path.stat().st_size, "bytes") as bar:
        for number, place, line in _lines(path, bar.advance):
            try:
                start, stop = find_text(line)
                length = len(decode(line[start:stop]))
            except ValueError as error:
                _refuse(path, number, error)
            if length:
                lengths.append(length + 1)
                starts.append(place + start)
                stops.append(place + stop)
    index = np.zeros((3, len(lengths) + 1), np.int64)
    np.cumsum(lengths, out=index[0, 1:])
    index[1, :-1], index[2, :-1] = starts, stops
    return index


def _refuse(path: Path, number: int, error: ValueError) -> NoReturn:
    reason = str(error)
    if isinstance(error, json.JSONDecodeError):
        reason = f"broken JSON at character {error.pos + 1:,} ({error.msg})"
    elif isinstance(error, UnicodeDecodeError):
        reason = "the text is no UTF-8"
    elif isinstance(error, UnicodeEncodeError):
        reason = "the text holds half a surrogate pair"
    raise UserError(f"{path}: line {number:,}: {reason}") from None
