"""Write vectors to disk as they are computed, so that runs are resumable and memory stays small.

While sequences are embedded, a safetensors file of the full size (`x.npz.vectors` beside the output
`x.npz`) is filled in place; at the end it is moved or converted to the output.
"""

import json
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evo2cli.embed.input import InputSummary
from evo2cli.files import atomic_path, beside, temporary_folder, writing
from evo2cli.genome.parquet import Columns, write_columns

_BATCH = 1 << 24  # values per batch of a Parquet file: 64 MiB

Vectors = NDArray[np.float32]


@dataclass(frozen=True)
class Contents:
    """Names, shapes and metadata of the output arrays.

    Attributes:
        summary: Summary of the input.
        layers: Number of channels of each layer.
        by_position: True for one array per sequence and layer, with a row per position; false for
            one array per layer, with a row per vector.
        by_feature: Whether vectors are pooled over features.
        metadata: Provenance: how the vectors were computed.
    """

    summary: InputSummary
    layers: Mapping[str, int]
    by_position: bool
    by_feature: bool
    metadata: Mapping[str, str]

    def key(self, layer: str, sequence: str) -> str:
        """The name of the array with the vectors of a sequence in a layer."""
        return f"{sequence}/{layer}" if self.by_position else layer

    @cached_property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """Shape (rows, channels) of each array, by name."""
        return {
            self.key(layer, name): (num_rows, width)
            for name, num_rows in self.groups
            for layer, width in self.layers.items()
        }

    @property
    def groups(self) -> list[tuple[str, int]]:
        """Name and number of rows of each set of arrays: one per sequence, or one for all."""
        return self.summary.sequences if self.by_position else [("", len(self.summary.rows))]

    @cached_property
    def names(self) -> dict[str, list[str]]:
        """Index columns of pooled vectors: their names and, for features, their sequences."""
        if self.by_position:
            return {}
        columns = {"names": [name for name, _ in self.summary.rows]}
        if self.by_feature:
            columns["sequences"] = [sequence for _, sequence in self.summary.rows]
        return columns

    @property
    def num_bytes(self) -> int:
        """Size of all arrays in fp32, in bytes."""
        return sum(4 * num_rows * width for num_rows, width in self.shapes.values())

    def header(self) -> bytes:
        """The header of a safetensors file with these arrays in fp32, one after the other."""
        names = {column: json.dumps(values) for column, values in self.names.items()}
        sizes = (4 * num_rows * width for num_rows, width in self.shapes.values())
        entries: dict[str, object] = {"__metadata__": {**self.metadata, **names}}
        for (key, shape), offsets in zip(
            self.shapes.items(), pairwise(accumulate(sizes, initial=0)), strict=True
        ):
            entries[key] = {"dtype": "F32", "shape": shape, "data_offsets": offsets}
        packed = json.dumps(entries).encode()
        packed += b" " * (-len(packed) % 8)
        return len(packed).to_bytes(8, "little") + packed


@dataclass(frozen=True)
class StoredArray:
    """One array of a `Store`, read and written by slices of rows: a `PositionStore` on disk.

    Attributes:
        path: The file of the store.
        offset: First byte of the array in the file.
        shape: (rows, channels).
    """

    path: Path
    offset: int
    shape: tuple[int, int]

    def write(self, start: int, x_RD: Tensor) -> None:
        """Write rows from index `start` on.

        Raises:
            UserError: The file cannot be written.
        """
        with writing(self.path), self.path.open("r+b") as file:
            file.seek(self.offset + 4 * start * self.shape[1])
            file.write(x_RD.float().numpy().astype("<f4").tobytes())

    def read(self, start: int, count: int) -> Tensor:
        """Read `count` rows from index `start` on."""
        width = self.shape[1]
        offset = self.offset + 4 * start * width
        rows = np.fromfile(self.path, "<f4", count * width, offset=offset)
        return torch.from_numpy(rows).reshape(count, width)

    def all(self) -> Vectors:
        """All rows, memory-mapped."""
        return np.memmap(self.path, "<f4", "r", self.offset, self.shape)


