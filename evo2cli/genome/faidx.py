"""The `.fai` index of a plain FASTA file: made, read, and held against the file."""

import mmap
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass

import numpy as np

_BLANKS = b" \t\r\n\v\f"
_BLOCK = 1 << 20


class UnevenLinesError(ValueError):
    """A file that cannot be indexed: the lines of a contig differ in length, or have no ends."""


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """A line of a `.fai`: where the bases of a contig lie in the file.

    Attributes:
        name: Of the contig.
        length: Bases.
        offset: Of the first base, in bytes.
        line_bases: Bases on each line but the last.
        line_bytes: The same with the line's end.

    Raises:
        ValueError: The numbers contradict each other.
    """

    name: str
    length: int
    offset: int
    line_bases: int
    line_bytes: int

    def __post_init__(self) -> None:
        if min(self.length, self.offset) < 0 or not min(1, self.length) <= self.line_bases:
            raise ValueError(f"{self}: impossible for an index")
        if self.line_bytes < self.line_bases:
            raise ValueError(f"{self}: a line has more bases than bytes")

    def position(self, base: int) -> int:
        """Where a base lies in the file, or where the last one ends."""
        if base == 0:
            return self.offset
        line, column = divmod(base - 1, self.line_bases)
        return self.offset + line * self.line_bytes + column + 1


def parse_index(text: str) -> list[IndexEntry]:
    """The entries of a `.fai`; columns after the fifth (of FASTQ) are ignored.

    Raises:
        ValueError: It is none.
    """
    entries = []
    for line in text.splitlines():
        name, *numbers = line.split("\t")
        length, offset, line_bases, line_bytes = map(int, numbers[:4])
        entries.append(IndexEntry(name, length, offset, line_bases, line_bytes))
    return entries


def format_index(entries: Sequence[IndexEntry]) -> str:
    """The text of a `.fai`."""
    return "".join("\t".join(map(str, astuple(entry))) + "\n" for entry in entries)


def fits(entries: Sequence[IndexEntry], mapped: mmap.mmap) -> bool:
    """Whether headers and contigs, laid out as the index says, are exactly the file."""
    end = 0
    for entry in entries:
        header = mapped[end : entry.offset]
        if not header.endswith(b"\n") and entry.offset != len(mapped):
            return False
        header = header.strip()
        if not header.startswith(b">") or b"\n" in header or _name(header) != entry.name:
            return False
        end = entry.position(entry.length)
    return end <= len(mapped) and not mapped[end:].strip()


def make_index(mapped: mmap.mmap) -> list[IndexEntry]:
    """Index a file whose first byte is '>'.

    Raises:
        UnevenLinesError: The lines of a contig, but its last, are not equally long, or no line
            ends in a newline.
    """
    if mapped.find(b"\n") < 0:
        raise UnevenLinesError("no line ends in a newline")
    return [_entry(mapped, start, end) for start, end in _records(mapped)]


def _records(mapped: mmap.mmap) -> Iterator[tuple[int, int]]:
    """Where each record starts (at its '>') and ends."""
    start = 0
    while start < len(mapped):
        border = mapped.find(b"\n>", start)
        end = len(mapped) if border < 0 else border + 1
        yield start, end
        start = end


def _name(header: bytes) -> str:
    """The first word after the '>'."""
    return next(iter(header[1:].decode("utf-8", "replace").split()), "")


def _entry(mapped: mmap.mmap, start: int, end: int) -> IndexEntry:
    offset = mapped.find(b"\n", start, end) + 1 or end
    name = _name(mapped[start:offset])
    line_end = mapped.find(b"\n", offset, end) + 1 or end
    while end > offset and mapped[end - 1] in _BLANKS:
        end -= 1
    if end == offset:
        return IndexEntry(name, 0, offset, 0, 0)
    first_line = mapped[offset:line_end].rstrip(_BLANKS)
    line_bases, line_bytes = len(first_line), line_end - offset
    lines, rest = divmod(end - offset, line_bytes)
    length = lines * line_bases + rest
    if rest > line_bases or not _is_even(mapped, offset, end, line_bases, line_bytes):
        raise UnevenLinesError(f"the lines of contig {name!r} are not equally long")
    return IndexEntry(name, length, offset, line_bases, line_bytes)


def _is_even(mapped: mmap.mmap, offset: int, end: int, line_bases: int, line_bytes: int) -> bool:
    """Whether the bytes from `offset` to `end` are lines of so many letters and their ends."""
    step = max(1, _BLOCK // line_bytes) * line_bytes
    for start in range(offset, end, step):
        block = np.frombuffer(mapped[start : min(start + step, end)], np.uint8)
        whole = len(block) // line_bytes * line_bytes
        rows = block[:whole].reshape(-1, line_bytes)
        letters = rows[:, :line_bases].min(initial=255), block[whole:].min(initial=255)
        if min(letters) <= ord(" ") or rows[:, line_bases:].max(initial=0) > ord(" "):
            return False
    return True
