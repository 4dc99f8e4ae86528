"""Read pieces of the inputs, and assign each document to a split."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from evo2cli.data.jsonl import is_jsonl, read_texts
from evo2cli.data.letters import count_bytes
from evo2cli.data.splits import SplitRule, content_sha256
from evo2cli.data.tags import find_tags
from evo2cli.data.token_writer import Document, PartWriter
from evo2cli.errors import UserError
from evo2cli.genome.alphabet import LETTERS, to_dna
from evo2cli.genome.fasta import read_records, require_nucleotides
from evo2cli.genome.source import WHOLE, Span
from evo2cli.tokenize.pieces import Piece
from evo2cli.workers import Advance

_NOT_DNA = ~np.isin(np.arange(256), list(LETTERS))


@dataclass
class Tally:
    """Counts over the documents that have been read.

    Attributes:
        counts: Number of occurrences of each byte, with U counted as T, [256].
        empty: Number of records without a sequence.
        rna: Number of records with U.
        repeated_names: Number of records whose name occurs earlier in their file.
        in_valid: Number of training documents left out because a `valid` file has them.
        names: Record names of the file read last, if it is read in several pieces.
        held_out: `content_sha256` of the documents of `valid` files.
    """

    counts: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(256, np.int64))
    empty: int = 0
    rna: int = 0
    repeated_names: int = 0
    in_valid: int = 0
    names: set[str] = field(default_factory=set)
    held_out: set[str] = field(default_factory=set)

    @property
    def letters(self) -> dict[str, int]:
        """Number of occurrences of each letter."""
        return {chr(byte): int(count) for byte, count in enumerate(self.counts) if count}

    def add(self, later: "Tally", *, same_file: bool) -> None:
        """Add the tally of the next piece; `same_file` if it continues the file read last."""
        self.counts += later.counts
        self.empty += later.empty
        self.rna += later.rna
        self.in_valid += later.in_valid
        if not same_file:
            self.names = set()
        self.repeated_names += later.repeated_names + len(self.names & later.names)
        self.names |= later.names
        self.held_out |= later.held_out


@dataclass(frozen=True)
class PieceReader:
    """Reads the documents of a piece and writes them to their splits.

    Attributes:
        rule: Assigns documents to splits.
        reverse_complement: Whether to write both strands.
        valid: Whether the files are held out for validation.
    """

    rule: SplitRule
    reverse_complement: bool
    valid: bool

    def read(
        self, piece: Piece, writer: PartWriter, held_out: Collection[str], advance: Advance
    ) -> Tally:
        """Write every document to its split, except training documents whose hash is held out.

        Args:
            piece: The piece.
            writer: Writes the documents.
            held_out: `content_sha256` of the documents of `valid` files.
            advance: Called with the number of stored bytes read since its last call.

        Raises:
            UserError: A file cannot be read, or is neither DNA nor JSON lines.
        """
        tally = Tally()
        for path in piece.files:
            for document in _documents(path, piece.span, tally, advance):
                if self.valid:
                    tally.held_out.add(document.sha256)
                    split = "valid"
                elif document.sha256 in held_out:
                    tally.in_valid += 1
                    continue
                else:
                    split = self.rule.split(document.sha256)
                writer.add(split, document)
                if self.reverse_complement:
                    _require_no_tags(document)
                    writer.add(split, document.reverse_complement())
        if piece.span == WHOLE:
            tally.names.clear()  # only needed to compare the pieces of a file
        return tally


def _documents(path: Path, span: Span, tally: Tally, advance: Advance) -> Iterator[Document]:
    """The non-empty documents of a span of a file.

    Raises:
        UserError: It cannot be read, or is neither DNA nor JSON lines.
    """
    tally.names = set()
    read = _read_jsonl if is_jsonl(path) else _read_fasta
    return read(path, span, tally, advance)


def _read_jsonl(path: Path, span: Span, tally: Tally, advance: Advance) -> Iterator[Document]:
    """The texts unchanged, including tags, named by their line numbers."""
    for number, text in read_texts(path, advance, span):
        if not text:
            tally.empty += 1
            continue
        tally.counts += count_bytes(text)
        yield Document(str(number), path.name, "+", text, content_sha256(text))


def _read_fasta(path: Path, span: Span, tally: Tally, advance: Advance) -> Iterator[Document]:
    """The records, with T in place of U.

    Raises:
        UserError: A record has letters other than nucleotides.
    """
    for record in read_records(path, advance, span):
        tally.repeated_names += record.name in tally.names
        tally.names.add(record.name)
        if not record.sequence:
            tally.empty += 1
            continue
        sequence = record.sequence
        counts = count_bytes(sequence)
        if counts[_NOT_DNA].any():
            require_nucleotides(path, record)
            tally.rna += 1
            sequence = to_dna(sequence)
            counts = count_bytes(sequence)
        tally.counts += counts
        yield Document(record.name, path.name, "+", sequence, content_sha256(sequence))


def _require_no_tags(document: Document) -> None:
    """Refuse to reverse complement a text with a tag, which has no reverse complement.

    Raises:
        UserError: It has a tag.
    """
    masks = find_tags(np.frombuffer(document.sequence, np.uint8))
    if masks is not None and masks[0].any():
        raise UserError(
            f"{document.source}: document {document.name} has a tag, which has no reverse "
            "complement; drop --reverse-complement (training reverse complements windows itself)"
        )
