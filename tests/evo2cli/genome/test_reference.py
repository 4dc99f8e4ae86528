"""Intervals equal slices of the whole contig, however the file is opened."""

import gzip
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import pysam
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evo2cli.errors import UserError
from evo2cli.genome import reference as reference_module
from evo2cli.genome.fasta import Record, read_records
from evo2cli.genome.interval import Interval
from evo2cli.genome.reference import Reference


def write_fasta(path: Path, contigs: dict[str, bytes], width: int = 10, end: bytes = b"\n") -> None:
    with path.open("wb") as file:
        for name, bases in contigs.items():
            lines = [bases[at : at + width] for at in range(0, len(bases), width)]
            file.write(b">" + name.encode() + b" text" + end + b"".join(li + end for li in lines))


CONTIGS = {"chr1": b"ACGTacgtNN" * 7 + b"ACG", "chr2": b"GATTACA" * 10, "tiny": b"A"}
WITH_EMPTY = {"chr1": CONTIGS["chr1"], "none": b"", "tiny": b"A", "last": b""}  # not indexable


def check_all(reference: Reference, contigs: dict[str, bytes]) -> None:
    assert reference.names == tuple(contigs)
    for name, bases in contigs.items():
        assert reference.length(name) == len(bases)
        for start in range(0, len(bases) + 1, 3):
            for end in range(start, len(bases) + 1, 4):
                assert reference.fetch(Interval(name, start, end)) == bases[start:end]


@pytest.mark.parametrize("end", [b"\n", b"\r\n"], ids=["lf", "crlf"])
@pytest.mark.parametrize("width", [1, 10, 70, 1000])
def test_plain(tmp_path: Path, width: int, end: bytes) -> None:
    write_fasta(tmp_path / "g.fa", CONTIGS, width, end)
    for _ in ("index made", "index used"):
        with Reference.open(tmp_path / "g.fa") as reference:
            check_all(reference, CONTIGS)
        assert (tmp_path / "g.fa.fai").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["g.fa", "g.fa.fai"]


def test_bgzip(tmp_path: Path) -> None:
    write_fasta(tmp_path / "g.fa", CONTIGS)
    pysam.tabix_compress(str(tmp_path / "g.fa"), str(tmp_path / "g.fa.gz"))
    with Reference.open(tmp_path / "g.fa.gz") as reference:
        check_all(reference, CONTIGS)


@pytest.mark.parametrize("name", ["g\udcef.fa", "g\u00ef.fa", "g %s.fa"])
def test_any_name_of_a_file_is_indexed(tmp_path: Path, name: str, caplog) -> None:
    """Also one that is not UTF-8: otherwise the genome would be read into memory."""
    plain, compressed = tmp_path / name, tmp_path / f"{name}.gz"
    write_fasta(plain, CONTIGS)
    pysam.tabix_compress(os.fsencode(plain), os.fsencode(compressed))
    for path in (plain, plain, compressed, compressed):
        with Reference.open(path) as reference:
            check_all(reference, CONTIGS)
        assert path.with_name(f"{path.name}.fai").is_file()
    assert caplog.text == ""


@pytest.mark.parametrize("name", ["g.fa", "g.fa.gz"])
def test_a_genome_in_memory_is_read_once_until_it_changes(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = []

    def counted(path: Path) -> Iterator[Record]:
        reads.append(path)
        return read_records(path)

    monkeypatch.setattr(reference_module, "read_records", counted)
    path = tmp_path / name
    for contigs in (WITH_EMPTY, {"chr1": b"ACGT", "none": b""}):
        write_fasta(path, contigs)
        if name.endswith(".gz"):
            path.write_bytes(gzip.compress(path.read_bytes()))
        for _ in range(2):
            with Reference.open(path) as genome:
                check_all(genome, contigs)
    assert reads == [path] * 2


def test_no_bit_of_an_index_can_give_wrong_bases(tmp_path: Path) -> None:
    """htslib misses a contig if a line end has become another white space."""
    path, index = tmp_path / "g.fa", tmp_path / "g.fa.fai"
    contigs = {"a": b"ACGTTACGA", "b": b"GGATTC", "c": b"T"}
    write_fasta(path, contigs, width=4)
    Reference.open(path).close()
    whole = index.read_bytes()
    for position, bit in product(range(len(whole)), range(8)):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << bit
        index.write_bytes(damaged)
        os.utime(index, (2e9, 2e9))
        with Reference.open(path) as genome:
            assert genome.names == tuple(contigs)
            for name, bases in contigs.items():
                assert genome.fetch(Interval(name, 0, len(bases))) == bases


def test_a_genome_from_a_pipe_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "g.fa")
    for path in (Path("-"), tmp_path / "g.fa"):
        with pytest.raises(UserError, match=f"^{path}: a genome is read in any order"):
            Reference.open(path)


