"""Random access to the sequences of a reference genome in a FASTA file.

Coordinates are 0-based and half-open. htslib (through pysam) reads plain and bgzip-compressed FASTA
by an index; a file that it cannot index (gzip, lines of unequal length) is read into memory. A
memory map with an index of our own was not faster: a window of 8,192 bases at a random position of
human chromosome 20 took 21 us with it and 17 us with pysam, among 20,000 contigs 31 us and 33 us (1
core, pysam 0.24.1, warm cache).
"""

import io
import logging
import os
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import BinaryIO

import pysam
from pysam.utils import SamtoolsError

from evo2cli.errors import UserError, listed
from evo2cli.files import atomic_path, reading, size_and_time, temporary_folder, writing
from evo2cli.genome.bgzip import BgzipText, gzi_matches
from evo2cli.genome.contig_names import DEFAULT_NAMES, ContigNames, describe_build, is_other_build
from evo2cli.genome.fasta import read_records
from evo2cli.genome.htslib import bytes_of, silent_htslib
from evo2cli.genome.interval import ENDLESS, Interval
from evo2cli.genome.regions import merge_spans, read_region, whole_contig
from evo2cli.genome.source import STDIN, is_bgzip

_LOG = logging.getLogger(__name__)  # not the console: genomes are opened from Python, too
_CHECKED = 1 << 16  # bases of a first line that are compared with an index

# The genome that was last read into memory, by path, size and date: a command opens its genome
# several times, and reading a human one takes a minute.
_in_memory_cache: dict[tuple[Path, int, int], dict[str, bytes]] = {}
# The contents of indexes that could not be saved beside their genome, likewise.
_unsaved_indexes: dict[tuple[Path, int, int], list[bytes]] = {}


