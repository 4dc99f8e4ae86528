"""`evo2 tokenize`: from FASTA or JSON lines to tokens on disk."""

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
from evo2cli.files import reading, writing
from evo2cli.genome.alphabet import LETTERS, to_dna
from evo2cli.genome.fasta import read_records, require_nucleotides
from evo2cli.genome.source import STDIN

_DEFAULT_VALID = 0.05
_NOT_DNA = ~np.isin(np.arange(256), list(LETTERS))
_BLOCK = 1 << 20


class DocumentReader:
    """Reads the documents of FASTA and .jsonl files, and counts what it met.

    Args:
        advance: Called with the number of stored bytes read since its last call.
    """

    def __init__(self, advance: Callable[[int], None]) -> None:
        self._advance = advance
        self._letters = np.zeros(256, np.int64)
        self._empty = self._rna = self._repeated_names = self._in_valid = 0

    @property
    def letters(self) -> dict[str, int]:
        """How often each letter was met, U counted as T."""
        return {chr(byte): int(count) for byte, count in enumerate(self._letters) if count}

    def distribute(
        self, inputs: Sequence[Path], valid: Sequence[Path], rule: SplitRule
    ) -> Iterator[tuple[str, Document]]:
        """Every document with its split; what stands in a `valid` file goes nowhere else."""
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
            UserError: It cannot be read, or holds something else than it should.
        """
        return self._read_jsonl(path) if is_jsonl(path) else self._read_fasta(path)

    def _read_jsonl(self, path: Path) -> Iterator[Document]:
        """The texts as they stand, tags and all, under their line numbers."""
        for number, text in read_texts(path, self._advance):
            if not text:
                self._empty += 1
                continue
            self._letters += count_bytes(text)
            yield Document(str(number), path.name, "+", text, content_sha256(text))

    def _read_fasta(self, path: Path) -> Iterator[Document]:
        """The records, with T for U.

        Raises:
            UserError: A record holds anything but nucleotides.
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

    def tell(self) -> None:
        """Say what was odd."""
        if self._empty:
            console.say(f"{self._empty:,} empty records skipped")
        if self._rna:
            console.say(f"{self._rna:,} RNA records: U was written as T")
        if self._repeated_names:
            console.warn(f"{self._repeated_names:,} records carry a name met before in their file")
        if self._in_valid:
            console.warn(
                f"{self._in_valid:,} training sequences stand in the validation files too (or "
                "their reverse complements do): left out of train"
            )


def tokenize_files(
    inputs: Sequence[Path],
    output: Path,
    *,
    valid: Sequence[Path] = (),
    valid_fraction: float | None = None,
    test_fraction: float = 0.0,
    reverse_complement: bool = False,
) -> dict[str, Any]:
    """Write the sequences of FASTA files, or the texts of .jsonl files, as a token set.

    A token set that is already there, from files of the same names and hashes with the same
    options, is left as it is.

    Args:
        inputs: FASTA or .jsonl files, compressed or not; `-` is stdin, pipes of FASTA are read too.
        output: The folder to make.
        valid: Files whose sequences all go to the valid split.
        valid_fraction: Of the sequences of `inputs`; None is 0.05, or 0 with `valid` files.
        test_fraction: Of the sequences of `inputs`.
        reverse_complement: Follow every document by its reverse complement.

    Returns:
        The manifest.

    Raises:
        UserError: An input is broken or no DNA, an option is out of range, or `output` is taken.
    """
    if valid_fraction is None:
        valid_fraction = 0.0 if valid else _DEFAULT_VALID
    rule = SplitRule(valid_fraction, test_fraction)
    options = {**asdict(rule), "reverse_complement": reverse_complement}
    with writing(output):
        _check_free(output)
        sources = _describe_sources({"train": inputs, "valid": valid})
        facts = {"made_by": f"evo2cli {__version__}", "options": options, "sources": sources}
        earlier = _already_there(output, facts)
        if earlier is not None:
            console.say(f"{output}: already there, from the same files with the same options")
            return earlier
        size = sum(source["bytes"] or 0 for source in sources)
        with (
            TokenWriter(output) as writer,
            console.progress("tokenize", size or None, "bytes") as bar,
        ):
            started, reader = time.perf_counter(), DocumentReader(bar.advance)
            for split, document in reader.distribute(inputs, valid, rule):
                writer.add(split, document)
                if reverse_complement:
                    _require_no_tags(document)
                    writer.add(split, document.reverse_complement())
            if not reader.letters:
                names = ", ".join(map(str, [*inputs, *valid]))
                raise UserError(f"{names}: no record holds a base; give files with sequence")
            manifest = writer.finish({**facts, "letters": reader.letters})
    reader.tell()
    _tell(manifest, output, time.perf_counter() - started)
    return manifest


def _require_no_tags(document: Document) -> None:
    """Refuse to turn over a text that reads in one direction only.

    Raises:
        UserError: It holds a tag.
    """
    found = find_tags(np.frombuffer(document.sequence, np.uint8))
    if found is not None and found[0].any():
        raise UserError(
            f"{document.source}: document {document.name} holds a tag, which has no reverse "
            "complement; leave --reverse-complement out (training turns windows over itself)"
        )


def _check_free(output: Path) -> None:
    """Refuse a destination that holds anything but a token set.

    Raises:
        UserError: It does.
    """
    if output.is_dir() and (not any(output.iterdir()) or (output / MANIFEST).is_file()):
        return
    if output.exists():
        raise UserError(f"{output}: exists and is no token set; choose another -o")


def _already_there(output: Path, facts: dict[str, Any]) -> dict[str, Any] | None:
    """The manifest of an earlier run that made the same; None when `output` is free.

    Raises:
        UserError: `output` holds other tokens.
    """
    if not (output / MANIFEST).is_file():
        return None
    manifest = TokenSet.open(output).manifest
    is_known = all(source["sha256"] for source in facts["sources"])
    if is_known and all(manifest.get(key) == facts[key] for key in ("options", "sources")):
        return manifest
    raise UserError(
        f"{output}: holds tokens of other files or options; remove it or choose another -o"
    )


def _describe_sources(paths: dict[str, Sequence[Path]]) -> list[dict[str, Any]]:
    """Name, role, size and hash of every input; of a pipe only name and role are known.

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


def _tell(manifest: dict[str, Any], output: Path, seconds: float) -> None:
    splits = manifest["splits"]
    bases = sum(split["bases"] for split in splits.values())
    parts = ", ".join(
        f"{name} {facts['documents']:,} documents {facts['bases']:,} bases"
        for name, facts in splits.items()
    )
    console.say(f"{output}: {parts}; {bases / 1e6 / seconds:,.0f} million bases a second")
    top = Counter(manifest["letters"]).most_common(6)
    console.say("letters: " + ", ".join(f"{letter} {count:,}" for letter, count in top))
    options = manifest["options"]
    ways_out = {
        "train": "lower the fractions of the others",
        "valid": "raise --valid-fraction, or name files for it with --valid",
        "test": "raise --test-fraction",
    }
    shares = {"valid": options["valid_fraction"], "test": options["test_fraction"]}
    shares["train"] = 1 - sum(shares.values())
    for name in SPLITS:
        if shares[name] and name not in splits:
            console.warn(
                f"the {name} split is empty: there are too few sequences, and whole ones are "
                f"split; {ways_out[name]}"
            )
