"""Reading what a user names: a file or stdin (`-`); plain, gzip, bgzip or bzip2 by its magic."""

import bz2
import gzip
import io
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from evo2cli.errors import UserError

STDIN = Path("-")
_GZIP, _BZIP2 = b"\x1f\x8b", b"BZh"
_PEEK = 4096
_BGZIP_LENGTH = 14  # of the beginning of a bgzipped file, up to the mark of its extra field
_BLOCK = 1 << 20
_LINES_AHEAD = 1 << 16  # bytes; lines of many samples are read three times as fast as by 8 KiB


def read_blocks(path: Path, advance: Callable[[int], None] | None = None) -> Iterator[bytes]:
    """Stream the decompressed bytes of `path` in large blocks; at least one, maybe empty.

    Args:
        path: What to read.
        advance: Called with the number of stored (compressed) bytes read since its last call.

    Raises:
        UserError: The file cannot be read, or proves damaged or cut off.
    """
    position = 0
    with _explained(path), _open_raw(path) as raw, _decompressed(raw) as stream:
        while True:
            block = stream.read(_BLOCK)
            yield block
            if advance is not None and raw.seekable():
                advance(raw.tell() - position)
                position = raw.tell()
            if not block:
                return


def read_lines(path: Path) -> Iterator[bytes]:
    """Stream the decompressed lines of `path`, their ends included.

    Raises:
        UserError: The file cannot be read, or proves damaged or cut off.
    """
    with _explained(path), _open_raw(path, _LINES_AHEAD) as raw, _decompressed(raw) as stream:
        yield from stream


def is_bgzip(path: Path) -> bool:
    """Whether a file was packed by bgzip, so that reading may begin anywhere.

    Raises:
        UserError: It cannot be read.
    """
    with _explained(path), _open_raw(path) as raw:
        start = raw.peek(_BGZIP_LENGTH)
        return start.startswith(_GZIP) and start[12:_BGZIP_LENGTH] == b"BC"


def first_bytes(path: Path) -> bytes:
    """The decompressed beginning of `path`, some thousand bytes at most; stdin is not consumed.

    Raises:
        UserError: The file cannot be read, or proves damaged.
    """
    with _explained(path), _open_raw(path) as raw:
        start = raw.peek(_PEEK)
        if start.startswith(_GZIP):
            return zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(start, _PEEK)
        if start.startswith(_BZIP2):
            with bz2.BZ2File(raw) as stream:
                return stream.read(_PEEK)
        return start


def _decompressed(raw: io.BufferedReader) -> AbstractContextManager[io.BufferedIOBase]:
    magic = raw.peek(len(_BZIP2))
    if magic.startswith(_GZIP):
        return gzip.GzipFile(fileobj=raw)
    if magic.startswith(_BZIP2):
        return bz2.BZ2File(raw)
    return nullcontext(raw)


def _open_raw(
    path: Path, ahead: int = io.DEFAULT_BUFFER_SIZE
) -> nullcontext[io.BufferedReader] | io.BufferedReader:
    """The bytes as stored; leaving the context closes a file, but not stdin."""
    if path == STDIN:
        if not isinstance(sys.stdin, _Stdin):
            sys.stdin = _Stdin(sys.stdin)
        return nullcontext(sys.stdin.bytes)
    return io.BufferedReader(path.open("rb", buffering=0), ahead)


class _Stdin(io.TextIOWrapper):
    """Stdin whose first thousands of bytes can be looked at, however slowly they came.

    What bzip2 packed is unpacked: its blocks are too large to look into.
    """

    def __init__(self, given: Any) -> None:
        start = given.buffer.read(_PEEK)
        rest: Any = io.BufferedReader(_Rejoined(start, given.buffer), _LINES_AHEAD)
        if start.startswith(_BZIP2):
            rest = io.BufferedReader(bz2.BZ2File(rest), _LINES_AHEAD)
        super().__init__(rest)
        self.bytes: io.BufferedReader = rest
        self.given = given  # which closes what it reads when nobody holds it


class _Rejoined(io.RawIOBase):
    """What was read of a stream, then the stream itself."""

    def __init__(self, start: bytes, rest: Any) -> None:
        self._start, self._rest = start, rest

    def readable(self) -> bool:
        """Yes."""
        return True

    def readinto(self, buffer: Any) -> int:
        """As much as there is at once."""
        data, self._start = self._start[: len(buffer)], self._start[len(buffer) :]
        if not data:
            data = self._rest.read1(len(buffer))
        buffer[: len(data)] = data
        return len(data)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Errors of the file system and the decompressors, in the user's words."""
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path}: damaged or cut off ({error}); get the whole file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None
