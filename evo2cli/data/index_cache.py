"""An index that is made once by reading a whole data file, and then mapped by every later run."""

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from evo2cli import console
from evo2cli.data.documents import Integers
from evo2cli.errors import UserError
from evo2cli.files import atomic_path, writing

_FORMAT = 1


def cached_index(files: Sequence[Path], *, rows: int, build: Callable[[], Integers]) -> Integers:
    """The index of a data set, from an earlier run where its files have not changed since.

    It is kept beside the first file (`x.jsonl.evo2-index.npy`), or under the user's cache folder
    where that cannot be written: int64 `[format, rows, columns, size, mtime, ..., *index]`. It is
    written to a name of its own and renamed, so that no process ever meets half of one.

    Args:
        files: What it is made from; size and time of change of each must be as they were.
        rows: Of the index.
        build: Makes it, [rows, columns].

    Returns:
        [rows, columns], memory-mapped.
    """
    stamp = [int(fact) for file in files for fact in _size_and_time(file)]
    places = [_beside(files[0]), _in_user_cache(files[0])]
    for place in places:
        index = _load(place, rows, stamp)
        if index is not None:
            return index
    index = build()
    whole = np.concatenate([[_FORMAT, *index.shape, *stamp], index.ravel()]).astype(np.int64)
    reasons = []
    for place in places:
        try:
            _save(place, whole)
        except UserError as error:
            reasons.append(str(error))
            continue
        mapped = _load(place, rows, stamp)
        return index if mapped is None else mapped
    console.warn(f"{files[0]}: its index cannot be kept ({'; '.join(reasons)}): in memory only")
    return index


def _size_and_time(file: Path) -> tuple[int, int]:
    facts = file.stat()
    return facts.st_size, facts.st_mtime_ns


def _beside(file: Path) -> Path:
    return file.with_name(f"{file.name}.evo2-index.npy")


def _in_user_cache(file: Path) -> Path:
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    whose = hashlib.sha256(str(file.resolve()).encode("utf-8", "surrogateescape")).hexdigest()
    return root / "evo2" / "indexes" / f"{whose[:16]}-{file.name}.npy"


def _load(place: Path, rows: int, stamp: list[int]) -> Integers | None:
    """The index that lies there, if it is whole and of these files."""
    try:
        whole: Integers = np.asarray(np.load(place, mmap_mode="r"))
    except (OSError, ValueError, EOFError):
        return None
    if whole.dtype != np.int64 or whole.ndim != 1:
        return None
    start = 3 + len(stamp)
    header = whole[:start].tolist()
    if header[:2] != [_FORMAT, rows] or header[3:] != stamp:
        return None
    return whole[start:].reshape(rows, -1)


def _save(place: Path, whole: Integers) -> None:
    with writing(place):
        place.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(place, shared=True) as part, part.open("wb") as file:
            np.save(file, whole)
