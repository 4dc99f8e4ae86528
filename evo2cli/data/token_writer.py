"""Write token sets, directly or from parts; `data.tokens` describes the format."""

import hashlib
import json
import shutil
from array import array
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, Self

import numpy as np

from evo2cli.data.documents import END_OF_DOCUMENT
from evo2cli.data.splits import SPLITS
from evo2cli.genome.alphabet import reverse_complement

FORMAT = 1
MANIFEST, DOCUMENTS = "manifest.json", "documents.tsv"
_BLOCK = 1 << 20
_MAX_JOINS = 64  # parts queued to be joined
_COLUMNS = ("split", "index", "name", "source", "strand", "length", "sha256")


@dataclass(frozen=True)
class Document:
    """A sequence to be written.

    Attributes:
        name: Name of its record.
        source: Name of its file.
        strand: "+" as read, "-" for the reverse complement.
        sequence: DNA letters, case kept.
        sha256: Its `content_sha256`, the same for both strands.
    """

    name: str
    source: str
    strand: str
    sequence: bytes
    sha256: str

    def reverse_complement(self) -> "Document":
        """The document of the other strand."""
        return replace(self, strand="-", sequence=reverse_complement(self.sequence))


class PartWriter:
    """Writes documents to a folder: their tokens by split, and a row of metadata for each.

    The result is a part of a token set, for `TokenWriter.join`. Use as a context manager.

    Args:
        folder: The folder; must not exist.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[str, IO[bytes]] = {}
        self._opened = ExitStack()

    def __enter__(self) -> Self:
        self._folder.mkdir(parents=True)
        rows = (self._folder / DOCUMENTS).open("w", encoding="utf-8")
        self._rows = self._opened.enter_context(rows)
        return self

    def add(self, split: str, document: Document) -> None:
        """Append one document to a split."""
        self._write(split, document.sequence)
        self._write(split, bytes([END_OF_DOCUMENT]))
        length = len(document.sequence)
        facts = (document.name, document.source, document.strand, length, document.sha256)
        self._describe(split, length, "\t".join(map(str, facts)) + "\n")

    def _write(self, split: str, tokens: bytes) -> None:
        self._file(split).write(tokens)

    def _file(self, split: str) -> IO[bytes]:
        if split not in self._files:
            file = (self._folder / f"{split}.bin").open("wb")
            self._files[split] = self._opened.enter_context(file)
        return self._files[split]

    def _describe(self, split: str, _length: int, row: str) -> None:
        self._rows.write(f"{split}\t{row}")

    def __exit__(self, *_: object) -> None:
        self._opened.close()


class TokenWriter(PartWriter):
    """Writes a token set document by document, or part by part; use as a context manager.

    Everything is written to a hidden folder next to `folder`, which `finish` renames. A killed run
    leaves only the hidden folder, which the next run replaces.

    Args:
        folder: Folder of the token set; must not exist, or be empty.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        super().__init__(self.folder.with_name(f".{self.folder.name}.partial"))
        self._hashes = {name: hashlib.sha256() for name in SPLITS}
        self._offsets = {name: array("q", [0]) for name in SPLITS}
        self._joiner, self._hasher = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
        self._joins: deque[Future[None]] = deque()
        self._stopped = False

    def __enter__(self) -> Self:
        shutil.rmtree(self._folder, ignore_errors=True)
        super().__enter__()
        self._rows.write("\t".join(_COLUMNS) + "\n")
        return self

    def part(self, name: str) -> Path:
        """The folder for a part; deleted when the part is joined, or with the writer."""
        return self._folder / f"part-{name}"

    def _write(self, split: str, tokens: bytes) -> None:
        super()._write(split, tokens)
        self._hashes[split].update(tokens)

    def _describe(self, split: str, length: int, row: str) -> None:
        offsets = self._offsets[split]
        self._rows.write(f"{split}\t{len(offsets) - 1}\t{row}")
        offsets.append(offsets[-1] + length + 1)

    def join(self, part: Path) -> None:
        """Append the documents of a part and delete it, in a background thread, in call order."""
        self._joins.append(self._joiner.submit(self._join, part))
        while len(self._joins) > _MAX_JOINS:
            self._joins.popleft().result()

    def _join(self, part: Path) -> None:
        with (part / DOCUMENTS).open(encoding="utf-8", newline="\n") as rows:
            for line in rows:
                split, _, row = line.partition("\t")
                self._describe(split, int(row.rsplit("\t", 2)[1]), row)
        for file in part.glob("*.bin"):
            with file.open("rb", buffering=0) as tokens:
                while not self._stopped and (block := tokens.read(_BLOCK)):
                    hashed = self._hasher.submit(self._hashes[file.stem].update, block)
                    self._file(file.stem).write(block)
                    hashed.result()
        shutil.rmtree(part)

    def finish(self, facts: dict[str, Any]) -> dict[str, Any]:
        """Write the manifest and rename the folder to its final name.

        Args:
            facts: Further entries for the manifest.

        Returns:
            The manifest.
        """
        while self._joins:
            self._joins.popleft().result()
        self._opened.close()
        splits = {}
        for name in SPLITS:
            if name not in self._files:
                continue
            offsets = np.array(self._offsets[name], np.int64)
            np.save(self._folder / f"{name}.offsets.npy", offsets)
            documents = len(offsets) - 1
            splits[name] = {
                "documents": documents,
                "bases": int(offsets[-1]) - documents,
                "sha256": self._hashes[name].hexdigest(),
            }
        manifest = {"format": FORMAT, **facts, "splits": splits}
        text = json.dumps(manifest, indent=2) + "\n"
        (self._folder / MANIFEST).write_text(text, encoding="utf-8")
        self._folder.rename(self.folder)
        return manifest

    def __exit__(self, *reason: object) -> None:
        self._stopped = True
        for threads in (self._joiner, self._hasher):
            threads.shutdown(cancel_futures=True)
        try:
            super().__exit__(*reason)
        finally:  # closing fails when the disk is full
            shutil.rmtree(self._folder, ignore_errors=True)