class Reference:
    """Random access to the contigs of a FASTA file.

    It is a context manager that closes the file::

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
        self._names = DEFAULT_NAMES

    @classmethod
    def open(cls, path: Path | str, names: ContigNames = DEFAULT_NAMES) -> "Reference":
        """Open a FASTA file: plain, bgzip, gzip or bzip2.

        An index (`.fai`, for bgzip also `.gzi`) is made beside the file if there is none.

        Args:
            path: The file; not stdin.
            names: Synonyms of contig names.

        Raises:
            UserError: The file cannot be read, is not FASTA, or has two contigs with the same name.
        """
        genome = _open(Path(path))
        genome._names = names
        return genome

    @classmethod
    def from_sequences(cls, sequences: Mapping[str, bytes]) -> "Reference":
        """A genome in memory, from the bases of each contig by name."""
        return cls(
            {name: len(bases) for name, bases in sequences.items()},
            lambda interval: sequences[interval.name][interval.start : interval.end],
            lambda: None,
        )

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the contigs, in the order of the file."""
        return tuple(self._lengths)

    def length(self, name: str) -> int:
        """Number of bases of a contig.

        Raises:
            KeyError: There is no contig of this name.
        """
        return self._lengths[name]

    def find(self, name: str) -> str | None:
        """The name that a contig has in this genome, e.g. chr1 for 1 or NC_000001.11.

        None if there is no such contig, or if its length is that of another build than `name`.
        """
        found = self._names.find(name, self._lengths)
        return None if found is None or is_other_build(name, self._lengths[found]) else found

    def contig(self, name: str, origin: str) -> str:
        """As `find`, but raise an error if there is no such contig.

        Args:
            name: Name of the contig.
            origin: Begins the error message, e.g. "--regions chr1:1-9".

        Raises:
            UserError: The genome does not have the contig.
        """
        found = self.find(name)
        if found is None:
            raise UserError(f"{origin}: {self.missing_contig(name)}")
        return found

    def missing_contig(self, name: str) -> str:
        """The message that this genome has no contig `name`."""
        return (
            f"the genome has no contig {name}; it has {listed(self.names)}"
            f"{describe_build(name, self._lengths)}"
        )

    def region(self, text: str) -> Interval:
        """Parse a region of `--regions`; the name of a contig may contain colons.

        Raises:
            UserError: It is not a region, or this genome does not have its contig.
        """
        is_name = self.find(text) is not None
        region = whole_contig(text) if is_name else read_region(text)
        return replace(region, name=self.contig(region.name, f"--regions {text}"))

    def resolve(self, region: Interval, origin: str) -> Interval:
        """A region with the name that its contig has in this genome, and without an open end.

        Args:
            region: Region of a contig, by any of its names.
            origin: Begins the error message.

        Raises:
            UserError: The genome does not have the contig, or the region reaches beyond its end.
        """
        name = self.contig(region.name, origin)
        length = self.length(name)
        end = length if region.end >= ENDLESS else region.end
        if region.start >= length or end > length:
            raise UserError(f"{origin}: reaches beyond base {length:,}, where {name} ends")
        return Interval(name, region.start, end)

    def union(self, intervals: Iterable[Interval]) -> list[Interval]:
        """The union of intervals of this genome, in its order: disjoint, and none is empty."""
        spans: dict[str, list[tuple[int, int]]] = defaultdict(list)
        for interval in intervals:
            if len(interval):
                spans[interval.name].append((interval.start, interval.end))
        return [Interval(name, *span) for name in self.names for span in merge_spans(spans[name])]

    def fetch(self, interval: Interval) -> bytes:
        """The bases of an interval as in the file, including upper and lower case.

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
        sequences = _in_memory_cache.get(_key(path))
    if sequences is not None:
        return Reference.from_sequences(sequences)
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
    _in_memory_cache.clear()
    key = _key(path)
    records = list(read_records(path))
    _unique_lengths(path, ((record.name, len(record.sequence)) for record in records))
    sequences = {record.name: record.sequence for record in records}
    _in_memory_cache[key] = sequences
    return Reference.from_sequences(sequences)


def _open_indexed(path: Path, suffixes: tuple[str, ...]) -> Reference:
    """Open with the indexes beside the file if they match it; otherwise make new ones.

    Args:
        path: Plain or bgzip-compressed FASTA.
        suffixes: Suffixes of the indexes: ".fai", and ".gzi" for bgzip.
    """
    indexes = [path.with_name(path.name + suffix) for suffix in suffixes]
    try:
        with silent_htslib():
            file = (
                _open_with_unsaved_indexes(path, indexes)
                or _open_with_saved_indexes(path, indexes)
                or _open_with_new_indexes(path, indexes)
            )
    except (OSError, ValueError, SamtoolsError):
        _LOG.warning(
            "%s: cannot be indexed (needs lines of equal length and distinct contig names); "
            "read into memory",
            path,
        )
        return _open_in_memory(path)
    lengths = _unique_lengths(path, zip(file.references, file.lengths, strict=True))

    lock = Lock()  # htslib seeks and then reads without the GIL
    process = os.getpid()

    def fetch(interval: Interval) -> bytes:
        if os.getpid() != process:  # after a fork, which shares the position in the file
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


def _open_with_unsaved_indexes(path: Path, indexes: list[Path]) -> pysam.FastaFile | None:
    """Open with indexes that this process has made but could not save; None if there are none."""
    contents = _unsaved_indexes.get(_key(path))
    if contents is None:
        return None
    with temporary_folder() as folder:
        made = [folder / index.name for index in indexes]
        for index, content in zip(made, contents, strict=True):
            index.write_bytes(content)
        return pysam.FastaFile(*map(bytes_of, (path, *made)))


def _open_with_saved_indexes(path: Path, indexes: list[Path]) -> pysam.FastaFile | None:
    """Open with the indexes beside the file; None, after a warning, if they do not match it."""
    if not all(index.is_file() for index in indexes):
        return None
    for index in indexes:
        if index.stat().st_mtime < path.stat().st_mtime:
            _LOG.warning("%s: is older than %s; a new index is made", index, path.name)
            return None
    mismatch: Path | None = indexes[0]
    try:
        mismatch = _find_mismatch(path, indexes)
        if mismatch is None:
            return pysam.FastaFile(*map(bytes_of, (path, *indexes)))
    except (OSError, ValueError, OverflowError):
        pass  # an index that cannot be read does not match either
    _LOG.warning("%s: does not fit %s; a new index is made", mismatch or indexes[0], path.name)
    return None


def _open_with_new_indexes(path: Path, indexes: list[Path]) -> pysam.FastaFile:
    """Index and open a file; the indexes are saved beside it if its folder is writable.

    Raises:
        OSError, ValueError, SamtoolsError: It cannot be indexed.
    """
    with temporary_folder() as folder:
        made = [folder / index.name for index in indexes]
        options = zip(("--fai-idx", "--gzi-idx"), map(bytes_of, made), strict=False)
        pysam.faidx(bytes_of(path), *(word for pair in options for word in pair))
        if _find_mismatch(path, made):
            raise ValueError("htslib left out a contig, or took a blank for a base")
        file = pysam.FastaFile(*map(bytes_of, (path, *made)))
        for source, index in zip(made, indexes, strict=True):
            try:
                with writing(index), atomic_path(index, wait=True) as part:
                    shutil.copyfile(source, part)
            except UserError as error:
                _LOG.warning("%s; the index is not kept", error)
                _unsaved_indexes[_key(path)] = [each.read_bytes() for each in made]
    return file


def _find_mismatch(path: Path, indexes: list[Path]) -> Path | None:
    """The index of a FASTA (`.fai`, or `.gzi` of a bgzip file) that does not match it, if any.

    Raises:
        ValueError: An index cannot be read.
    """
    fai, *gzi = indexes
    if not gzi:
        with path.open("rb") as file:
            return None if _fai_matches(fai, file) else fai
    with BgzipText(path) as text:
        if not gzi_matches(gzi[0], text):
            return gzi[0]
        return None if _fai_matches(fai, io.BufferedReader(text)) else fai


def _fai_matches(index: Path, file: BinaryIO) -> bool:
    """Whether headers and contigs laid out as in a `.fai` are exactly the bytes of a FASTA.

    htslib does not check that an index belongs to the file, that names are unique, or that lines
    have no blanks. Only the header and the first line of each contig are read.

    Raises:
        ValueError: The index is not a `.fai`.
    """
    # Lines end in \n alone, as for htslib; `str.splitlines` splits at a dozen other characters.
    for entry in index.read_bytes().decode().removesuffix("\n").split("\n"):
        name, *numbers = entry.split("\t")
        length, offset, line_bases, line_bytes = map(int, numbers[:4])
        header = _next_line(file)
        words = header[1:].decode().split(maxsplit=1)
        if header[:1] != b">" or file.tell() != offset or (words or [""])[0] != name:
            return False
        if length < 1 or not 1 <= line_bases <= line_bytes:
            return False
        bases = file.read(min(line_bases, length, _CHECKED))
        if bases.split() != [bases]:
            return False
        last_line, column = divmod(length - 1, line_bases)
        file.seek(offset + last_line * line_bytes + column)
        if not file.read(1).strip():  # also beyond the end of the file
            return False
    return not _next_line(file)


def _next_line(file: BinaryIO) -> bytes:
    """The next line that is not blank, or the rest of the current line; empty at the end."""
    while line := file.readline():
        if line.strip():
            return line
    return b""
