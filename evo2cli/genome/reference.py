"""Sequences of a reference genome: a FASTA file and an interval give the bases in it.

Coordinates are 0-based and half-open. htslib (through pysam) reads plain and bgzip-compressed FASTA
by an index; whatever it cannot index (gzip, uneven lines, a name that occurs twice) is read into
memory. A memory map with an index of our own was no faster where it matters: windows of 8,192 bases
at random positions of human chromosome 20 took 21 us by it and 17 us by pysam (1 core, pysam
0.24.1, warm cache), and 31 us against 33 us from 20,000 contigs.
"""

import io
import logging
import os
import shutil
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import BinaryIO

import pysam
from pysam.utils import SamtoolsError

from evo2cli.errors import UserError, listed
from evo2cli.files import atomic_path, reading, size_and_time, temporary_folder, writing
from evo2cli.genome.bgzip import BgzipText, fits_blocks
from evo2cli.genome.contig_names import KNOWN, ContigNames, describe_build, is_other_build
from evo2cli.genome.fasta import read_records
from evo2cli.genome.htslib import bytes_of, silent_htslib
from evo2cli.genome.interval import ENDLESS, Interval
from evo2cli.genome.regions import read_region, whole_contig
from evo2cli.genome.source import STDIN, is_bgzip

_LOG = logging.getLogger(__name__)  # not the console: genomes are opened from Python, too
_LOOK = 1 << 16  # bases

# The genome that was last read into memory, by path, size and date: a command opens its genome
# several times, and to read a human one takes a minute.
_held: dict[tuple[Path, int, int], dict[str, bytes]] = {}
# Likewise the indexes that could not be kept beside their genome.
_unkept: dict[tuple[Path, int, int], list[bytes]] = {}


class Reference:
    """Random access to the contigs of a FASTA file.

    A context manager, which closes the file::

        with Reference.open("genome.fa") as genome:
            bases = genome.fetch(Interval("chr1", 10_000, 10_100))
    """

    def __init__(
        self,
        lengths: dict[str, int],
        fetch: Callable[[Interval], bytes],
        close: Callable[[], None],
    ) -> None:
        self._lengths, self._fetch, self.close = lengths, fetch, close
        self._names = KNOWN

    @classmethod
    def open(cls, path: Path | str, names: ContigNames = KNOWN) -> "Reference":
        """Open a FASTA file: plain, bgzip, gzip or bzip2.

        An index (`.fai`, for bgzip also `.gzi`) is made beside the file if there is none.

        Args:
            path: The file.
            names: Tells which names mean the same contig.

        Raises:
            UserError: The file cannot be read (stdin cannot), is not FASTA, or has two contigs of
                the same name.
        """
        genome = _open(Path(path))
        genome._names = names
        return genome

    @classmethod
    def none(cls) -> "Reference":
        """The genome of variants that need none: it has no contigs."""
        return _in_memory({})

    @property
    def names(self) -> tuple[str, ...]:
        """The contigs, in the order of the file."""
        return tuple(self._lengths)

    def length(self, name: str) -> int:
        """Number of bases of a contig.

        Raises:
            KeyError: There is no contig of this name.
        """
        return self._lengths[name]

    def find(self, name: str) -> str | None:
        """The name of a contig in this genome: chr1 for 1, 1 for NC_000001.11, and so on.

        None if it has no such contig, or if that has the length of another build than `name`.
        """
        found = self._names.find(name, self._lengths)
        return None if found is None or is_other_build(name, self._lengths[found]) else found

    def contig(self, name: str, origin: str) -> str:
        """As `find`, for a name that must be there.

        Args:
            name: Name of the contig, as written elsewhere.
            origin: Where the name comes from, e.g. "--regions chr1:1-9", for the error message.

        Raises:
            UserError: The genome does not have it.
        """
        found = self.find(name)
        if found is None:
            raise UserError(f"{origin}: {self.missing_contig(name)}")
        return found

    def missing_contig(self, name: str) -> str:
        """The message that contig `name` is not in this genome."""
        return (
            f"the genome has no contig {name}; it has {listed(self.names)}"
            f"{describe_build(name, self._lengths)}"
        )

    def region(self, text: str) -> Interval:
        """Read a region as `--regions` takes it; the name of a contig may contain colons.

        Raises:
            UserError: It is not a region, or its contig is not in this genome.
        """
        is_name = self.find(text) is not None
        region = whole_contig(text) if is_name else read_region(text)
        return replace(region, name=self.contig(region.name, f"--regions {text}"))

    def resolve(self, region: Interval, origin: str) -> Interval:
        """A region under this genome's name of its contig; an open end becomes the contig's end.

        Args:
            region: Region of a contig under any of its names.
            origin: Where the region comes from, for the error message.

        Raises:
            UserError: The genome does not have the contig, or the region reaches beyond its end.
        """
        name = self.contig(region.name, origin)
        length = self.length(name)
        end = length if region.end >= ENDLESS else region.end
        if region.start >= length or end > length:
            raise UserError(f"{origin}: reaches beyond base {length:,}, where {name} ends")
        return Interval(name, region.start, end)

    def fetch(self, interval: Interval) -> bytes:
        """The bases of an interval as in the file, upper and lower case kept.

        Raises:
            ValueError: There is no such contig, or the interval reaches beyond its end.
        """
        length = self._lengths.get(interval.name)
        if length is None:
            raise ValueError(f"{interval}: the reference has no contig {interval.name!r}")
        if interval.end > length:
            raise ValueError(f"{interval}: reaches beyond the end of the contig ({length:,} bases)")
        return self._fetch(interval)

    def __repr__(self) -> str:
        return f"<Reference: {len(self._lengths):,} contigs, {sum(self._lengths.values()):,} bases>"

    def __enter__(self) -> "Reference":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _open(path: Path) -> Reference:
    if path == STDIN or path.is_fifo():
        raise UserError(f"{path}: a genome is read in any order, and a pipe only once; give a file")
    with reading(path):
        held = _held.get(_key(path))
    if held is not None:
        return _in_memory(held)
    if is_bgzip(path):
        return _open_indexed(path, (".fai", ".gzi"))
    with reading(path), path.open("rb") as file:
        start = file.read(1)
    if start == b">":
        return _open_indexed(path, (".fai",))
    return _open_in_memory(path)  # gzip, bzip2, comments, a byte order mark, or not FASTA


