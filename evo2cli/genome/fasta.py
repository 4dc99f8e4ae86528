"""Stream the records of a FASTA file: blocks of bytes -> texts of records -> `Record`.

Biopython's SimpleFastaParser splits lines instead of blocks: it takes 3 to 5 times as long for
human chromosome 20 as plain text, and twice as long for chromosome 20 or E. coli as .gz, where
decompression takes most of the time (1 core, warm cache).
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from evo2cli.errors import UserError
from evo2cli.genome.alphabet import LETTERS, RNA_LETTERS
from evo2cli.genome.source import STDIN, read_blocks

_BLANKS = b" \t\r\n\v\f"
_BORDER = b"\n>"  # between two records
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_OTHER_FORMATS = {
    b"@": "is FASTQ or SAM; convert it to FASTA first (seqtk seq -A, samtools fasta)",
    b"##fileformat=VCF": "is a VCF, not FASTA",
    b"LOCUS": "is GenBank; convert it to FASTA first",
}
_PROTEIN_ONLY = frozenset(b"EFILPQZefilpqz")
_GAPS = b"-.*"


@dataclass(frozen=True, slots=True)
class Record:
    """A sequence of a FASTA file.

    Attributes:
        name: The first word of the header; may be empty.
        description: The rest of the header.
        sequence: Letters as in the file, case kept, without white space; may be empty.
    """

    name: str
    description: str
    sequence: bytes


def read_records(
    path: Path | str, advance: Callable[[int], None] | None = None
) -> Iterator[Record]:
    """Stream the records of a FASTA file, one in memory at a time.

    Args:
        path: Plain, gzip, bgzip or bzip2, recognised by its first bytes; "-" is stdin.
        advance: Called with the number of stored bytes read since its last call.

    Raises:
        UserError: The file cannot be read, is incomplete, or is not FASTA.
    """
    blocks = read_blocks(Path(path), advance)
    opening = next(blocks).removeprefix(_BYTE_ORDER_MARK).lstrip()
    if not opening.startswith(b">"):
        name = "stdin" if Path(path) == STDIN else path
        raise UserError(f"{name}: {explain_not_fasta(opening)}")
    if b"\r" in opening and b"\n" not in opening:  # line ends of old Macs
        opening = opening.replace(b"\r", b"\n")
        blocks = (block.replace(b"\r", b"\n") for block in blocks)
    for texts in _split_records(opening[1:], blocks):
        header, _, first = texts[0].partition(b"\n")
        name, *description = header.decode("utf-8", "replace").split(maxsplit=1) or [""]
        sequence = b"".join([first.translate(None, _BLANKS), *texts[1:]])
        yield Record(name, "".join(description).rstrip(), sequence)


def explain_not_fasta(opening: bytes) -> str:
    """Say what a file is that begins with `opening`, without leading white space, instead of >."""
    if not opening:
        return "is empty; a FASTA file holds records that start with '>'"
    if b"\0" in opening:
        return "is a binary file, not FASTA"
    for beginning, verdict in _OTHER_FORMATS.items():
        if opening.startswith(beginning):
            return verdict
    line = opening.splitlines()[0][:40].decode("utf-8", "replace")
    way_out = "remove the text before the first >" if _BORDER in opening else "give a FASTA file"
    return f"is not FASTA: it starts with {line!r}, not with '>'; {way_out}"


def require_nucleotides(path: Path | str, record: Record) -> None:
    """Refuse a record with anything but nucleotide letters (IUPAC codes and U included).

    Raises:
        UserError: Names the file, the record, its first invalid letter and the 1-based position.
    """
    require_letters(f"{path}: record {record.name!r}", record.sequence)


def require_letters(origin: str, sequence: bytes) -> None:
    """Refuse a sequence with anything but nucleotide letters (IUPAC codes and U included).

    Raises:
        UserError: Names `origin`, the first invalid letter and its 1-based position.
    """
    invalid = sequence.translate(None, LETTERS + RNA_LETTERS)
    if not invalid:
        return
    letter = invalid[:1]
    if not _PROTEIN_ONLY.isdisjoint(invalid):
        verdict = "this looks like protein; give nucleotides"
    elif letter in _GAPS:
        verdict = "an alignment gap; remove the gaps first (seqkit seq -g)"
    else:
        verdict = "not a nucleotide letter; write N for an unknown base"
    position = sequence.index(letter) + 1
    shown = letter.decode("latin-1")
    raise UserError(f"{origin}: {shown!r} at position {position:,}: {verdict}")


def _split_records(carried: bytes, blocks: Iterable[bytes]) -> Iterator[list[bytes]]:
    """Cut a stream at the borders of records.

    Args:
        carried: The stream's beginning, after the first '>'.
        blocks: The rest of the stream, cut anywhere.

    Yields:
        The texts of each record: the first holds the whole header line, the others are sequence
        without white space (which is removed block by block, while it is in the CPU's cache).
    """
    texts: list[bytes] = []

    def add(text: bytes) -> None:
        texts.append(text.translate(None, _BLANKS) if texts else text)

    for block in chain(blocks, [_BORDER]):
        text = carried + block
        # Looking for one byte is much faster than for two, of which every line has the first.
        *closing, rest = text.split(_BORDER) if b">" in text else [text]
        for last in closing:
            add(last)
            yield texts
            texts = []
        if texts or b"\n" in rest:
            add(rest)
            carried = b"\n" if rest.endswith(b"\n") else b""  # perhaps the first half of a border
        else:
            carried = rest  # the beginning of a header
