"""Windows of a reference genome: FASTA -> index -> bytes of an interval.

A plain FASTA is memory-mapped and found through its `.fai`; a bgzipped one is read through pysam;
anything else that holds records (gzip, uneven lines) is read into memory.
"""

import mmap
import os
import tempfile
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType

import pysam
from pysam.utils import SamtoolsError

from evo2cli import console
from evo2cli.errors import UserError
from evo2cli.genome.faidx import (
    IndexEntry,
    UnevenLinesError,
    fits,
    format_index,
    make_index,
    parse_index,
)
from evo2cli.genome.fasta import read_records
from evo2cli.genome.interval import Interval
from evo2cli.genome.regions import ENDLESS, read_region, whole_contig
from evo2cli.genome.vcf import find_contig

_GZIP, _BGZIP_FIELD = b"\x1f\x8b", b"BC"


class Reference:
    """Random access to the contigs of a FASTA file; use as a context manager, or `close` it."""

    def __init__(
        self,
        lengths: dict[str, int],
        fetch: Callable[[Interval], bytes],
        close: Callable[[], None],
    ) -> None:
        self._lengths, self._fetch, self.close = lengths, fetch, close

    @classmethod
    def open(cls, path: Path) -> "Reference":
        """Open a FASTA file by the quickest way its layout allows.

        Raises:
            UserError: It cannot be read (stdin cannot), is no FASTA, or names a contig twice.
        """
        try:
            with path.open("rb") as file:
                start = file.read(14)
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror})") from None
        if start.startswith(_GZIP):
            return _open_bgzip(path) if start[12:14] == _BGZIP_FIELD else _open_in_memory(path)
        if not start.startswith(b">"):
            return _open_in_memory(path)  # comments, a byte order mark, or no FASTA at all
        return _open_plain(path)

    @property
    def names(self) -> tuple[str, ...]:
        """The contigs, in the file's order."""
        return tuple(self._lengths)

    def length(self, name: str) -> int:
        """Bases of a contig; KeyError if there is none of this name."""
        return self._lengths[name]

    def contig(self, name: str, asked: str) -> str:
        """The name under which a contig is here: chr1 for 1 and back, chrM for MT and back.

        Args:
            name: Of the contig.
            asked: Who asks for it, as a message begins.

        Raises:
            UserError: It is not here.
        """
        found = find_contig(name, self._lengths)
        if found is None:
            raise UserError(f"{asked}: {self.lacks(name)}")
        return found

    def lacks(self, name: str) -> str:
        """What to say of a contig that is not here."""
        return f"the genome has no contig {name}; it has {', '.join(self.names[:5])}"

    def region(self, text: str) -> Interval:
        """What `--regions` says, of a contig that is here; its name may hold colons.

        Raises:
            UserError: It is no region, or of no contig here.
        """
        is_name = find_contig(text, self._lengths) is not None
        asked = whole_contig(text) if is_name else read_region(text)
        return replace(asked, name=self.contig(asked.name, f"--regions {text}"))

    def place(self, region: Interval, asked: str) -> Interval:
        """Where a region lies here; one without an end ends with its contig.

        Args:
            region: Of a contig by any of its names.
            asked: Who asks for it, as a message begins.

        Raises:
            UserError: It does not lie here.
        """
        name = self.contig(region.name, asked)
        length = self.length(name)
        end = length if region.end >= ENDLESS else region.end
        if region.start >= length or end > length:
            raise UserError(f"{asked}: reaches beyond base {length:,}, where {name} ends")
        return Interval(name, region.start, end)

    def fetch(self, interval: Interval) -> bytes:
        """The bases of an interval, case kept.

        Raises:
            ValueError: It reaches outside its contig, or there is no such contig.
        """
        length = self._lengths.get(interval.name)
        if length is None:
            raise ValueError(f"{interval}: the reference has no contig {interval.name!r}")
        if interval.end > length:
            raise ValueError(f"{interval}: reaches outside the contig of {length:,} bases")
        return self._fetch(interval)

    def __enter__(self) -> "Reference":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _lengths(path: Path, pairs: Iterable[tuple[str, int]]) -> dict[str, int]:
    lengths: dict[str, int] = {}
    for name, length in pairs:
        if name in lengths:
            raise UserError(
                f"{path}: two contigs are named {name!r}; give every contig its own name"
            )
        lengths[name] = length
    return lengths


