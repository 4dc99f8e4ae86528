"""Stream the records of a FASTA file: blocks of bytes -> texts of records -> `Record`.

Biopython's SimpleFastaParser splits lines instead of blocks. It takes 3 to 5 times as long for
plain text (human chromosome 20), and twice as long for .gz (chromosome 20, E. coli), where most of
the time is decompression (1 core, warm cache).
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from evo2cli.errors import UserError
from evo2cli.genome.alphabet import LETTERS, RNA_LETTERS
from evo2cli.genome.formats import Wanted, recognise
from evo2cli.genome.source import (
    BYTE_ORDER_MARK,
    STDIN,
    WHOLE,
    Span,
    TextLimit,
    closed_at_error,
    first_bytes,
    read_blocks,
)

_BLANKS = b" \t\r\n\v\f"
_BAR = b"|"  # around a lineage tag
_MAX_TAG = 1 << 16  # letters; anything longer is not a tag
_BORDER = b"\n>"  # between two records
_MAX_HEADER = 1 << 22  # bytes
_PROTEIN_ONLY = frozenset(b"EFILPQZefilpqz")
_TAG_ONLY = frozenset(b"|_;")
_TAG_HINT = "remove it, and give it by --tag (score, embed, generate)"
_GAPS, _STOP = b"-.", b"*"  # in some alignments, * is a gap as well


@dataclass(frozen=True, slots=True)
class Record:
    """A sequence of a FASTA file.

    Attributes:
        name: First word of the header; may be empty.
        description: Rest of the header.
        sequence: Letters as in the file, including case, without white space; may be empty. Blanks
            within a lineage tag at the beginning, `|D__BACTERIA;...|`, are kept.
    """

    name: str
    description: str
    sequence: bytes

    def __repr__(self) -> str:  # a sequence may be a whole chromosome
        letters = f"<{len(self.sequence):,} letters>"
        return f"Record(name={self.name!r}, description={self.description!r}, sequence={letters})"


def read_records(
    path: Path | str, advance: Callable[[int], None] | None = None, span: Span = WHOLE
) -> Iterator[Record]:
    """Stream the records of a FASTA file, one in memory at a time.

    Args:
        path: Plain, gzip, bgzip or bzip2, recognised by its first bytes; "-" is stdin.
        advance: Called with the number of stored (compressed) bytes read since its last call.
        span: Part of the file to read; begins at the > of a record.

    Raises:
        UserError: The file cannot be read, is damaged or incomplete, or is not FASTA.
    """
    blocks = read_blocks(Path(path), advance, span)
    with closed_at_error(blocks):
        opening = _opening(next(blocks))
        _require_header(Path(path), opening, Wanted.FASTA)
    if not span.start and has_old_line_ends(opening):
        opening = opening.replace(b"\r", b"\n")
        blocks = (block.replace(b"\r", b"\n") for block in blocks)
    sequence_limit, header_limit = TextLimit(Path(path)), TextLimit(Path(path), _MAX_HEADER)
    for texts in _split_records(opening[1:], blocks, sequence_limit, header_limit):
        header, _, first = texts[0].partition(b"\n")
        name, *description = header.decode("utf-8", "replace").split(maxsplit=1) or [""]
        sequence = b"".join([_letters(first), *texts[1:]])
        yield Record(name, "".join(description).rstrip(), sequence)


def has_old_line_ends(opening: bytes) -> bool:
    """Whether a text with this beginning has the line ends of classic Mac OS (CR alone)."""
    return b"\r" in opening and b"\n" not in opening


def require_fasta(path: Path, wanted: Wanted) -> None:
    """Check that a file begins as FASTA; stdin is not consumed.

    Args:
        path: The file.
        wanted: What the message asks for.

    Raises:
        UserError: It does not; the message says which format it has instead.
    """
    _require_header(path, _opening(first_bytes(path)), wanted)


def _opening(start: bytes) -> bytes:
    return start.removeprefix(BYTE_ORDER_MARK).lstrip()


def _require_header(path: Path, opening: bytes, wanted: Wanted) -> None:
    if not opening.startswith(b">"):
        name = "stdin" if path == STDIN else path
        raise UserError(f"{name}: {_explain_not_fasta(opening, wanted)}")


def _explain_not_fasta(opening: bytes, wanted: Wanted) -> str:
    """Describe a file that is not FASTA, from its beginning without leading white space."""
    if not opening:
        return "is empty; a FASTA file holds records that start with '>'"
    if found := recognise(opening):
        return found.refusal(wanted)
    if b"\0" in opening:
        return "is a binary file, not FASTA"
    line = opening.splitlines()[0][:40].decode("utf-8", "replace")
    way_out = "remove the text before the first >" if _BORDER in opening else "give a FASTA file"
    return f"is not FASTA: it starts with {line!r}, not with '>'; {way_out}"


def require_nucleotides(path: Path | str, record: Record) -> None:
    """Check that a record holds only nucleotide letters, IUPAC codes and U included.

    Raises:
        UserError: It names the file, the record, the first invalid letter and its 1-based position.
    """
    require_letters(f"{path}: record {record.name!r}", record.sequence)


def require_letters(origin: str, sequence: bytes, tag_hint: str = _TAG_HINT) -> None:
    """Check that a sequence holds only nucleotide letters, IUPAC codes and U included.

    Args:
        origin: Begins the error message.
        sequence: The sequence.
        tag_hint: What to do about a part of a lineage tag.

    Raises:
        UserError: It names `origin`, the first invalid letter and its 1-based position.
    """
    invalid = sequence.translate(None, LETTERS + RNA_LETTERS)
    if not invalid:
        return
    letter = invalid[:1]
    if not _TAG_ONLY.isdisjoint(invalid):
        reason = f"part of a lineage tag; {tag_hint}"
    elif not _PROTEIN_ONLY.isdisjoint(invalid):
        reason = "this looks like protein; give nucleotides"
    elif letter in _GAPS or (letter == _STOP and not set(_GAPS).isdisjoint(invalid)):
        reason = "an alignment gap; remove the gaps first (seqkit seq -g)"
    elif letter == _STOP:
        reason = "the stop of a protein; give its nucleotides, without the *"
    else:
        reason = "not a nucleotide letter; write N for an unknown base"
    position = sequence.index(letter) + 1
    shown = letter.decode("latin-1")
    raise UserError(f"{origin}: {shown!r} at position {position:,}: {reason}")


def _letters(first: bytes) -> bytes:
    """Remove white space from the beginning of a sequence, but keep blanks in a lineage tag."""
    start = first.lstrip(_BLANKS)
    if not start.startswith(_BAR):
        return start.translate(None, _BLANKS)
    tag, closing, rest = start[1:].partition(_BAR)
    return _BAR + tag.translate(None, b"\r\n") + closing + rest.translate(None, _BLANKS)


def _has_header(text: bytes) -> bool:
    """Whether the beginning of a record holds its whole header, and its lineage tag if any."""
    start = text.partition(b"\n")[2].lstrip(_BLANKS)
    return bool(start) and (
        not start.startswith(_BAR) or _BAR in start[1:] or len(start) > _MAX_TAG
    )


def _split_records(
    carried: bytes, blocks: Iterable[bytes], sequence_limit: TextLimit, header_limit: TextLimit
) -> Iterator[list[bytes]]:
    """Split a stream into records.

    Args:
        carried: Beginning of the stream, after the first '>'.
        blocks: The rest of the stream, cut anywhere.
        sequence_limit: Limit for the text of a record.
        header_limit: Limit for its header.

    Yields:
        The texts of a record. The first holds the whole header line and the lineage tag; the others
        are sequence without white space, which is removed while a block is in the CPU's cache.
    """
    texts: list[bytes] = []
    size = 0

    def add(text: bytes) -> None:
        nonlocal size
        texts.append(text.translate(None, _BLANKS) if texts else text)
        size = len(texts[-1]) + (size if len(texts) > 1 else 0)
        sequence_limit.check(size, "a record")

    for block in chain(blocks, [_BORDER]):
        text = carried + block
        # Searching for one byte is much faster than for two, the first of which ends every line.
        *closing, rest = text.split(_BORDER) if b">" in text else [text]
        for last in closing:
            add(last)
            yield texts
            texts = []
        if texts or _has_header(rest):
            add(rest)
            carried = b"\n" if rest.endswith(b"\n") else b""  # may be the first half of a border
        else:
            carried = rest  # the header or the tag is not complete yet
            header_limit.check(len(carried), "the header of a record")
