"""Vectors on disk: a file that is filled in the order of the work, then turned into the output.

While it is filled it is a safetensors file of the full size, `x.npz.vectors`: no array is ever held
in memory, and what a killed run has put there stays.
"""

import json
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from evo2cli.embed.input import Survey
from evo2cli.files import atomic_path, writing
from evo2cli.genome.parquet import Columns, write_columns

_BATCH = 1 << 24  # numbers of a Parquet batch: 64 MiB

Vectors = NDArray[np.float32]


@dataclass(frozen=True)
class Plan:
    """What will be written.

    Attributes:
        survey: What there is to embed.
        layers: Channels of each layer.
        by_position: Whether vectors of all positions are kept, an array for each sequence and
            layer; else an array for each layer has a row for each vector.
        by_feature: Whether rows are features of sequences.
        about: How the vectors came to be, in words.
    """

    survey: Survey
    layers: Mapping[str, int]
    by_position: bool
    by_feature: bool
    about: Mapping[str, str]

    def key(self, layer: str, sequence: str) -> str:
        """The name of the array that holds a sequence's vectors of a layer."""
        return f"{sequence}/{layer}" if self.by_position else layer

    @cached_property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """Rows and channels of each array, by name."""
        sequences = self.survey.passages if self.by_position else [("", len(self.survey.rows))]
        return {
            self.key(layer, name): (length, width)
            for name, length in sequences
            for layer, width in self.layers.items()
        }

    @cached_property
    def names(self) -> dict[str, list[str]]:
        """What tells rows apart, by column: names; and of features, the sequences they are in."""
        if self.by_position:
            return {}
        columns = {"names": [name for name, _ in self.survey.rows]}
        if self.by_feature:
            columns["sequences"] = [sequence for _, sequence in self.survey.rows]
        return columns

    def header(self) -> bytes:
        """How a safetensors file of these arrays begins: fp32, one after the other."""
        names = {column: json.dumps(values) for column, values in self.names.items()}
        sizes = (4 * rows * width for rows, width in self.shapes.values())
        entries: dict[str, object] = {"__metadata__": {**self.about, **names}}
        for (key, shape), ends in zip(
            self.shapes.items(), pairwise(accumulate(sizes, initial=0)), strict=True
        ):
            entries[key] = {"dtype": "F32", "shape": shape, "data_offsets": ends}
        packed = json.dumps(entries).encode()
        packed += b" " * (-len(packed) % 8)
        return len(packed).to_bytes(8, "little") + packed


@dataclass(frozen=True)
class Array:
    """One array of a `Store`; writes and reads some rows at a time.

    Attributes:
        path: Of the store.
        offset: Where it begins, in bytes.
        shape: Rows and channels.
    """

    path: Path
    offset: int
    shape: tuple[int, int]

    def write(self, first: int, vectors_RD: Vectors) -> None:
        """Put rows from `first` on.

        Raises:
            UserError: The disk does not take them.
        """
        with writing(self.path), self.path.open("r+b") as file:
            file.seek(self.offset + 4 * first * self.shape[1])
            file.write(vectors_RD.astype("<f4").tobytes())

    def read(self, first: int, count: int) -> Vectors:
        """So many rows from `first` on."""
        offset = self.offset + 4 * first * self.shape[1]
        return np.fromfile(self.path, "<f4", count * self.shape[1], offset=offset).reshape(
            count, self.shape[1]
        )

    def all(self) -> Vectors:
        """All rows, mapped into memory."""
        return np.memmap(self.path, "<f4", "r", self.offset, self.shape)


@dataclass(frozen=True)
class Store:
    """Arrays that are being filled.

    Attributes:
        plan: Which they are.
        path: The file.
        is_fresh: Whether there is none yet that an earlier run has begun to fill.
    """

    plan: Plan
    path: Path
    is_fresh: bool

    @cached_property
    def arrays(self) -> dict[str, Array]:
        """By name."""
        shapes = self.plan.shapes
        sizes = (4 * rows * width for rows, width in shapes.values())
        offsets = accumulate(sizes, initial=len(self.plan.header()))
        return {
            key: Array(self.path, offset, shape)
            for (key, shape), offset in zip(shapes.items(), offsets, strict=False)
        }

    def prepare(self) -> None:
        """Make the file if it is fresh; what was kept of an earlier run must be forgotten by then.

        Raises:
            UserError: It cannot be written.
        """
        if not self.is_fresh:
            return
        header = self.plan.header()
        size = sum(4 * rows * width for rows, width in self.plan.shapes.values())
        with writing(self.path), self.path.open("wb") as file:
            file.truncate(len(header) + size)
            file.write(header)

    def write_as(self, output: Path) -> None:
        """Turn it into the output, which appears whole or not at all; the store is gone.

        Raises:
            UserError: It cannot be written.
        """
        if output.suffix == ".parquet":
            write_columns(output, self._tables(), self.plan.about)
        elif output.suffix == ".npz":
            self._write_npz(output)
        else:
            with writing(output):
                self.path.replace(output)
        self.path.unlink(missing_ok=True)

    def _write_npz(self, output: Path) -> None:
        about = {"metadata": np.array(json.dumps(self.plan.about))}
        names = {column: np.array(values) for column, values in self.plan.names.items()}
        vectors = {key: array.all() for key, array in self.arrays.items()}
        with writing(output), atomic_path(output) as part, zipfile.ZipFile(part, "w") as archive:
            for key, array in {**about, **names, **vectors}.items():
                # A ZipInfo has one date for all times, so that equal arrays are equal bytes.
                entry = zipfile.ZipInfo(f"{key}.npy")
                with archive.open(entry, "w", force_zip64=True) as file:
                    np.lib.format.write_array(file, array, allow_pickle=False)

    def _tables(self) -> Iterator[Columns]:
        """Rows of a table, a batch at a time; each layer is a column of lists."""
        plan = self.plan
        at_once = max(1, _BATCH // sum(plan.layers.values()))
        sequences = plan.survey.passages if plan.by_position else [("", len(plan.survey.rows))]
        for name, length in sequences:
            arrays = {layer: self.arrays[plan.key(layer, name)].all() for layer in plan.layers}
            for start in range(0, length, at_once):
                rows = slice(start, min(start + at_once, length))
                keys: Columns = {column: values[rows] for column, values in plan.names.items()}
                if plan.by_position:
                    places = np.arange(rows.start, rows.stop)
                    keys = {"names": [name] * len(places), "positions": places}
                yield {**keys, **{layer: vectors[rows] for layer, vectors in arrays.items()}}


@contextmanager
def open_store(output: Path | None, plan: Plan) -> Iterator[Store]:
    """Yield the store beside `output`, as an earlier run of the same plan has left it, or fresh.

    Without an output it is a temporary file. It is left where it is if the work is broken off.

    Raises:
        UserError: What is there cannot be read.
    """
    if output is None:
        with TemporaryDirectory() as folder:
            yield Store(plan, Path(folder, "vectors"), is_fresh=True)
        return
    path = output.with_name(f"{output.name}.vectors")
    yield Store(plan, path, is_fresh=not _begins_with(path, plan.header()))


def _begins_with(path: Path, header: bytes) -> bool:
    with writing(path):
        if not path.is_file():
            return False
        with path.open("rb") as file:
            return file.read(len(header)) == header
