"""Read a file or stdin (`-`): plain, gzip, bgzip or bzip2, recognised by its first bytes."""

import bz2
import gzip
import io
import stat
import sys
import zlib
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from evo2cli.errors import UserError
from evo2cli.files import reading

STDIN = Path("-")
BYTE_ORDER_MARK = b"\xef\xbb\xbf"  # at the beginning of some texts from Windows
T = TypeVar("T")

_GZIP, _BZIP2 = b"\x1f\x8b", b"BZh"
_PEEK = 4096
_BGZIP_LENGTH = 14  # bytes of a gzip header up to the tag of bgzip's extra field
# The empty block that ends every bgzip file. Source: the SAM specification, "End-of-file marker".
_BGZIP_END = bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000")
_BLOCK = 1 << 20
_MEMORY_FRACTION = 8  # of the free memory, because texts are copied a few times
_opened_pipes: set[tuple[int, int]] = set()  # device and inode
_num_readers = 1  # processes that read at the same time
_MAX_LINE = 1 << 28  # bytes; a VCF of a million samples has lines of a tenth of it
_LINE_BUFFER = 1 << 16  # bytes; lines of many samples are read 3 times as fast as with 8 KiB


@dataclass(frozen=True)
class Span:
    """A part of a text that consists of whole records or lines.

    Only a file that is not compressed has other parts than `WHOLE`.

    Attributes:
        start: Offset of its first byte.
        stop: Offset after its last byte; None for the end of the text.
        line: 1-based number of its first line.
    """

    start: int = 0
    stop: int | None = None
    line: int = 1


WHOLE = Span()


def read_blocks(
    path: Path, advance: Callable[[int], None] | None = None, span: Span = WHOLE
) -> Generator[bytes, None, None]:
    """Stream the decompressed bytes of a text in large blocks, the last of which is empty.

    Args:
        path: File, or `-` for stdin.
        advance: Called with the number of stored (compressed) bytes read since its last call.
        span: The part of the text to read.

    Raises:
        UserError: The file cannot be read, is damaged or incomplete, or holds the byte 0 after its
            first block. The first block of a text is left to the caller, who can say more about it.
    """
    position, left = span.start, sys.maxsize if span.stop is None else span.stop - span.start
    with _one_line_errors(path), _open_raw(path) as raw, _decompressed(raw) as stream:
        _mark_read(path)
        if span.start:
            raw.seek(span.start)
        block = stream.read(min(_BLOCK, left))
        if span.start:
            _require_text(path, block)
        while True:
            yield block
            if advance is not None and raw.seekable():
                advance(raw.tell() - position)
                position = raw.tell()
            if not block:
                check_end_of_pipe(path, raw)
                return
            left -= len(block)
            block = stream.read(min(_BLOCK, left))
            _require_text(path, block)


def _require_text(path: Path, block: bytes) -> None:
    if b"\0" in block:
        raise UserError(f"{path}: is not text: it contains the byte 0; get the file again")


def read_lines(path: Path) -> Generator[bytes, None, None]:
    """Stream the decompressed lines of `path`, with their line ends.

    Raises:
        UserError: The file cannot be read, is damaged or incomplete, or a line is too long for the
            memory.
    """
    limit = TextLimit(path, _MAX_LINE)
    with _one_line_errors(path), _open_raw(path, _LINE_BUFFER) as raw, _decompressed(raw) as stream:
        _mark_read(path)
        for line in iter(partial(stream.readline, limit.bytes + 1), b""):
            limit.check(len(line), "a line")
            yield line
        check_end_of_pipe(path, raw)