@dataclass(frozen=True)
class Store:
    """The safetensors file that is being filled.

    Attributes:
        contents: Its arrays.
        path: The file.
        is_new: False to resume a file that an earlier run with the same contents has left.
    """

    contents: Contents
    path: Path
    is_new: bool

    @cached_property
    def arrays(self) -> dict[str, StoredArray]:
        """The arrays by name."""
        shapes = self.contents.shapes
        sizes = (4 * num_rows * width for num_rows, width in shapes.values())
        offsets = accumulate(sizes, initial=len(self.contents.header()))
        return {
            key: StoredArray(self.path, offset, shape)
            for (key, shape), offset in zip(shapes.items(), offsets, strict=False)
        }

    def prepare(self) -> None:
        """Create the file if it is new; call it after the journal of an earlier run is discarded.

        Raises:
            UserError: It cannot be written.
        """
        if not self.is_new:
            return
        header = self.contents.header()
        with writing(self.path), self.path.open("wb") as file:
            file.truncate(len(header) + self.contents.num_bytes)
            file.write(header)

    def write_to(self, output: Path) -> None:
        """Move or convert the file to the output, atomically.

        Raises:
            UserError: The output cannot be written.
        """
        if output.suffix == ".parquet":
            write_columns(output, self._tables(), self.contents.metadata)
        elif output.suffix == ".npz":
            self._write_npz(output)
        else:
            with writing(output), atomic_path(output) as part:
                shutil.move(self.path, part)
        self.path.unlink(missing_ok=True)

    def _write_npz(self, output: Path) -> None:
        contents = self.contents
        metadata = {"metadata": np.array(json.dumps(contents.metadata))}
        names = {column: np.array(values) for column, values in contents.names.items()}
        vectors = {key: array.all() for key, array in self.arrays.items()}
        with writing(output), atomic_path(output) as part, zipfile.ZipFile(part, "w") as archive:
            for key, array in {**metadata, **names, **vectors}.items():
                # A default ZipInfo has a fixed date, which keeps the output reproducible.
                entry = zipfile.ZipInfo(f"{key}.npy")
                with archive.open(entry, "w", force_zip64=True) as file:
                    np.lib.format.write_array(file, array, allow_pickle=False)

    def _tables(self) -> Iterator[Columns]:
        """Batches of rows of a Parquet table; each layer is a column of lists."""
        contents = self.contents
        batch = max(1, _BATCH // sum(contents.layers.values()))
        for name, num_rows in contents.groups:
            arrays = {
                layer: self.arrays[contents.key(layer, name)].all() for layer in contents.layers
            }
            for start in range(0, num_rows, batch):
                rows = slice(start, min(start + batch, num_rows))
                keys: Columns = {column: values[rows] for column, values in contents.names.items()}
                if contents.by_position:
                    positions = np.arange(rows.start, rows.stop)
                    keys = {"names": [name] * len(positions), "positions": positions}
                yield {**keys, **{layer: vectors[rows] for layer, vectors in arrays.items()}}


@contextmanager
def open_store(output: Path | None, contents: Contents) -> Iterator[Store]:
    """Yield the store beside `output`, resumed from an earlier run with the same contents or new.

    An interrupted run leaves the file for the next one. For stdout, a device or a pipe, a temporary
    file is used instead.

    Raises:
        UserError: An existing file at its path cannot be read.
    """
    path = beside(output, ".vectors")
    if path is None:
        with temporary_folder() as folder:
            yield Store(contents, folder / "vectors", is_new=True)
        return
    header = contents.header()
    with writing(path):
        is_new = not path.is_file()
        if not is_new:
            with path.open("rb") as file:
                is_new = file.read(len(header)) != header
    yield Store(contents, path, is_new)
