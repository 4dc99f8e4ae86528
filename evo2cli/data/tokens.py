"""Token sets: a folder with one byte per base and an index of its documents.

train.bin            uint8; documents back to back, case kept, each followed by one byte 0
train.offsets.npy    int64 [documents + 1]; start of each document, then the size of the .bin
valid.*, test.*      the same, for each of these splits that has a document
documents.tsv        split, index, name, source, strand, length, content_sha256 of each document
manifest.json        inputs, options, counts, and the sha256 of each .bin; written last
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import (
    BaseModel,
    NonNegativeInt,
    TypeAdapter,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)

from evo2cli.data.token_writer import DOCUMENTS, MANIFEST
from evo2cli.errors import UserError, counted
from stripedhyena2.errors import InputError
from stripedhyena2.values import read_json, require_regular


class _Counts(BaseModel):
    """Counts of one split in a manifest."""

    documents: NonNegativeInt
    bases: NonNegativeInt


class _Manifest(BaseModel):
    """The required keys of a manifest; the others are kept as they are."""

    format: Literal[1]
    splits: dict[Literal["train", "valid", "test"], _Counts]


def _unchanged(values: Any, validate: ValidatorFunctionWrapHandler) -> Any:
    validate(values)
    return values


_MANIFEST: TypeAdapter[Any] = TypeAdapter(Annotated[_Manifest, WrapValidator(_unchanged)])


@dataclass(frozen=True)
class Split:
    """The documents of one split.

    Attributes:
        tokens: The bytes of the .bin, memory-mapped.
        offsets: Start of each document, then the size of the .bin.
    """

    tokens: npt.NDArray[np.uint8]
    offsets: npt.NDArray[np.int64]


@dataclass(frozen=True)
class DocumentFacts:
    """Metadata of a document.

    Attributes:
        name: Name of its record.
        source: Name of its file.
        sha256: Its `content_sha256`.
    """

    name: str
    source: str
    sha256: str


class TokenSet:
    """A folder that `evo2 tokenize` wrote.

    Attributes:
        folder: Its path.
        manifest: The content of manifest.json.
        splits: Names of the splits that have a document.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        self.folder, self.manifest = folder, manifest
        self._counts = {
            name: (facts["documents"], facts["bases"]) for name, facts in manifest["splits"].items()
        }
        self.splits: tuple[str, ...] = tuple(self._counts)

    @classmethod
    def open(cls, folder: Path) -> "TokenSet":
        """Open a token set and check its file sizes against the manifest.

        Raises:
            UserError: It is not a token set, or is incomplete.
        """
        try:
            manifest = read_json(folder / MANIFEST, _MANIFEST)
        except InputError as error:
            raise UserError(
                f"{folder}: not a token set ({error}); make one with "
                f"`evo2 tokenize genome.fa -o {folder}`"
            ) from None
        tokens = cls(folder, manifest)
        for name in tokens.splits:
            tokens.split(name)
        return tokens

    def split(self, name: str) -> Split:
        """The documents of one of `splits`.

        Raises:
            UserError: There is no such split, or its files do not match the manifest.
        """
        if name not in self.splits:
            raise UserError(f"{self.folder}: has no {name} split, only {', '.join(self.splits)}")
        documents, bases = self._counts[name]
        file = self.folder / f"{name}.bin"
        size = bases + documents
        try:
            borders = file.with_suffix(".offsets.npy")
            require_regular(borders, UserError)
            offsets: npt.NDArray[np.int64] = np.load(borders, mmap_mode="r")
            stored = file.stat().st_size, offsets.shape, offsets[-1:].tolist()
        except (OSError, ValueError, EOFError, RecursionError, MemoryError) as error:
            raise UserError(
                f"{file}: it or its offsets cannot be read ({error}); tokenize again"
            ) from None
        if stored != (size, (documents + 1,), [size]):
            raise UserError(
                f"{file}: {stored[0]:,} bytes in {counted(len(offsets) - 1, 'document')}, but the "
                f"manifest says {size:,} in {documents:,}; tokenize again"
            )
        return Split(np.memmap(file, np.uint8, "r"), offsets)

    def documents(self) -> Iterator["DocumentFacts"]:
        """Metadata of each document, in the order of the inputs.

        Raises:
            UserError: documents.tsv cannot be read.
        """
        file = self.folder / DOCUMENTS
        try:
            with file.open(encoding="utf-8", newline="\n") as rows:
                next(rows)
                for row in rows:
                    _, _, name, source, _, _, sha256 = row.rstrip("\n").split("\t")
                    yield DocumentFacts(name, source, sha256)
        except (OSError, ValueError, StopIteration) as error:
            raise UserError(f"{file}: cannot be read ({error}); tokenize again") from None
