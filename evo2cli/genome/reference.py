"""Windows of a reference genome: FASTA -> index -> bytes of an interval.

A plain FASTA is memory-mapped and found through its `.fai`; a bgzipped one is read through pysam;
anything else that holds records (gzip, uneven lines) is read into memory.
"""

import mmap
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import pysam

from evo2cli import console
from evo2cli.errors import UserError
from evo2cli.genome.fasta import read_records
from evo2cli.genome.interval import Interval

_GZIP, _BGZIP_FIELD = b"\x1f\x8b", b"BC"


@dataclass(frozen=True)
class IndexEntry:
    """A line of a `.fai`: where the bases of a contig lie in the file.

    Attributes:
        name: Of the contig.
        length: Bases.
        offset: Of the first base, in bytes.
        line_bases: Bases on each line but the last.
        line_bytes: The same with the line's end.
    """

    name: str
    length: int
    offset: int
    line_bases: int
    line_bytes: int

    def position(self, base: int) -> int:
        """Where a base lies in the file."""
        if self.line_bases == 0:
            return self.offset
        line, column = divmod(base, self.line_bases)
        return self.offset + line * self.line_bytes + column


class UnevenLinesError(ValueError):
    """A contig whose lines differ in length: it cannot be indexed."""


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
            UserError: It cannot be read, is no FASTA, or names a contig twice.
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


def _lengths(path: Path, pairs: Iterator[tuple[str, int]]) -> dict[str, int]:
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
        lambda: None,
    )


def _open_bgzip(path: Path) -> Reference:
    try:
        file = pysam.FastaFile(str(path))
    except (OSError, ValueError):
        console.say(f"{path}: no usable .fai and .gzi beside it; read into memory")
        return _open_in_memory(path)
    lengths = _lengths(path, zip(file.references, file.lengths, strict=True))

    def fetch(interval: Interval) -> bytes:
        bases: str = file.fetch(interval.name, interval.start, interval.end)
        return bases.encode()

    return Reference(lengths, fetch, file.close)


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
    index = path.with_name(f"{path.name}.fai")
    if index.is_file():
        try:
            entries = _read_index(index)
            if all(_fits(entry, mapped) for entry in entries) and entries:
                return entries
        except (OSError, ValueError):
            pass
        console.warn(f"{index}: does not fit {path.name}; a fresh index is made")
    entries = list(_make_index(mapped))
    text = "".join(
        f"{e.name}\t{e.length}\t{e.offset}\t{e.line_bases}\t{e.line_bytes}\n" for e in entries
    )
    try:
        with tempfile.NamedTemporaryFile(
            "w", dir=path.parent, prefix=f".{index.name}-", delete=False
        ) as file:
            file.write(text)
        Path(file.name).chmod(0o644)
        Path(file.name).replace(index)
    except OSError:
        console.say(f"{path.parent}: not writable; the index of {path.name} is kept in memory")
    return entries


def _read_index(index: Path) -> list[IndexEntry]:
    entries = []
    for line in index.read_text(encoding="utf-8").splitlines():
        name, *numbers = line.split("\t")
        length, offset, line_bases, line_bytes = map(int, numbers[:4])
        entries.append(IndexEntry(name, length, offset, line_bases, line_bytes))
    return entries


def _fits(entry: IndexEntry, mapped: mmap.mmap) -> bool:
    """Whether the contig's header stands just before its first base, and its end is an end."""
    end = entry.position(entry.length)
    if entry.line_bases and entry.length and entry.length % entry.line_bases == 0:
        end = entry.position(entry.length - 1) + 1
    header = mapped[max(0, mapped.rfind(b">", 0, entry.offset)) : entry.offset]
    named = header[1:].decode("utf-8", "replace").split(maxsplit=1)[:1] == [entry.name]
    after = mapped[end : end + 3].translate(None, b"\r\n")
    return named and header.endswith(b"\n") and end <= len(mapped) and after[:1] in (b"", b">")


def _make_index(mapped: mmap.mmap) -> Iterator[IndexEntry]:
    """Walk the records, checking that all lines of a contig but its last are equally long.

    Raises:
        UnevenLinesError: They are not.
    """
    start = 0
    while start < len(mapped):
        header_end = mapped.find(b"\n", start)
        if header_end < 0:
            header_end = len(mapped)
        following = mapped.find(b"\n>", header_end)
        end = len(mapped) if following < 0 else following + 1
        name, *_ = mapped[start + 1 : header_end].decode("utf-8", "replace").split() or [""]
        yield _entry(name, header_end + 1, mapped[header_end + 1 : end])
        start = end


def _entry(name: str, offset: int, body: bytes) -> IndexEntry:
    first, newline, _ = body.partition(b"\n")
    line_bytes = len(first) + len(newline)
    line_bases = len(first.rstrip(b"\r"))
    bases = body.translate(None, b"\r\n")
    entry = IndexEntry(name, len(bases), offset, line_bases, line_bytes)
    uneven = len(bases.translate(None, b" \t>;")) != len(bases)
    if line_bases:
        full_lines, rest = divmod(len(bases), line_bases)
        ends = body[line_bases::line_bytes][:full_lines]
        end = entry.position(len(bases) - 1) + 1 - offset if bases else 0
        uneven |= bool(ends.strip(b"\r\n")) or bool(body[end:].strip(b"\r\n"))
        uneven |= rest == 0 and full_lines * line_bytes < len(body.rstrip(b"\r\n"))
    else:
        uneven |= bool(bases)
    if uneven:
        raise UnevenLinesError(f"the lines of contig {name!r} are of uneven length")
    return entry