class TextLimit:
    """The maximum length of a line or sequence, so that no file can fill the memory.

    Args:
        path: The file.
        maximum: Bytes.

    Attributes:
        bytes: `maximum`, but at most an eighth of the free memory of this process. Several
            processes share the free memory of the machine, see `share_memory`.
    """

    def __init__(self, path: Path, maximum: int = sys.maxsize) -> None:
        # Imported late: options of commands import this module, and `--help` must stay quick.
        from stripedhyena2.host import available_bytes

        self._path = path
        memory = available_bytes() or sys.maxsize
        self.bytes = min(memory // (_MEMORY_FRACTION * _num_readers), maximum)

    def check(self, size: int, what: str) -> None:
        """Check the length of a text.

        Args:
            size: Its length in bytes.
            what: What it is, for the message, e.g. "a line".

        Raises:
            UserError: It is longer than `bytes`.
        """
        if size > self.bytes:
            raise UserError(
                f"{self._path}: {what} is longer than {self.bytes:,} bytes, which is too much for "
                f"the memory of this machine; cut it{', or use fewer workers' * (_num_readers > 1)}"
            )


def share_memory(num_readers: int) -> None:
    """Set the number of processes that read at the same time; every later `TextLimit` uses it."""
    global _num_readers
    _num_readers = num_readers


@contextmanager
def numbered_lines(path: Path) -> Iterator[Iterator[tuple[int, bytes]]]:
    """Yield the lines of `read_lines` with their 1-based numbers, without a byte order mark.

    The file is closed when the block ends. Without the block, an error in a loop over the lines
    would keep the file open for as long as the error is referred to.
    """
    with closing(read_lines(path)) as lines:
        yield enumerate((line.removeprefix(BYTE_ORDER_MARK) for line in lines), start=1)


@contextmanager
def closed_at_error(source: Generator[Any, None, None]) -> Iterator[None]:
    """Close a generator, e.g. the lines of a file, if the block raises an error."""
    try:
        yield
    except BaseException:
        source.close()
        raise


def then_close(source: Generator[Any, None, None], items: Iterator[T]) -> Iterator[T]:
    """Yield items made from a generator, e.g. from the lines of a file, and close it at the end."""
    with closing(source):
        yield from items


def exists(path: Path) -> bool:
    """Whether a file exists; False for text that cannot be a path, e.g. a variant of 300 bases."""
    try:
        return path.exists()
    except OSError:
        return False


def is_file(path: Path) -> bool:
    """Whether `path` is a regular file, which can be read again, not stdin or a pipe."""
    return path != STDIN and path.is_file()


def is_plain_file(path: Path) -> bool:
    """Whether `path` is a regular file without compression, so that a `Span` of it can be read.

    Raises:
        UserError: It cannot be read, or is truncated.
    """
    if not is_file(path):
        return False
    with _one_line_errors(path), _open_raw(path) as raw:
        return not raw.peek(len(_BZIP2)).startswith((_GZIP, _BZIP2))


def is_bgzip(path: Path) -> bool:
    """Whether a file is compressed with bgzip, which allows random access.

    Raises:
        UserError: It cannot be read, or is truncated.
    """
    with _one_line_errors(path), _open_raw(path) as raw:
        return _begins_as_bgzip(raw)


def _begins_as_bgzip(raw: io.BufferedReader) -> bool:
    return _is_bgzip(raw.peek(_BGZIP_LENGTH))


def _is_bgzip(start: bytes) -> bool:
    return start.startswith(_GZIP) and start[12:_BGZIP_LENGTH] == b"BC"


def _check_end(path: Path, raw: io.BufferedReader) -> None:
    """Check that a bgzip file has its last block: a file cut between two blocks looks complete.

    Raises:
        UserError: The block is missing.
    """
    if not (path.is_file() and _begins_as_bgzip(raw)):
        return
    size = raw.seek(0, io.SEEK_END)
    raw.seek(max(size - len(_BGZIP_END), 0))
    is_complete = raw.read() == _BGZIP_END
    raw.seek(0)
    if not is_complete:
        raise _without_end(path)


def check_end_of_pipe(path: Path, raw: Any) -> None:
    """As `_check_end`, for stdin or a pipe that has been read to its end.

    Raises:
        UserError: The block is missing.
    """
    stored = getattr(raw, "raw", None)
    if isinstance(stored, _Pipe) and not stored.is_complete:
        raise _without_end(path)


def _without_end(path: Path) -> UserError:
    return UserError(
        f"{path}: damaged or cut off: the block that ends every bgzip file is missing; get the "
        "whole file; if only that block is missing, compress it again with bgzip"
    )


def first_bytes(path: Path) -> bytes:
    """The decompressed beginning of `path`, at most a few thousand bytes; stdin is not consumed.

    Raises:
        UserError: The file cannot be read, or is damaged.
    """
    with _one_line_errors(path), _open_raw(path) as raw:
        start = raw.peek(_PEEK)
        if start.startswith(_GZIP):
            unpacking = zlib.decompressobj(zlib.MAX_WBITS | 16)
            unpacked = unpacking.decompress(start, _PEEK)
            if not (unpacked or unpacking.eof):
                raise EOFError("not even its header is whole")
            return unpacked
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
    path: Path, buffer_size: int = io.DEFAULT_BUFFER_SIZE
) -> nullcontext[io.BufferedReader] | io.BufferedReader:
    """Open the stored bytes; leaving the context closes a file, but not stdin."""
    if path == STDIN:
        if not isinstance(sys.stdin, _Stdin):
            sys.stdin = _Stdin(sys.stdin)
        if sys.stdin.is_read:  # now it would look empty
            raise UserError("-: this command reads stdin more than once; give a file")
        return nullcontext(sys.stdin.bytes)
    _check_pipe(path)
    file = path.open("rb", buffering=0)
    stored: Any = file if path.is_file() else _Pipe(io.BufferedReader(file))
    raw: io.BufferedReader = io.BufferedReader(stored, buffer_size)
    try:
        _check_end(path, raw)
    except BaseException:
        raw.close()
        raise
    return raw


