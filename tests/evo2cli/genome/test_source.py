"""Stdin is told apart by its beginning, and nothing of it is lost, however it comes."""

import bz2
import gzip
import io
from pathlib import Path

import pytest

from evo2cli.genome.source import STDIN, first_bytes, read_blocks, read_lines

TEXT = b"".join(b">s%d\nACGTACGTACGT\n" % number for number in range(20_000))


class Drip(io.RawIOBase):
    """A pipe whose writer writes a few bytes at a time."""

    def __init__(self, data: bytes) -> None:
        self._data, self._sizes = data, [1, 2, 5]

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray) -> int:
        size = min(self._sizes.pop(0) if self._sizes else 1000, len(buffer))
        part, self._data = self._data[:size], self._data[size:]
        buffer[: len(part)] = part
        return len(part)


@pytest.mark.parametrize("pack", [bytes, gzip.compress, bz2.compress], ids=["plain", "gz", "bz2"])
def test_stdin_is_a_file_that_drips(pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = pack(TEXT)
    (tmp_path / "file").write_bytes(packed)
    for data in (packed, pack(b""), pack(b"A")):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BufferedReader(Drip(data))))
        start = first_bytes(STDIN)
        assert first_bytes(STDIN) == start  # to look takes nothing away
        whole = b"".join(read_blocks(STDIN))
        assert whole.startswith(start)
        assert len(start) >= min(1000, len(whole))
        if data is packed:
            assert whole == TEXT == b"".join(read_lines(tmp_path / "file"))
