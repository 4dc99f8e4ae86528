"""torch.save files: their tensors, located without executing pickled code and loaded lazily.

Only tensors and raw bytes are unpickled. The data of a tensor is read, and its checksum is
verified, on access.
"""

import io
import pickle
import struct
import warnings
import zipfile
import zlib
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from stripedhyena2.checkpoint.contents import WEIGHTS, CheckpointError, kind_of
from stripedhyena2.checkpoint.parts import opened
from stripedhyena2.checkpoint.tensors import Stored, in_memory
from stripedhyena2.values import shown

_ZIP = b"PK\x03\x04"
_PROTOCOL = b"\x80"  # how a pickle of torch.save begins
_MAX_PICKLE = 1 << 28  # bytes of an archive's data.pkl, which has names but no data
_CHUNK = 1 << 24  # bytes of a storage that are checksummed at a time
# Packages whose objects are pickled beside the tensors in the checkpoints of training runs.
_TRAINERS = (
    "argparse",
    "deepspeed",
    "lightning",
    "megatron",
    "omegaconf",
    "pathlib",
    "pytorch_lightning",
    "savanna",
)
# What the readers of pickles, archives and safetensors raise for damaged files.
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


class Inert:
    """Stands in for the classes of other programs: accepts anything, does nothing."""

    def __new__(cls, *_: object, **__: object) -> "Inert":  # noqa: D102 - accepts anything
        return super().__new__(cls)

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __setstate__(self, _: object) -> None:
        pass


class NotWeights(str):
    """Stands in for a tensor that cannot be a weight, and names its kind."""


