"""Files of checkpoints: written whole or not at all; only tensors and raw bytes are unpickled."""

import io
import pickle
import re
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from stripedhyena2.checkpoint.contents import CheckpointError

_PART = re.compile(r"\.part(\d+)$")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what cannot be written into one line that names `path`; its missing parents are made.

    Raises:
        CheckpointError: In place of the error of the system or of the library that writes.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written ({error.strerror or error})") from None
    except (RuntimeError, SafetensorError) as error:  # torch and safetensors, of a full disk
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"{path}: cannot be written; is the disk full? ({reason})") from None


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, bytes]]:
    """Read a flat dictionary of tensors, and the raw byte entries beside them.

    Args:
        path: A .safetensors file, a .pt file, or any part `NAME.pt.partN` of one.

    Raises:
        CheckpointError: The file cannot be read, or contains anything but tensors and bytes.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path), {}
        if _PART.search(path.name):
            with JoinedParts(parts_of(path)) as joined:
                return _split(_unpickle(io.BufferedReader(joined)), path)
        return _split(_unpickle(path), path)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from None
    except SafetensorError as error:
        raise CheckpointError(f"{path}: not a complete safetensors file ({error})") from None
    except pickle.UnpicklingError:
        raise CheckpointError(
            f"{path}: contains more than tensors and is not opened, because that would run its "
            "code; ask its author for a plain dictionary of tensors or a safetensors file"
        ) from None
    except (RuntimeError, EOFError, zipfile.BadZipFile) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"{path}: not a complete PyTorch checkpoint ({reason})") from None


def _unpickle(source: Path | IO[bytes]) -> object:
    with torch.serialization.safe_globals([io.BytesIO]):
        return torch.load(
            source, map_location="cpu", weights_only=True, mmap=isinstance(source, Path)
        )


def _split(contents: object, path: Path) -> tuple[dict[str, Tensor], dict[str, bytes]]:
    if not isinstance(contents, Mapping):
        raise CheckpointError(f"{path}: holds a {type(contents).__name__}, not named tensors")
    tensors, blobs = {}, {}
    for name, value in contents.items():
        if isinstance(value, Tensor):
            tensors[name] = value
        elif isinstance(value, io.BytesIO):
            blobs[name] = value.getvalue()
        elif value is not None:
            raise CheckpointError(
                f"{path}: entry {name!r} is a {type(value).__name__}, not a tensor; "
                "expected the flat dictionary of a released Evo 2 file"
            )
    return tensors, blobs


def parts_of(path: Path) -> list[Path]:
    """All parts of the file that `path` (NAME.partN) is a part of, in order.

    Raises:
        CheckpointError: A part is missing.
    """
    whole = _PART.sub("", path.name)
    numbers = sorted(
        int(match[1])
        for sibling in path.parent.glob(f"{whole}.part*")
        if (match := _PART.search(sibling.name))
    )
    if numbers != list(range(len(numbers))) or not numbers:
        missing = next(number for number in range(len(numbers) + 1) if number not in numbers)
        raise CheckpointError(f"{path.parent / whole}.part{missing}: this part is missing")
    return [path.parent / f"{whole}.part{number}" for number in numbers]


class JoinedParts(io.RawIOBase):
    """Several files read as one, without a second copy on disk."""

    def __init__(self, paths: list[Path]) -> None:
        self._files = [path.open("rb") for path in paths]
        self._sizes = [path.stat().st_size for path in paths]
        self._position = 0

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move within the joined bytes."""
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: sum(self._sizes)}
        self._position = origin[whence] + offset
        return self._position

    def tell(self) -> int:
        """The position of the next byte."""
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override] # any writable buffer
        """Fill `buffer` from the file that holds the current position."""
        start = 0
        for file, size in zip(self._files, self._sizes, strict=True):
            if self._position < start + size:
                file.seek(self._position - start)
                count = file.readinto(buffer)
                self._position += count
                return count
            start += size
        return 0

    def close(self) -> None:
        """Close every part."""
        for file in self._files:
            file.close()
        super().close()