def _mark_read(path: Path) -> None:
    """Mark stdin as read if it is `path`, so that it cannot be opened again."""
    if path == STDIN:
        assert isinstance(sys.stdin, _Stdin)
        sys.stdin.is_read = True


def _check_pipe(path: Path) -> None:
    """Check that a pipe was not opened before: it would look empty, or opening it would not end.

    Raises:
        UserError: It was.
    """
    status = path.stat()
    if not stat.S_ISFIFO(status.st_mode):
        return
    if (status.st_dev, status.st_ino) in _opened_pipes:
        raise UserError(
            f"{path}: is a pipe, and this command reads it more than once; give a file, or - for "
            "stdin"
        )
    _opened_pipes.add((status.st_dev, status.st_ino))


class _Stdin(io.TextIOWrapper):
    """Stdin whose first few thousand bytes can be peeked at, however slowly they arrive.

    bzip2 is decompressed here, because its blocks are too large to peek into.
    """

    def __init__(self, original: Any) -> None:
        pipe = _Pipe(original.buffer)
        rest: Any = io.BufferedReader(pipe, _LINE_BUFFER)
        if pipe.start.startswith(_BZIP2):
            rest = io.BufferedReader(bz2.BZ2File(rest), _LINE_BUFFER)
        super().__init__(rest)
        self.bytes: io.BufferedReader = rest
        self.is_read = False
        self.original = original  # kept alive, because it closes its buffer when it is collected


class _Pipe(io.RawIOBase):
    """A stream that buffers its first few thousand bytes, however slowly they arrive.

    Attributes:
        start: The bytes in the buffer.
    """

    def __init__(self, stream: Any) -> None:
        self.start: bytes = stream.read(_PEEK)
        self._rest = stream
        self._is_bgzip = _is_bgzip(self.start)
        self._last = b""

    @property
    def is_complete(self) -> bool:
        """False if this is bgzip and the bytes read do not end with its last block."""
        return not self._is_bgzip or self._last == _BGZIP_END

    def readable(self) -> bool:
        """True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer` with the bytes that are available; returns their number."""
        data, self.start = self.start[: len(buffer)], self.start[len(buffer) :]
        if not data:
            data = self._rest.read1(len(buffer))
        self._last = (self._last + data)[-len(_BGZIP_END) :]
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        """Close the stream."""
        self._rest.close()
        super().close()


@contextmanager
def _one_line_errors(path: Path) -> Iterator[None]:
    """Convert errors of the file system and of decompression to `UserError`."""
    with reading(path):
        try:
            yield
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise UserError(f"{path}: damaged or cut off ({error}); get the whole file") from None
