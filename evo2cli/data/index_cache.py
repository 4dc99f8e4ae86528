"""A disk cache for document indices: built once by scanning a data file, then memory-mapped."""

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from evo2cli import console
from evo2cli.data.documents import Integers
from evo2cli.errors import UserError
from evo2cli.files import atomic_path, size_and_time, writing

_FORMAT = 2


def cached_index(files: Sequence[Path], *, rows: int, build: Callable[[], Integers]) -> Integers:
    """The index of a data set, from the cache if the files have not changed since it was built.

    It is stored next to the first file (`x.jsonl.evo2-index.npy`), or in the user's cache folder
    where that is not writable: int64 `[format, rows, columns, size, mtime, ..., *index]`.

    Args:
        files: The files it is built from; a cached index is valid while the size and modification
            time of each are unchanged.
        rows: Number of rows.
        build: Builds the index, [rows, columns].

    Returns:
        [rows, columns], memory-mapped.
    """
    stamp = [int(fact) for file in files for fact in size_and_time(file)]
    candidates = [_beside(files[0]), _in_user_cache(files[0])]
    for path in candidates:
        index = _load(path, rows, stamp)
        if index is not None:
            return index
    index = build()
    whole = np.concatenate([[_FORMAT, *index.shape, *stamp], index.ravel()]).astype(np.int64)
    reasons = []
    for path in candidates:
        try:
            _save(path, whole)
        except UserError as error:
            reasons.append(str(error))
            continue
        mapped = _load(path, rows, stamp)
        return index if mapped is None else mapped
    console.warn(
        f"{files[0]}: its index cannot be cached ({'; '.join(reasons)}) and will be built again"
    )
    return index


def _beside(file: Path) -> Path:
    return file.with_name(f"{file.name}.evo2-index.npy")


def _in_user_cache(file: Path) -> Path:
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    digest = hashlib.sha256(str(file.resolve()).encode("utf-8", "surrogateescape")).hexdigest()
    return root / "evo2" / "indexes" / f"{digest[:16]}-{file.name}.npy"


def _load(path: Path, rows: int, stamp: list[int]) -> Integers | None:
    """The index cached at `path`, if it is complete and up to date."""
    try:
        whole: Integers = np.asarray(np.load(path, mmap_mode="r"))
    except (OSError, ValueError, EOFError):
        return None
    if whole.dtype != np.int64 or whole.ndim != 1:
        return None
    start = 3 + len(stamp)
    header = whole[:start].tolist()
    if header[:2] != [_FORMAT, rows] or header[3:] != stamp:
        return None
    if whole.size != start + rows * header[2]:
        return None
    return whole[start:].reshape(rows, -1)


def _save(path: Path, whole: Integers) -> None:
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path, wait=True) as part, part.open("wb") as file:
            np.save(file, whole)
