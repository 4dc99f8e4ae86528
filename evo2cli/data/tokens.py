"""Tokens on disk: a folder of bytes, one per base, with an index of its documents.

train.bin            uint8; documents back to back, case kept, each followed by one byte 0
train.offsets.npy    int64 [documents + 1]; where each document starts, then the size of the .bin
valid.*, test.*      the same, where such a split holds a document
documents.tsv        split, index, name, source, strand, length, sha256 of the canonical sequence
manifest.json        what it was made from and how, counts, sha256 of each .bin; written last
"""

import hashlib
import json
import shutil
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from evo2cli.errors import UserError

FORMAT = 1
SPLITS = ("train", "valid", "test")
END_OF_DOCUMENT = b"\0"
MANIFEST, DOCUMENTS = "manifest.json", "documents.tsv"
_COLUMNS = ("split", "index", "name", "source", "strand", "length", "sha256")


class Split:
    """The documents of one split.

    Attributes:
        tokens: The bytes of the .bin, memory-mapped.
        offsets: Where each document starts, and last the size of the .bin.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.tokens: npt.NDArray[np.uint8] = np.memmap(folder / f"{name}.bin", np.uint8, "r")
        self.offsets: npt.NDArray[np.int64] = np.load(folder / f"{name}.offsets.npy")


class TokenSet:
    """A folder that `evo2 tokenize` wrote.

    Attributes:
        manifest: What manifest.json says.
        splits: The names of the splits that hold a document.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        self.folder, self.manifest = folder, manifest
        self.splits: tuple[str, ...] = tuple(manifest["splits"])

    @classmethod
    def open(cls, folder: Path) -> "TokenSet":
        """Open a token set and hold its sizes against its manifest.

        Raises:
            UserError: It is no token set, or not whole.
        """
        try:
            manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            raise UserError(
                f"{folder}: no token set (no readable {MANIFEST}); make one with "
                f"`evo2 tokenize genome.fa -o {folder}`"
            ) from None
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
            raise UserError(f"{folder / MANIFEST}: not of token format {FORMAT}; tokenize again")
        for name, facts in manifest["splits"].items():
            expected = facts["bases"] + facts["documents"]
            file = folder / f"{name}.bin"
            found = file.stat().st_size if file.is_file() else 0
            if found != expected or not (folder / f"{name}.offsets.npy").is_file():
                raise UserError(
                    f"{file}: {found:,} bytes, the manifest says {expected:,}; tokenize again"
                )
        return cls(folder, manifest)

    def split(self, name: str) -> Split:
        """The documents of one of `splits`.

        Raises:
            UserError: There is no such split.
        """
        if name not in self.splits:
            raise UserError(f"{self.folder}: no {name} split, only {', '.join(self.splits)}")
        return Split(self.folder, name)


class TokenWriter:
    """Writes a token set document by document; use as a context manager.

    Everything goes to a hidden folder beside `folder`, which `finish` renames. A killed run leaves
    only the hidden one, and the next run starts it anew.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._partial = folder.with_name(f".{folder.name}.partial")
        self._files: dict[str, IO[bytes]] = {}
        self._hashes = {name: hashlib.sha256() for name in SPLITS}
        self._offsets: dict[str, list[int]] = {name: [0] for name in SPLITS}

    def __enter__(self) -> "TokenWriter":
        shutil.rmtree(self._partial, ignore_errors=True)
        self._partial.mkdir(parents=True)
        self._documents = (self._partial / DOCUMENTS).open("w", encoding="utf-8")
        self._documents.write("\t".join(_COLUMNS) + "\n")
        return self

    def add(
        self, split: str, sequence: bytes, *, name: str, source: str, strand: str, sha256: str
    ) -> None:
        """Append one document to a split."""
        if split not in self._files:
            self._files[split] = (self._partial / f"{split}.bin").open("wb")
        for part in (sequence, END_OF_DOCUMENT):
            self._files[split].write(part)
            self._hashes[split].update(part)
        offsets = self._offsets[split]
        row = (split, len(offsets) - 1, name, source, strand, len(sequence), sha256)
        offsets.append(offsets[-1] + len(sequence) + len(END_OF_DOCUMENT))
        self._documents.write("\t".join(map(str, row)) + "\n")

    def finish(self, facts: dict[str, Any]) -> dict[str, Any]:
        """Complete the folder under its name, in place of an earlier token set.

        Args:
            facts: What else the manifest shall say.

        Returns:
            The manifest.
        """
        self._close()
        splits = {}
        for name in self._files:
            offsets = np.array(self._offsets[name], np.int64)
            np.save(self._partial / f"{name}.offsets.npy", offsets)
            documents = len(offsets) - 1
            splits[name] = {
                "documents": documents,
                "bases": int(offsets[-1]) - documents,
                "sha256": self._hashes[name].hexdigest(),
            }
        ordered = {name: splits[name] for name in SPLITS if name in splits}
        manifest = {"format": FORMAT, **facts, "splits": ordered}
        text = json.dumps(manifest, indent=2) + "\n"
        (self._partial / MANIFEST).write_text(text, encoding="utf-8")
        if self.folder.exists():
            shutil.rmtree(self.folder)
        self._partial.rename(self.folder)
        return manifest

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._close()
        shutil.rmtree(self._partial, ignore_errors=True)

    def _close(self) -> None:
        self._documents.close()
        for file in self._files.values():
            file.close()


_COMMON = b"ACGTNacgtn"
_COUNT_BLOCK = 1 << 17


def count_bytes(sequence: bytes) -> npt.NDArray[np.int64]:
    """How often each byte occurs, [256]."""
    array = np.frombuffer(sequence, np.uint8)
    counts = np.zeros(256, np.int64)
    # Comparing a block in the cache with each common letter beats one histogram several times.
    for start in range(0, len(array), _COUNT_BLOCK):
        block = array[start : start + _COUNT_BLOCK]
        common = [np.count_nonzero(block == letter) for letter in _COMMON]
        if sum(common) == len(block):
            counts[list(_COMMON)] += common
        else:
            counts += np.bincount(block, minlength=256)
    return counts
