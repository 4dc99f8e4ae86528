"""Files of checkpoints: written whole or not at all; only tensors and raw bytes are unpickled."""

import io
import pickle
import re
import shutil
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from stripedhyena2.checkpoint.contents import CheckpointError
from stripedhyena2.memory import is_out_of_memory, out_of_memory
from stripedhyena2.values import require_regular, shown

_PART = re.compile(r"\.part(\d+)$")
_ZIP = b"PK\x03\x04"
_MAX_PICKLE = 1 << 28  # bytes of an archive's data.pkl, which has the names but not the numbers
_LOOK = 512  # bytes at the beginning that tell what a file is

# What the readers of pickles, archives and safetensors raise for a file that is not sound.
UNREADABLE = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    RuntimeError,
    SafetensorError,
    TypeError,
    ValueError,
    pickle.UnpicklingError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, of a file or folder to fill; renamed when filled.

    If the block raises, what it wrote is removed and `path` stays as it was. A folder replaces a
    folder of that name. Missing parent folders are made.

    Raises:
        CheckpointError: `path` cannot be written.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove(temporary)  # what a killed run may have left
        yield temporary
        if temporary.is_dir() and path.is_dir():
            shutil.rmtree(path)
        temporary.replace(path)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written ({error.strerror or error})") from None
    finally:
        with suppress(OSError):
            _remove(temporary)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def read_tensors(
    path: Path, *, check_sums: bool = True
) -> tuple[dict[str, Tensor], dict[str, bytes]]:
    """Read a flat dictionary of tensors, and the raw byte entries beside them.

    Args:
        path: A .safetensors file, a .pt file, or any part `NAME.pt.partN` of one.
        check_sums: Whether to compare the checksums in a .pt file, which reads all of it. A
            .safetensors file has none.

    Raises:
        CheckpointError: The file cannot be read, is damaged, or contains anything but tensors and
            bytes.
    """
    require_weights(path)
    try:
        if path.suffix == ".safetensors":
            return load_file(path), {}
        if _PART.search(path.name):
            with io.BufferedReader(JoinedParts(parts_of(path))) as joined:
                require_sound_archive(joined, path, check_sums=check_sums)
                return _split(_unpickle(joined), path)
        with path.open("rb") as file:
            require_sound_archive(file, path, check_sums=check_sums)
        return _split(_unpickle(path), path)
    except CheckpointError:
        raise
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from None
    except pickle.UnpicklingError:
        raise CheckpointError(
            f"{path}: contains more than tensors and is not opened, because that would run its "
            "code; ask its author for a plain dictionary of tensors or a safetensors file"
        ) from None
    except UNREADABLE as error:
        if is_out_of_memory(error):
            raise CheckpointError(f"{path}: {out_of_memory(error)}") from None
        kind = "safetensors file" if path.suffix == ".safetensors" else "PyTorch checkpoint"
        reason = str(error).partition("\n")[0][:200]
        raise CheckpointError(f"{path}: not a complete {kind} ({reason})") from None


def require_weights(path: Path) -> None:
    """Refuse what is often found in the place of weights; only the beginning is read.

    Raises:
        CheckpointError: No regular file, an empty file, a Git LFS pointer or a web page.
    """
    require_regular(path, CheckpointError)
    try:
        with path.open("rb") as file:
            start = file.read(_LOOK)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from None
    if not start:
        raise CheckpointError(f"{path}: is empty; get the file again")
    if start.startswith(b"version https://git-lfs.github.com/spec/"):
        raise CheckpointError(
            f"{path}: is a Git LFS pointer, which only stands for the weights; run `git lfs pull` "
            "in its folder, or download the file itself"
        )
    if start.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<") and b"\0" not in start:
        raise CheckpointError(
            f"{path}: is a web page, not weights, e.g. one that asks to sign in; download the file "
            "again"
        )


def require_sound_archive(file: IO[bytes], origin: Path | str, *, check_sums: bool = True) -> None:
    """Refuse a .pt archive that is damaged, or made to fill the memory; other formats pass.

    Args:
        file: Is read; its position is 0 before and afterwards.
        origin: For messages.
        check_sums: Whether to compare the checksum of every entry, which reads all of it.

    Raises:
        CheckpointError: An entry is compressed, which mapping it into memory would not notice; its
            pickle is too large; or a checksum is wrong.
    """
    is_archive = file.read(len(_ZIP)) == _ZIP
    if is_archive:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            for entry in entries:
                if entry.compress_type != zipfile.ZIP_STORED:
                    raise CheckpointError(
                        f"{origin}: its entry {shown(entry.filename)} is compressed, which PyTorch "
                        "does not do; save the weights again with torch.save"
                    )
                if entry.filename.endswith(".pkl") and entry.file_size > _MAX_PICKLE:
                    raise CheckpointError(
                        f"{origin}: its entry {shown(entry.filename)} has {entry.file_size:,} "
                        f"bytes; names of tensors take at most {_MAX_PICKLE:,}"
                    )
            # PyTorch can be told to compute no checksums, and then stores 0.
            if check_sums and any(entry.CRC for entry in entries):
                damaged = archive.testzip()
                if damaged is not None:
                    raise CheckpointError(
                        f"{origin}: damaged: the checksum of its entry {shown(damaged)} is wrong; "
                        "get the file again"
                    )
    file.seek(0)


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
        if not isinstance(name, str):
            raise CheckpointError(
                f"{path}: the name {shown(name)} of an entry is a {type(name).__name__}, not text"
            )
        if isinstance(value, Tensor):
            tensors[name] = value
        elif isinstance(value, io.BytesIO):
            blobs[name] = value.getvalue()
        elif value is not None:
            raise CheckpointError(
                f"{path}: entry {shown(name)} is a {type(value).__name__}, not a tensor; "
                "expected the flat dictionary of a released Evo 2 file"
            )
    return tensors, blobs


def parts_of(path: Path) -> list[Path]:
    """All parts of the file that `path` (NAME.partN) is a part of, in order.

    Raises:
        CheckpointError: A part is missing, or is no regular file.
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
    parts = [path.parent / f"{whole}.part{number}" for number in numbers]
    for part in parts:
        require_regular(part, CheckpointError)
    return parts


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