def _open_in_memory(path: Path) -> Reference:
    sequences = [(record.name, record.sequence) for record in read_records(path)]
    lengths = _lengths(path, ((name, len(sequence)) for name, sequence in sequences))
    by_name = dict(sequences)
    return Reference(
        lengths,
        lambda interval: by_name[interval.name][interval.start : interval.end],
        by_name.clear,
    )


def _open_plain(path: Path) -> Reference:
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    try:
        entries = _load_index(path, mapped)
    except UnevenLinesError as error:
        console.say(f"{path}: {error}; read into memory")
        mapped.close()
        return _open_in_memory(path)
    lengths = _lengths(path, ((entry.name, entry.length) for entry in entries))
    by_name = {entry.name: entry for entry in entries}

    def fetch(interval: Interval) -> bytes:
        entry = by_name[interval.name]
        stored = mapped[entry.position(interval.start) : entry.position(interval.end)]
        return stored.translate(None, b"\r\n")

    return Reference(lengths, fetch, mapped.close)


def _load_index(path: Path, mapped: mmap.mmap) -> list[IndexEntry]:
    """The `.fai` beside the file if it fits; else a fresh one, left there when that is allowed."""
    index = _beside(path, ".fai")
    if _is_current(index, path):
        try:
            entries = parse_index(index.read_text(encoding="utf-8"))
            if fits(entries, mapped):
                return entries
        except (OSError, ValueError):
            pass  # told below: an index that cannot be read fits nothing
        console.warn(f"{index}: does not fit {path.name}; a fresh index is made")
    entries = make_index(mapped)
    _leave(index, format_index(entries).encode())
    return entries


def _open_bgzip(path: Path) -> Reference:
    indexes = [_beside(path, suffix) for suffix in (".fai", ".gzi")]
    silenced = pysam.set_verbosity(0)  # htslib tells its errors on stderr; ours say them
    try:
        if all(_is_current(index, path) for index in indexes):
            file = pysam.FastaFile(str(path), str(indexes[0]), str(indexes[1]))
        else:
            file = _index_bgzip(path, indexes)
    except (OSError, ValueError, SamtoolsError):
        console.say(f"{path}: cannot be indexed; read into memory")
        return _open_in_memory(path)
    finally:
        pysam.set_verbosity(silenced)
    lengths = _lengths(path, zip(file.references, file.lengths, strict=True))

    def fetch(interval: Interval) -> bytes:
        bases: bytes = file.fetch(interval.name, interval.start, interval.end).encode()
        if len(bases) != len(interval):
            raise UserError(
                f"{path}: {interval} reads as {len(bases):,} bases: the file is damaged, or "
                f"{indexes[0].name} or {indexes[1].name} does not fit it; remove both and run again"
            )
        return bases

    return Reference(lengths, fetch, file.close)


def _index_bgzip(path: Path, indexes: list[Path]) -> pysam.FastaFile:
    """Open a bgzipped FASTA by fresh indexes, left beside it when that is allowed."""
    with tempfile.TemporaryDirectory() as folder:
        made = [Path(folder, index.name) for index in indexes]
        pysam.faidx(str(path), "--fai-idx", str(made[0]), "--gzi-idx", str(made[1]))
        file = pysam.FastaFile(str(path), str(made[0]), str(made[1]))
        for fresh, index in zip(made, indexes, strict=True):
            _leave(index, fresh.read_bytes())
    return file


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def _is_current(index: Path, path: Path) -> bool:
    """Whether there is such an index; one older than its FASTA is told and does not count."""
    if not index.is_file():
        return False
    if index.stat().st_mtime < path.stat().st_mtime:
        console.warn(f"{index}: is older than {path.name}; a fresh index is made")
        return False
    return True


def _leave(index: Path, content: bytes) -> None:
    """Write an index whole or not at all; in a folder that takes no files it is not kept."""
    partial = _beside(index, f".{os.getpid()}.partial")
    try:
        partial.write_bytes(content)
        partial.replace(index)
    except OSError:
        with suppress(OSError):
            partial.unlink()
        console.say(f"{index.parent}: not writable; {index.name} is not kept")