def test_a_genome_that_cannot_be_indexed_is_read_into_memory(tmp_path: Path) -> None:
    write_fasta(tmp_path / "g.fa", WITH_EMPTY)
    (tmp_path / "g.fa.gz").write_bytes(gzip.compress((tmp_path / "g.fa").read_bytes()))
    (tmp_path / "blanks.fa").write_bytes(b">a\nACGTA CACGT\n>b\nAC GT\n")
    (tmp_path / "uneven.fa").write_bytes(b">a\nACGT\nAC\nACGT\n>b\nAC\n\nGT\n")
    (tmp_path / "mac.fa").write_bytes(b">a\rACGTAC\rACGT\r>b\rACGT\r")
    for name in ("g.fa", "g.fa.gz"):
        with Reference.open(tmp_path / name) as reference:
            check_all(reference, WITH_EMPTY)
    for name in ("uneven.fa", "blanks.fa", "mac.fa"):
        with Reference.open(tmp_path / name) as reference:
            check_all(reference, {"a": b"ACGTACACGT", "b": b"ACGT"})
        assert not (tmp_path / f"{name}.fai").exists()


@given(lines=st.lists(st.text("ACGT", max_size=6), max_size=6), final=st.booleans())
def test_any_line_lengths(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str], final: bool
) -> None:
    folder = tmp_path_factory.mktemp("lines")
    text = ">a\n" + "\n".join(lines) + ("\n" if final and lines else "") + ""
    (folder / "g.fa").write_text(text + ("\n" if not text.endswith("\n") else "") + ">b\nACG\n")
    with Reference.open(folder / "g.fa") as reference:
        check_all(reference, {"a": "".join(lines).encode(), "b": b"ACG"})


@pytest.mark.parametrize(
    ("age", "message"), [(+10, "does not fit"), (-10, "is older than")], ids=["mismatch", "older"]
)
def test_a_stale_index_is_noticed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, age: int, message: str
) -> None:
    genome, index = tmp_path / "g.fa", tmp_path / "g.fa.fai"
    write_fasta(genome, CONTIGS)
    Reference.open(genome).close()
    changed = {"chr0": b"TTTTT", **CONTIGS}
    write_fasta(genome, changed)
    now = genome.stat().st_mtime
    os.utime(index, (now + age, now + age))
    with Reference.open(genome) as reference:
        check_all(reference, changed)
    assert message in caplog.text
    caplog.clear()
    with Reference.open(genome) as reference:
        check_all(reference, changed)
    assert caplog.text == ""


def test_a_stale_bgzip_index_is_noticed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    genome, index = tmp_path / "g.fa.gz", tmp_path / "g.fa.gz.fai"
    for contigs in ({"a": b"ACGT"}, {"a": b"TTTTT", "b": b"GG"}):
        write_fasta(tmp_path / "g.fa", contigs)
        pysam.tabix_compress(str(tmp_path / "g.fa"), str(genome), force=True)
        if index.is_file():
            earlier = genome.stat().st_mtime - 10
            os.utime(index, (earlier, earlier))
        with Reference.open(genome) as reference:
            check_all(reference, contigs)
    assert "g.fa.gz.fai: is older than g.fa.gz" in caplog.text


@pytest.mark.parametrize(
    "index",
    [
        "",
        "a\n",
        "a\tx\t3\t5\t6\n",
        "a\t9\t3\t0\t0\n",
        "a\t-1\t3\t5\t6\n",
        "a\t5\t3\t6\t5\n",
        "a\t6\t3\t5\t60\n",  # its last base is beyond the end of the file
        "a\t60\t3\t5\t6\n",
    ],
)
def test_an_invalid_index_is_replaced(tmp_path: Path, index: str) -> None:
    (tmp_path / "g.fa").write_bytes(b">a\nACGTA\nC\n")
    (tmp_path / "g.fa.fai").write_text(index)
    with Reference.open(tmp_path / "g.fa") as reference:
        check_all(reference, {"a": b"ACGTAC"})
    assert (tmp_path / "g.fa.fai").read_text() == "a\t6\t3\t5\t6\n"


