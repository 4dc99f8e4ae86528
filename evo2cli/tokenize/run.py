"""Convert FASTA or JSON lines to a token set."""

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from evo2cli import __version__, console
from evo2cli.data.jsonl import is_jsonl, read_texts
from evo2cli.data.letters import count_bytes
from evo2cli.data.splits import SPLITS, SplitRule, content_sha256
from evo2cli.data.tags import find_tags
from evo2cli.data.tokens import MANIFEST, Document, TokenSet, TokenWriter
from evo2cli.errors import UserError
from evo2cli.files import locked, reading, writing
from evo2cli.genome.alphabet import LETTERS, to_dna
from evo2cli.genome.fasta import read_records, require_nucleotides
from evo2cli.genome.source import STDIN
from evo2cli.tokenize.options import TokenizeOptions

_DEFAULT_VALID_FRACTION = 0.05
_NOT_DNA = ~np.isin(np.arange(256), list(LETTERS))
_BLOCK = 1 << 20


class DocumentReader:
    """Reads the documents of FASTA and .jsonl files, and counts letters and oddities.

    Args:
        advance: Called with the number of stored bytes read since its last call.
    """

    def __init__(self, advance: Callable[[int], None]) -> None:
        self._advance = advance
        self._letters = np.zeros(256, np.int64)
        self._empty = self._rna = self._repeated_names = self._in_valid = 0

    @property
    def letters(self) -> dict[str, int]:
        """Number of occurrences of each letter, with U counted as T."""
        return {chr(byte): int(count) for byte, count in enumerate(self._letters) if count}

    def distribute(
        self, inputs: Sequence[Path], valid: Sequence[Path], rule: SplitRule
    ) -> Iterator[tuple[str, Document]]:
        """Every document with its split; what a `valid` file has is in no other split."""
        held_out = set()
        for path in valid:
            for document in self.read(path):
                held_out.add(document.sha256)
                yield "valid", document
        for path in inputs:
            for document in self.read(path):
                if document.sha256 in held_out:
                    self._in_valid += 1
                else:
                    yield rule.split(document.sha256), document

    def read(self, path: Path) -> Iterator[Document]:
        """The documents of `path` that are not empty.

        Raises:
            UserError: It cannot be read, or is neither DNA nor JSON lines.
        """
        return self._read_jsonl(path) if is_jsonl(path) else self._read_fasta(path)

    def _read_jsonl(self, path: Path) -> Iterator[Document]:
        """The texts as they are, tags included, named by their line numbers."""
        for number, text in read_texts(path, self._advance):
            if not text:
                self._empty += 1
                continue
            self._letters += count_bytes(text)
            yield Document(str(number), path.name, "+", text, content_sha256(text))

    def _read_fasta(self, path: Path) -> Iterator[Document]:
        """The records, with T in place of U.

        Raises:
            UserError: A record has letters other than nucleotides.
        """
        names = set()
        for record in read_records(path, self._advance):
            self._repeated_names += record.name in names
            names.add(record.name)
            if not record.sequence:
                self._empty += 1
                continue
            sequence = record.sequence
            counts = count_bytes(sequence)
            if counts[_NOT_DNA].any():
                require_nucleotides(path, record)
                self._rna += 1
                sequence = to_dna(sequence)
                counts = count_bytes(sequence)
            self._letters += counts
            yield Document(record.name, path.name, "+", sequence, content_sha256(sequence))

    def report(self) -> None:
        """Report oddities."""
        if self._empty:
            console.say(f"{self._empty:,} empty records skipped")
        if self._rna:
            console.say(f"{self._rna:,} RNA records: U written as T")
        if self._repeated_names:
            console.warn(f"{self._repeated_names:,} records repeat a name of their file")
        if self._in_valid:
            console.warn(
                f"{self._in_valid:,} training sequences are in the validation files as well (or "
                "their reverse complements are): left out of train"
            )


