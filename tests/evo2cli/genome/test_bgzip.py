"""The text of a bgzip file is what gzip reads; an index that does not match is made again."""

import gzip
import io
import struct
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from textwrap import fill

import numpy as np
import pysam
import pytest

from evo2cli.errors import UserError
from evo2cli.genome.bgzip import BgzipText
from evo2cli.genome.interval import Interval
from evo2cli.genome.reference import Reference

RNG = np.random.default_rng(1)
CONTIGS = {name: "".join(RNG.choice(list("ACGT"), 150_000)) for name in ("a", "b")}
EMPTY_BLOCK = bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000")


def bgzipped(path: Path, text: str) -> bytes:
    """A bgzip file with blocks of 65,280 bytes and an empty one at its end."""
    path.with_suffix("").write_text(text)
    pysam.tabix_compress(str(path.with_suffix("")), str(path), force=True)
    return path.read_bytes()


def fasta(contigs: dict[str, str]) -> str:
    return "".join(f">{name}\n{fill(bases, 60)}\n" for name, bases in contigs.items())


@pytest.fixture
def genome(tmp_path: Path) -> Path:
    """A bgzip FASTA with both indexes beside it."""
    path = tmp_path / "g.fa.gz"
    bgzipped(path, fasta(CONTIGS))
    Reference.open(path).close()
    return path


def check(path: Path) -> None:
    """Pieces of every block, and the whole."""
    with Reference.open(path) as reference:
        for name, bases in CONTIGS.items():
            for start, end in pairwise(range(0, len(bases) + 1, 15_000)):
                assert reference.fetch(Interval(name, start, end)).decode() == bases[start:end]


def test_the_text_is_what_gzip_reads(tmp_path: Path) -> None:
    parts = [bgzipped(tmp_path / "x.gz", fasta({"a": CONTIGS["a"]})), EMPTY_BLOCK * 2]
    (tmp_path / "x.gz").write_bytes(b"".join([*parts, *reversed(parts)]))
    whole = gzip.decompress((tmp_path / "x.gz").read_bytes())
    with BgzipText(tmp_path / "x.gz") as text:
        assert text.starts[-1] == ((tmp_path / "x.gz").stat().st_size, len(whole))
        assert text.seek(0, io.SEEK_END) == len(whole)
        assert text.read() == b""
        text.seek(0)
        assert text.read() == whole
        buffered = io.BufferedReader(text)
        for start in (0, 7, 65_279, 65_280, 152_499, 152_500, 152_501, len(whole) - 1):
            buffered.seek(start)
            assert buffered.read(70_000) == whole[start : start + 70_000]


@pytest.mark.parametrize("change", ["cut", "no-mark", "bits"])
def test_damage_is_one_line(tmp_path: Path, change: str) -> None:
    stored = bytearray(bgzipped(tmp_path / "x.gz", fasta(CONTIGS)))
    with BgzipText(tmp_path / "x.gz") as text:
        second = text.starts[1][0]
    if change == "cut":
        del stored[-30:]
    elif change == "no-mark":
        stored[second + 12] ^= 1
    else:
        stored[second + 3_000] ^= 1
    (tmp_path / "x.gz").write_bytes(stored)
    with (
        pytest.raises(UserError, match=r"no whole block of bgzip at byte [0-9,]+; get the whole"),
        BgzipText(tmp_path / "x.gz") as text,
    ):
        text.read()


def test_no_number_of_a_gzi_can_change_a_base(
    genome: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Whichever number is wrong, bases are right, and a warning says that the index is not."""
    index = genome.with_name("g.fa.gz.gzi")
    good = index.read_bytes()
    numbers = struct.unpack(f"<{len(good) // 8}Q", good)
    assert len(numbers) == 9
    for position, number in enumerate(numbers):
        others = {
            0,
            number + 1,
            number - 1,
            number ^ 1 << int(RNG.integers(64)),
            numbers[0],
            numbers[-1],
        }
        for other in sorted({value % 2**64 for value in others} - {number}):
            changed = [*numbers[:position], other, *numbers[position + 1 :]]
            index.write_bytes(struct.pack(f"<{len(changed)}Q", *changed))
            check(genome)
            assert "g.fa.gz.gzi: does not fit g.fa.gz; a new index is made" in caplog.text
            caplog.clear()
            assert index.read_bytes() == good


@pytest.mark.parametrize(
    "change",
    [
        lambda _: b"",
        lambda data: data[:-1],
        lambda data: data[:-16],
        lambda data: struct.pack("<Q", 3) + data[8:-16],
        lambda data: struct.pack("<Q", 3) + data[8:24] + data[40:],
    ],
    ids=["empty", "cut", "short", "one-fewer", "one-left-out"],
)
def test_an_incomplete_gzi_is_replaced(genome: Path, change: Callable[[bytes], bytes]) -> None:
    index = genome.with_name("g.fa.gz.gzi")
    good = index.read_bytes()
    index.write_bytes(change(good))
    check(genome)
    assert index.read_bytes() == good


def test_the_fai_of_another_bgzip_file_is_replaced(
    genome: Path, caplog: pytest.LogCaptureFixture
) -> None:
    index = genome.with_name("g.fa.gz.fai")
    good = index.read_text()
    for other in (
        good.replace("\t3\t", "\t4\t"),
        good.replace("150000", "149999"),
        good[:-1] + "0\n",
    ):
        assert other != good
        index.write_text(other)
        check(genome)
        assert "g.fa.gz.fai: does not fit g.fa.gz" in caplog.text
        caplog.clear()
        assert index.read_text() == good


def test_indexes_that_fit_are_kept(genome: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Indexes of htslib for concatenated files, with empty blocks inside, match as well."""
    genome.write_bytes(
        b"".join(bgzipped(genome, fasta({name: bases})) for name, bases in CONTIGS.items())
    )
    for suffix in (".fai", ".gzi"):
        genome.with_name(f"g.fa.gz{suffix}").unlink()
    pysam.faidx(str(genome))
    kept = genome.with_name("g.fa.gz.gzi").stat().st_mtime_ns
    check(genome)
    assert genome.with_name("g.fa.gz.gzi").stat().st_mtime_ns == kept
    assert caplog.text == ""


def test_a_genome_that_htslib_misreads_is_read_into_memory(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "g.fa.gz"
    bgzipped(path, ">a\nAC GT\n>b\nGG\n")
    with Reference.open(path) as reference:
        assert reference.fetch(Interval("a", 0, 4)) == b"ACGT"
        assert reference.fetch(Interval("b", 0, 2)) == b"GG"
    assert "read into memory" in caplog.text
    bgzipped(path, ">a\nACGT\n>a\nGGTT\n")
    with pytest.raises(UserError, match="two contigs are named 'a'"):
        Reference.open(path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["g.fa", "g.fa.gz"]
