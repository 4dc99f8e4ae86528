"""Stdin is told apart by its beginning, and nothing of it is lost, however it comes."""

import bz2
import gzip
import io
from pathlib import Path

import pytest

from evo2cli.data.jsonl import read_texts
from evo2cli.errors import UserError
from evo2cli.genome.fasta import read_records
from evo2cli.genome.source import STDIN, first_bytes, read_blocks, read_lines


def test_no_line_and_no_record_fills_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stripedhyena2.host.available_bytes", lambda: 8 << 20)
    for name, start, read in (
        ("x.vcf", b"", read_lines),
        ("x.fa", b">x\n", read_records),
        ("x.jsonl", b"{", read_texts),
    ):
        file = tmp_path / f"{name}.gz"
        file.write_bytes(gzip.compress(start + b"A" * (3 << 20)))
        with pytest.raises(UserError, match=rf"{name}\.gz: .* longer than 1,048,576 bytes"):
            list(read(file))
    (tmp_path / "many.fa").write_bytes((b">x\n" + b"A" * (1 << 19) + b"\n") * 8)
    assert len(list(read_records(tmp_path / "many.fa"))) == 8


def test_a_header_ends(tmp_path: Path) -> None:
    (tmp_path / "x.fa").write_bytes(b">" + b"A" * (6 << 20))
    with pytest.raises(UserError, match="the header of a record is longer than 4,194,304 bytes"):
        list(read_records(tmp_path / "x.fa"))


def test_bytes_that_are_no_text_are_not_collected(tmp_path: Path) -> None:
    (tmp_path / "x.fa.gz").write_bytes(gzip.compress(b">x\n" + bytes(3 << 20)))
    with pytest.raises(UserError, match=r"x\.fa\.gz: is not text: it contains the byte 0"):
        list(read_records(tmp_path / "x.fa.gz"))


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