def open_pickle(path: Path) -> object:
    """The contents of a torch.save file, with a `Stored` in place of each tensor.

    Only the directory and the pickle of the archive are read. Files from before PyTorch 1.6 are not
    archives and are read whole.

    Raises:
        CheckpointError: It is neither an archive nor a pickle; or as `open_archive`.
    """
    # PyTorch's documentation imports it from there. The import takes a second.
    from torch._subclasses.fake_tensor import FakeTensorMode

    with opened(path) as file:
        archive = open_archive(file, path)
        file.seek(0)
        if archive is None and file.read(len(_PROTOCOL)) != _PROTOCOL:
            raise CheckpointError(
                f"{path}: is not a checkpoint: neither a file of torch.save nor .safetensors"
            )
        foreign = _stand_ins(file) if archive else []
        file.seek(0)
        with torch.serialization.safe_globals([io.BytesIO, *foreign]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about kinds of tensors that are refused afterwards
            if archive is None:
                return _stored(torch.load(file, map_location="cpu", weights_only=True), None)
            try:
                with FakeTensorMode():
                    contents = torch.load(file, map_location="cpu", weights_only=True)
            except pickle.UnpicklingError:
                raise
            except UNREADABLE:  # unsupported kinds of tensors: read whole, so that errors name them
                file.seek(0)
                contents, archive = torch.load(file, map_location="cpu", weights_only=True), None
            return _stored(contents, archive)


def _stand_ins(file: io.BufferedReader) -> list[tuple[Any, str]]:
    file.seek(0)
    unknown = torch.serialization.get_unsafe_globals_in_checkpoint(file)
    return [(Inert, name) for name in unknown if name.partition(".")[0] in _TRAINERS]


def _stored(contents: object, archive: "Archive | None") -> object:
    """Replace every tensor in nested dictionaries by a `Stored`."""
    if isinstance(contents, Mapping):
        return {name: _stored(value, archive) for name, value in contents.items()}
    if not isinstance(contents, Tensor):
        return contents
    if (kind := kind_of(contents)) not in WEIGHTS:
        return NotWeights(kind)
    if archive is None:
        return in_memory(contents)
    like = torch.empty_strided(
        contents.shape, contents.stride(), dtype=contents.dtype, device="meta"
    )
    # PyTorch documents this attribute of storages that are loaded under FakeTensorMode.
    offset = contents.untyped_storage()._checkpoint_offset
    assert offset is not None
    return Stored(like, partial(archive.read, offset, like, int(contents.storage_offset())))


class Archive:
    """The storages of a .pt archive: their offsets, sizes and checksums."""

    def __init__(self, path: Path, records: Mapping[int, tuple[str, int, int]]) -> None:
        """Describe an archive.

        Args:
            path: Path of the file, or of a part of it.
            records: Name, size in bytes and CRC-32 (0: not computed) of each entry by its offset.
        """
        self._path, self._records = path, dict(records)
        self._verified: set[int] = set()

    def read(self, offset: int, like: Tensor, first: int) -> Tensor:
        """Read a tensor.

        Args:
            offset: Offset of its storage in the file.
            like: Its shape, strides and dtype.
            first: The index of its first element in the storage.

        Raises:
            CheckpointError: The checksum of the storage is wrong, or the file is truncated.
        """
        last = sum((n - 1) * stride for n, stride in zip(like.shape, like.stride(), strict=True))
        count = last + 1 if like.numel() else 0
        data = bytearray(count * like.itemsize)
        if not data:
            return torch.empty(like.shape, dtype=like.dtype)
        with opened(self._path) as file:
            file.seek(offset + first * like.itemsize)
            if file.readinto(data) != len(data):
                raise CheckpointError(f"{self._path}: ends in the middle of a tensor")
            self._verify_checksum(file, offset, data)
        numbers = torch.frombuffer(data, dtype=like.dtype)
        return numbers.as_strided(like.shape, like.stride())

    def _verify_checksum(self, file: io.BufferedReader, offset: int, data: bytearray) -> None:
        """Verify the checksum of the storage that `data` was read from, once."""
        if offset not in self._records:
            raise CheckpointError(f"{self._path}: damaged: a tensor lies outside its entries")
        name, size, expected = self._records[offset]
        if offset in self._verified or not expected:
            return
        if len(data) == size:
            checksum = zlib.crc32(data)
        else:  # the tensor is a part of its storage
            file.seek(offset)
            checksum = 0
            for start in range(0, size, _CHUNK):
                checksum = zlib.crc32(file.read(min(_CHUNK, size - start)), checksum)
        if checksum != expected:
            raise CheckpointError(
                f"{self._path}: damaged: the checksum of its entry {shown(name)} is wrong; get the "
                "file again"
            )
        self._verified.add(offset)


def open_archive(file: io.BufferedReader, path: Path) -> "Archive | None":
    """The storages of a .pt archive; None for other formats.

    Raises:
        CheckpointError: An entry is compressed, which reading it in place would not detect; or its
            pickle is too large.
    """
    file.seek(0)
    if file.read(len(_ZIP)) != _ZIP:
        return None
    records = {}
    with zipfile.ZipFile(file) as archive:
        for entry in archive.infolist():
            check_entry(entry, path)
            if entry.CRC and "/data/" not in entry.filename:
                archive.read(entry)  # verifies its checksum
            # The lengths of name and padding are in the local header of the entry alone.
            file.seek(entry.header_offset + 26)
            sizes = struct.unpack("<HH", file.read(4))
            offset = entry.header_offset + 30 + sum(sizes)
            records[offset] = (entry.filename, entry.file_size, entry.CRC)
    return Archive(path, records)


def check_entry(entry: zipfile.ZipInfo, origin: Path | str) -> None:
    """Refuse an entry of a .pt archive that could exhaust the memory (a zip bomb).

    Raises:
        CheckpointError: It is compressed, or a pickle that is too large for names.
    """
    if entry.compress_type != zipfile.ZIP_STORED:
        raise CheckpointError(
            f"{origin}: its entry {shown(entry.filename)} is compressed, which PyTorch does not "
            "do; save the weights again with torch.save"
        )
    if entry.filename.endswith(".pkl") and entry.file_size > _MAX_PICKLE:
        raise CheckpointError(
            f"{origin}: its entry {shown(entry.filename)} has {entry.file_size:,} bytes; names of "
            f"tensors take at most {_MAX_PICKLE:,}"
        )


def check_record(record: bytes, origin: str) -> None:
    """Refuse an FP8 record that is a damaged archive, or one that could exhaust the memory.

    Raises:
        CheckpointError: One of its entries is compressed, too large, or has a wrong checksum.
    """
    if not record.startswith(_ZIP):
        return
    with zipfile.ZipFile(io.BytesIO(record)) as archive:
        for entry in archive.infolist():
            check_entry(entry, origin)
        damaged = archive.testzip() if any(entry.CRC for entry in archive.infolist()) else None
    if damaged is not None:
        raise CheckpointError(
            f"{origin}: damaged: the checksum of its entry {shown(damaged)} is wrong; get the file "
            "again"
        )