def tokenize_files(options: TokenizeOptions) -> dict[str, Any]:
    """Write the sequences of FASTA files, or the texts of .jsonl files, as a token set.

    An existing token set of files with the same names and hashes and with the same options is left
    unchanged. FASTA can also come from stdin (`-`) and pipes.

    Returns:
        The manifest.

    Raises:
        UserError: An input is broken or not DNA, an option is out of range, or the output exists.
    """
    output = options.output
    valid_fraction = options.valid_fraction
    if valid_fraction is None:
        valid_fraction = 0.0 if options.valid else _DEFAULT_VALID_FRACTION
    rule = SplitRule(valid_fraction, options.test_fraction)
    with writing(output):
        _check_free(output)
        sources = _describe_sources({"train": options.files, "valid": options.valid})
        facts = {
            "made_by": f"evo2cli {__version__}",
            "options": {**asdict(rule), "reverse_complement": options.reverse_complement},
            "sources": sources,
        }
        earlier = _existing(output, facts)
        if earlier is not None:
            console.say(f"{output}: already exists, from the same files with the same options")
            return earlier
        size = sum(source["bytes"] or 0 for source in sources)
        output.parent.mkdir(parents=True, exist_ok=True)
        with (
            locked(output),
            TokenWriter(output) as writer,
            console.progress("tokenize", size or None, "bytes") as bar,
        ):
            started, reader = time.perf_counter(), DocumentReader(bar.advance)
            for split, document in reader.distribute(options.files, options.valid, rule):
                writer.add(split, document)
                if options.reverse_complement:
                    _require_no_tags(document)
                    writer.add(split, document.reverse_complement())
            if not reader.letters:
                names = ", ".join(map(str, [*options.files, *options.valid]))
                raise UserError(f"{names}: no record has a base; give files with sequences")
            manifest = writer.finish({**facts, "letters": reader.letters})
    reader.report()
    _report(manifest, output, time.perf_counter() - started)
    return manifest


def _require_no_tags(document: Document) -> None:
    """Refuse to reverse complement a text with a tag, which has no reverse complement.

    Raises:
        UserError: It has a tag.
    """
    found = find_tags(np.frombuffer(document.sequence, np.uint8))
    if found is not None and found[0].any():
        raise UserError(
            f"{document.source}: document {document.name} has a tag, which has no reverse "
            "complement; drop --reverse-complement (training reverse complements windows itself)"
        )


def _check_free(output: Path) -> None:
    """Refuse an output that exists, unless it is an empty folder or a token set.

    Raises:
        UserError: It is something else.
    """
    if output.is_dir() and (not any(output.iterdir()) or (output / MANIFEST).is_file()):
        return
    if output.exists():
        raise UserError(f"{output}: exists and is not a token set; choose another --output")


def _existing(output: Path, facts: dict[str, Any]) -> dict[str, Any] | None:
    """The manifest of an earlier run on the same input; None if there is no token set.

    Raises:
        UserError: `output` is a token set of other input.
    """
    if not (output / MANIFEST).is_file():
        return None
    manifest = TokenSet.open(output).manifest
    is_known = all(source["sha256"] for source in facts["sources"])
    if is_known and all(manifest.get(key) == facts[key] for key in ("options", "sources")):
        return manifest
    raise UserError(
        f"{output}: has tokens of other files or options; remove it or choose another --output"
    )


def _describe_sources(paths: dict[str, Sequence[Path]]) -> list[dict[str, Any]]:
    """Name, role, size and hash of every input; for a pipe only name and role are known.

    Raises:
        UserError: One cannot be read.
    """
    roles = [(role, path) for role, group in paths.items() for path in group]
    for _, path in roles:
        if path != STDIN and (path.is_dir() or not path.exists()):
            reason = "it is a folder" if path.is_dir() else "no such file"
            raise UserError(f"{path}: cannot be read ({reason})")
    files = {path for _, path in roles if path != STDIN and path.is_file()}
    total = sum(path.stat().st_size for _, path in roles if path in files)
    described = []
    with console.progress("hash", total, "bytes") as bar:
        for role, path in roles:
            size, sha256 = _file_sha256(path, bar.advance) if path in files else (None, None)
            described.append({"name": path.name, "role": role, "bytes": size, "sha256": sha256})
    return described


def _file_sha256(path: Path, advance: Callable[[int], None]) -> tuple[int, str]:
    """Size and hash of a file."""
    size, digest = 0, hashlib.sha256()
    with reading(path), path.open("rb", buffering=0) as file:
        while block := file.read(_BLOCK):
            digest.update(block)
            size += len(block)
            advance(len(block))
    return size, digest.hexdigest()


def _report(manifest: dict[str, Any], output: Path, seconds: float) -> None:
    splits = manifest["splits"]
    bases = sum(split["bases"] for split in splits.values())
    parts = ", ".join(
        f"{name} {facts['documents']:,} documents {facts['bases']:,} bases"
        for name, facts in splits.items()
    )
    console.say(f"{output}: {parts}; {bases / 1e6 / seconds:,.0f} million bases per second")
    top = Counter(manifest["letters"]).most_common(6)
    console.say("letters: " + ", ".join(f"{letter} {count:,}" for letter, count in top))
    options = manifest["options"]
    ways_out = {
        "train": "lower the fractions of the other splits",
        "valid": "raise --valid-fraction, or give files with --valid",
        "test": "raise --test-fraction",
    }
    shares = {"valid": options["valid_fraction"], "test": options["test_fraction"]}
    shares["train"] = 1 - sum(shares.values())
    for name in SPLITS:
        if shares[name] and name not in splits:
            console.warn(
                f"the {name} split is empty: there are too few sequences, which are never divided; "
                f"{ways_out[name]}"
            )