def _key(path: Path) -> tuple[Path, int, int]:
    return path.absolute(), *size_and_time(path)


def _unique_lengths(path: Path, pairs: Iterable[tuple[str, int]]) -> dict[str, int]:
    lengths: dict[str, int] = {}
    for name, length in pairs:
        if name in lengths:
            raise UserError(
                f"{path}: two contigs are named {name!r}; give every contig its own name"
            )
        lengths[name] = length
    return lengths


def _open_in_memory(path: Path) -> Reference:
    _held.clear()
    key = _key(path)
    records = list(read_records(path))
    _unique_lengths(path, ((record.name, len(record.sequence)) for record in records))
    sequences = {record.name: record.sequence for record in records}
    _held[key] = sequences
    return _in_memory(sequences)


def _in_memory(sequences: dict[str, bytes]) -> Reference:
    return Reference(
        {name: len(sequence) for name, sequence in sequences.items()},
        lambda interval: sequences[interval.name][interval.start : interval.end],
        lambda: None,
    )


def _open_indexed(path: Path, suffixes: tuple[str, ...]) -> Reference:
    """Open by the indexes beside the file if they fit it; else make new ones and keep them there.

    Args:
        path: Plain or bgzip-compressed FASTA.
        suffixes: Suffixes of the indexes: ".fai", and ".gzi" for bgzip.
    """
    indexes = [path.with_name(path.name + suffix) for suffix in suffixes]
    try:
        with silent_htslib():
            file = (
                _open_by_unkept(path, indexes)
                or _open_by_kept(path, indexes)
                or _open_by_new(path, indexes)
            )
    except (OSError, ValueError, SamtoolsError):
        _LOG.warning(
            "%s: cannot be indexed (needs lines of equal length and distinct contig names); "
            "read into memory",
            path,
        )
        return _open_in_memory(path)
    lengths = _unique_lengths(path, zip(file.references, file.lengths, strict=True))

    lock = Lock()  # htslib seeks and then reads without the interpreter's lock
    process = os.getpid()

    def fetch(interval: Interval) -> bytes:
        if os.getpid() != process:  # a fork, which shares the position in the file
            raise UserError(f"{path}: was opened by another process; open it in each process")
        if file.closed:
            raise UserError(f"{path}: the reference has been closed; keep it open while it is read")
        bases = b""
        with lock, silent_htslib(), suppress(ValueError, OSError):
            bases = file.fetch(interval.name, interval.start, interval.end).encode()
        if len(bases) != len(interval):
            names = " or ".join(index.name for index in indexes)
            raise UserError(
                f"{path}: {interval} reads as {len(bases):,} bases: the file is damaged, or "
                f"{names} does not fit it; remove the index and run again"
            )
        return bases

    return Reference(lengths, fetch, file.close)


