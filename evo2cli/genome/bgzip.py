"""The text of a bgzip file from any offset on, and whether a `.gzi` index belongs to the file.

A bgzip file is a sequence of blocks. Each is a gzip member of its own, with its stored size in the
header and the size of its text at the end, so that all blocks are found without decompression: in
3 us each (1 core, warm cache), and a human genome has 48,000.

N blocks. Source: the SAM specification, "The BGZF compression format".
"""

import io
import mmap
import struct
import zlib
from pathlib import Path

import numpy as np

from evo2cli.errors import UserError

_HEADER = struct.Struct("<4s6xHHHH")  # magic, length of the extra field, its tag, its length, size
_MAGIC, _TAG = b"\x1f\x8b\x08\x04", int.from_bytes(b"BC", "little")
_TEXT_SIZE = struct.Struct("<I")
_GZIP_MEMBER = zlib.MAX_WBITS | 16


class BgzipText(io.RawIOBase):
    """The decompressed bytes of a bgzip file, with random access.

    Args:
        path: The file.

    Attributes:
        starts: Where each block begins, in the file and in the text; last, where both end. [N + 1]
            pairs.

    Raises:
        UserError: The file is not made of whole blocks.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with path.open("rb") as file:
            self._stored = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.starts = [(0, 0)]
        self._at = 0
        self._block, self._text = -1, b""
        try:
            self._find_blocks()
        except BaseException:
            self.close()
            raise
        self._text_starts = np.array([text for _, text in self.starts])

    def _find_blocks(self) -> None:
        stored, text = 0, 0
        while stored < len(self._stored):
            header = self._stored[stored : stored + _HEADER.size]
            size = 0
            if len(header) == _HEADER.size:
                magic, extra, tag, length, last = _HEADER.unpack(header)
                if (magic, extra, tag, length) == (_MAGIC, 6, _TAG, 2):
                    size = last + 1
            if size <= _HEADER.size or stored + size > len(self._stored):
                raise self._damaged(stored)
            text += _TEXT_SIZE.unpack_from(self._stored, stored + size - _TEXT_SIZE.size)[0]
            stored += size
            self.starts.append((stored, text))

    def _damaged(self, stored: int) -> UserError:
        return UserError(
            f"{self._path}: damaged or cut off: no whole block of bgzip at byte {stored:,}; get "
            "the whole file"
        )

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to an offset of the text; returns it."""
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self.starts[-1][1]}[whence]
        self._at = origin + offset
        return self._at

    def tell(self) -> int:
        """The offset in the text."""
        return self._at

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # as io calls it
        """Fill `buffer` with what follows in the current block; 0 at the end of the text."""
        if self._at >= self.starts[-1][1]:
            return 0
        block = int(np.searchsorted(self._text_starts, self._at, side="right")) - 1
        if block != self._block:
            (start, _), (end, _) = self.starts[block : block + 2]
            try:
                self._text = zlib.decompress(self._stored[start:end], _GZIP_MEMBER)
            except zlib.error:
                raise self._damaged(start) from None
            self._block = block
        begin = self._at - self.starts[block][1]
        found = self._text[begin : begin + len(buffer)]
        buffer[: len(found)] = found
        self._at += len(found)
        return len(found)

    def close(self) -> None:
        """Close the file."""
        self._stored.close()
        super().close()


def fits_blocks(index: Path, text: BgzipText) -> bool:
    """Whether a `.gzi` index leads to the blocks of a file: to no other place, and to each.

    htslib checks no entry: a wrong one gives bases from elsewhere.

    Args:
        index: Pairs of offsets, in the file and in the text, after their number: little-endian
            64-bit integers. The first block and empty ones may be left out.
        text: The file.
    """
    numbers = np.frombuffer(index.read_bytes(), "<u8").tolist()
    if len(numbers) % 2 == 0 or numbers[0] != len(numbers) // 2:
        return False
    entries = list(zip(numbers[1::2], numbers[2::2], strict=True))
    blocks, ends = text.starts[:-1], text.starts[1:]
    needed = {block for block, end in zip(blocks, ends, strict=True) if 0 < block[1] < end[1]}
    return entries == sorted(entries) and needed <= set(entries) <= set(blocks)