def test_an_index_that_cannot_be_saved_is_used_from_memory(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_fasta(tmp_path / "g.fa", CONTIGS)
    (tmp_path / "g.fa.fai").mkdir()  # takes no file, even when root asks
    for _ in range(2):  # made once, and said once
        with Reference.open(tmp_path / "g.fa") as reference:
            check_all(reference, CONTIGS)
    assert caplog.text.count("the index is not kept") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["g.fa", "g.fa.fai"]


@pytest.mark.parametrize("name", ["g.fa", "g.fa.gz"])
def test_threads_can_share_a_genome(tmp_path: Path, name: str) -> None:
    bases = np.random.default_rng(0).choice(list(b"ACGT"), 300_000).astype(np.uint8).tobytes()
    write_fasta(tmp_path / "g.fa", {"chr1": bases}, width=60)
    if name.endswith("gz"):
        pysam.tabix_compress(str(tmp_path / "g.fa"), str(tmp_path / name))

    def wrong(seed: int) -> int:
        starts = np.random.default_rng(seed).integers(len(bases) - 9000, size=400).tolist()
        intervals = [Interval("chr1", start, start + 9000) for start in starts]
        return sum(genome.fetch(i) != bases[i.start : i.end] for i in intervals)

    with Reference.open(tmp_path / name) as genome, ThreadPoolExecutor(4) as threads:
        assert not any(threads.map(wrong, range(4)))


def test_a_fork_must_open_the_genome_itself(tmp_path: Path) -> None:
    write_fasta(tmp_path / "g.fa", CONTIGS)
    code = (
        "import os, sys\n"
        "from evo2cli.genome import Interval, Reference\n"
        "genome = Reference.open(sys.argv[1])\n"
        "if os.fork():\n"
        "    os.wait()\n"
        "print(genome.fetch(Interval('chr1', 0, 3)))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "g.fa")], capture_output=True, text=True
    )
    assert result.stdout == "b'ACG'\n"
    assert "g.fa: was opened by another process; open it in each process" in result.stderr


def test_intervals_outside_the_contig_are_refused(tmp_path: Path) -> None:
    write_fasta(tmp_path / "g.fa", CONTIGS)
    with Reference.open(tmp_path / "g.fa") as reference:
        with pytest.raises(ValueError, match=r"beyond the end of the contig \(73 bases\)"):
            reference.fetch(Interval("chr1", 70, 74))
        with pytest.raises(ValueError, match="no contig 'chrX'"):
            reference.fetch(Interval("chrX", 0, 1))
    with pytest.raises(ValueError, match="start <= end"):
        Interval("chr1", 5, 4)
    with pytest.raises(ValueError, match="0 <= start"):
        Interval("chr1", -1, 4)


def test_two_contigs_of_one_name_are_refused(tmp_path: Path) -> None:
    (tmp_path / "g.fa").write_bytes(b">a\nAC\n>a\nGT\n")
    with pytest.raises(UserError, match="two contigs are named 'a'"):
        Reference.open(tmp_path / "g.fa")


def test_the_awkward_files(shared: Path, tmp_path: Path) -> None:
    opened, refused = [], {}
    for file in sorted((shared / "data" / "zoo" / "fasta").iterdir()):
        if file.suffix in (".fai", ".gzi"):
            continue
        for part in file.parent.glob(f"{file.name}*"):
            shutil.copy2(part, tmp_path)
        copy = tmp_path / file.name
        try:
            reference = Reference.open(copy)
        except UserError as error:
            refused[file.name] = str(error)
            continue
        with reference:
            check_thirds(reference, {r.name: r.sequence for r in read_records(copy)})
        opened.append(file.name)
    assert len(opened) >= 15
    assert all(name in message for name, message in refused.items())
    assert {"fastqs.fq", "bp_dups.fasta", "bionemo_dupes.fasta"} <= set(refused)


def check_thirds(reference: Reference, contigs: dict[str, bytes]) -> None:
    assert reference.names == tuple(contigs)
    for name, bases in contigs.items():
        ends = [len(bases) * part // 3 for part in range(4)]
        thirds = [reference.fetch(Interval(name, *pair)) for pair in pairwise(ends)]
        assert b"".join(thirds) == bases, name