def _open_by_unkept(path: Path, indexes: list[Path]) -> pysam.FastaFile | None:
    """Open by the indexes that this process made before; None if it kept them, or made none."""
    contents = _unkept.get(_key(path))
    if contents is None:
        return None
    with temporary_folder() as folder:
        made = [folder / index.name for index in indexes]
        for index, content in zip(made, contents, strict=True):
            index.write_bytes(content)
        return pysam.FastaFile(*map(bytes_of, (path, *made)))


def _open_by_kept(path: Path, indexes: list[Path]) -> pysam.FastaFile | None:
    """Open by the indexes beside the file; None, after a warning, if they do not fit."""
    if not all(index.is_file() for index in indexes):
        return None
    for index in indexes:
        if index.stat().st_mtime < path.stat().st_mtime:
            _LOG.warning("%s: is older than %s; a new index is made", index, path.name)
            return None
    misfit: Path | None = indexes[0]
    try:
        misfit = _misfit(path, indexes)
        if misfit is None:
            return pysam.FastaFile(*map(bytes_of, (path, *indexes)))
    except (OSError, ValueError, OverflowError):
        pass  # an index that cannot be read does not fit either
    _LOG.warning("%s: does not fit %s; a new index is made", misfit or indexes[0], path.name)
    return None


def _open_by_new(path: Path, indexes: list[Path]) -> pysam.FastaFile:
    """Index and open a file; the indexes are kept beside it if its folder can be written.

    Raises:
        OSError, ValueError, SamtoolsError: It cannot be indexed.
    """
    with temporary_folder() as folder:
        made = [folder / index.name for index in indexes]
        options = zip(("--fai-idx", "--gzi-idx"), map(bytes_of, made), strict=False)
        pysam.faidx(bytes_of(path), *(word for pair in options for word in pair))
        if _misfit(path, made):
            raise ValueError("htslib left out a contig, or took a blank for a base")
        file = pysam.FastaFile(*map(bytes_of, (path, *made)))
        for source, index in zip(made, indexes, strict=True):
            try:
                with writing(index), atomic_path(index, wait=True) as part:
                    shutil.copyfile(source, part)
            except UserError as error:
                _LOG.warning("%s; the index is not kept", error)
                _unkept[_key(path)] = [each.read_bytes() for each in made]
    return file


def _misfit(path: Path, indexes: list[Path]) -> Path | None:
    """The first index that does not fit a FASTA: its `.fai`, or the `.gzi` of a bgzip file.

    Raises:
        ValueError: An index cannot be read.
    """
    fai, *gzi = indexes
    if not gzi:
        with path.open("rb") as file:
            return None if _index_fits(fai, file) else fai
    with BgzipText(path) as text:
        if not fits_blocks(gzi[0], text):
            return gzi[0]
        return None if _index_fits(fai, io.BufferedReader(text)) else fai


def _index_fits(index: Path, file: BinaryIO) -> bool:
    """Whether headers and contigs, laid out as a `.fai` says, are exactly the bytes of a FASTA.

    htslib checks neither that an index belongs to the file, nor that names occur once, nor that
    lines are free of blanks. Only the header and the first line of each contig are read.

    Raises:
        ValueError: The index is not a `.fai`.
    """
    # Lines end in \n alone, as for htslib; `str.splitlines` takes a dozen other characters too.
    for entry in index.read_bytes().decode().removesuffix("\n").split("\n"):
        name, *numbers = entry.split("\t")
        length, offset, line_bases, line_bytes = map(int, numbers[:4])
        header = _next_line(file)
        words = header[1:].decode().split(maxsplit=1)
        if header[:1] != b">" or file.tell() != offset or (words or [""])[0] != name:
            return False
        if length < 1 or not 1 <= line_bases <= line_bytes:
            return False
        bases = file.read(min(line_bases, length, _LOOK))
        if bases.split() != [bases]:
            return False
        last_line, column = divmod(length - 1, line_bases)
        file.seek(offset + last_line * line_bytes + column)
        if not file.read(1).strip():  # also beyond the end of the file
            return False
    return not _next_line(file)


def _next_line(file: BinaryIO) -> bytes:
    """The next line that is not blank; the rest of the current line must be. Empty at the end."""
    while line := file.readline():
        if line.strip():
            return line
    return b""
