"""Stdin is recognised by its first bytes, and none of it is lost, however slowly it arrives."""

import bz2
import gzip
import io
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pysam
import pytest

from evo2cli.data.jsonl import read_texts
from evo2cli.errors import UserError
from evo2cli.genome.bgzip import BgzipText
from evo2cli.genome.fasta import read_records
from evo2cli.genome.source import STDIN, first_bytes, is_bgzip, read_blocks, read_lines


def test_a_line_or_record_that_would_fill_the_memory_is_refused(
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


def test_a_header_has_a_maximum_length(tmp_path: Path) -> None:
    (tmp_path / "x.fa").write_bytes(b">" + b"A" * (6 << 20))
    with pytest.raises(UserError, match="the header of a record is longer than 4,194,304 bytes"):
        list(read_records(tmp_path / "x.fa"))


def test_a_binary_file_is_refused_before_it_fills_the_memory(tmp_path: Path) -> None:
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
def test_stdin_that_arrives_slowly_is_read_like_a_file(
    pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = pack(TEXT)
    (tmp_path / "file").write_bytes(packed)
    for data in (packed, pack(b""), pack(b"A")):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BufferedReader(Drip(data))))
        start = first_bytes(STDIN)
        assert first_bytes(STDIN) == start  # nothing was consumed
        whole = b"".join(read_blocks(STDIN))
        assert whole.startswith(start)
        assert len(start) >= min(1000, len(whole))
        if data is packed:
            assert whole == TEXT == b"".join(read_lines(tmp_path / "file"))


@pytest.mark.parametrize("read", [read_blocks, read_lines], ids=["blocks", "lines"])
def test_bgzip_cut_between_blocks_is_refused_from_every_pipe(
    read: Callable[[Path], Iterator[bytes]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rest is a valid gzip file; only the missing last block shows that it is incomplete."""
    text = b"".join(b"line %d\n" % number for number in range(30_000))
    (tmp_path / "x").write_bytes(text)
    pysam.tabix_compress(str(tmp_path / "x"), str(tmp_path / "x.gz"))
    with BgzipText(tmp_path / "x.gz") as blocks:
        starts = [stored for stored, _ in blocks.starts]
    packed = (tmp_path / "x.gz").read_bytes()
    assert len(starts) > 4
    for size in starts[1:]:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BufferedReader(Drip(packed[:size]))))
        named = tmp_path / f"pipe{size}"
        os.mkfifo(named)
        writer = threading.Thread(target=named.write_bytes, args=(packed[:size],))
        writer.start()
        for source in (STDIN, named):
            if size == len(packed):
                assert b"".join(read(source)) == text
            else:
                with pytest.raises(UserError, match=f"^{source}: damaged or cut off: the block"):
                    list(read(source))
        writer.join()


@pytest.fixture
def pipe() -> Iterator[Path]:
    """A pipe as of a shell's `<(command)`, with a line in it."""
    reader, writer = os.pipe()
    os.write(writer, b"##fileformat=VCFv4.2\n")
    os.close(writer)
    yield Path(f"/dev/fd/{reader}")
    os.close(reader)


def test_a_pipe_that_was_read_does_not_look_empty(pipe: Path) -> None:
    assert list(read_lines(pipe)) == [b"##fileformat=VCFv4.2\n"]
    for read in (lambda: list(read_lines(pipe)), lambda: first_bytes(pipe), lambda: is_bgzip(pipe)):
        with pytest.raises(UserError, match="is a pipe, and this command reads it more than once"):
            read()


def test_stdin_that_was_read_does_not_look_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"##fileformat=VCFv4.2\n")))
    assert first_bytes(STDIN) == b"".join(read_lines(STDIN)) == b"##fileformat=VCFv4.2\n"
    for read in (read_lines, read_blocks, first_bytes):
        with pytest.raises(UserError, match=r"^-: this command reads stdin more than once; give a"):
            list(read(STDIN))


def test_a_bed_file_from_a_pipe_is_refused_when_it_is_read_again(
    command_line, tmp_path: Path
) -> None:
    """Empty the second time, it would filter out all records."""
    source = Path(__file__).parents[3] / "examples" / "phix174.vcf"
    reader, writer = os.pipe()
    os.write(writer, b"NC_001422.1\t0\t300\n")
    os.close(writer)
    output = tmp_path / "x.tsv"
    words = ["--bed", f"/dev/fd/{reader}", "--window", "64", "-O", str(output)]
    code, _, stderr = command_line("score", str(source), *words)
    os.close(reader)
    assert code == 2
    assert "is a pipe, and this command reads it more than once" in stderr
    assert not output.exists()
