"""Files of checkpoints: written whole or not at all; only tensors and raw bytes are unpickled."""

import io
import json
import pickle
import re
import struct
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple, cast

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from pydantic import AfterValidator, BaseModel, TypeAdapter
from safetensors import SafetensorError, safe_open
from torch import Tensor

from stripedhyena2.checkpoint.contents import WEIGHTS, CheckpointError, kind_of
from stripedhyena2.checkpoint.tensors import Stored, Tensors, in_memory
from stripedhyena2.memory import is_out_of_memory, out_of_memory
from stripedhyena2.values import read_json, require_regular, shown

_PART = re.compile(r"\.part(\d+)$")
_ZIP = b"PK\x03\x04"
_MAX_PICKLE = 1 << 28  # bytes of an archive's data.pkl, which has the names but not the numbers
WEIGHTS_FILE, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARD_PATTERN = "model{suffix}.safetensors"
MAX_SHARD = 5_000_000_000  # bytes
_CHUNK = 1 << 24  # bytes of a storage whose checksum is computed at a time
_WRAPPERS = ("module", "state_dict", "model_state_dict", "model")  # keys that hold the tensors
# Programs whose objects stand beside the tensors in the checkpoints of training runs.
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
_DTYPES = {
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F32": torch.float32,
    "F64": torch.float64,
    "U8": torch.uint8,
}
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


class Inert:
    """Stands in for the classes of other programs: takes anything, does nothing."""

    def __new__(cls, *_: object, **__: object) -> "Inert":  # noqa: D102 - takes anything
        return super().__new__(cls)

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __setstate__(self, _: object) -> None:
        pass


class NotWeights(str):
    """The kind of a tensor that cannot be one of weights, in its place."""


class Contents(NamedTuple):
    """What a file of weights holds.

    Attributes:
        tensors: By name; none is read yet.
        blobs: Raw bytes beside them: FP8 records, never executed.
        wrappers: What was around the tensors, the outermost first, e.g. "state_dict".
    """

    tensors: Tensors
    blobs: dict[str, bytes]
    wrappers: tuple[str, ...] = ()


def open_tensors(path: Path) -> Contents:
    """Open a file of named tensors. Their numbers are read, and checksums compared, on access.

    Args:
        path: A .safetensors file, a file of `torch.save`, or any part `NAME.partN` of one.

    Raises:
        CheckpointError: The file cannot be read, is damaged, or contains anything but tensors and
            bytes.
    """
    require_weights(path)
    try:
        if path.suffix == ".safetensors":
            return Contents(_open_safetensors(path), {})
        return _named(_open_pickle(path), path)
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


def _open_safetensors(path: Path) -> Tensors:
    """A file is mapped anew for each tensor, so that pages of others do not stay in memory."""

    def read(name: str) -> Tensor:
        with safe_open(path, "pt") as file:
            tensor: Tensor = file.get_tensor(name)
            return tensor

    with safe_open(path, "pt") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        likes = {
            name: torch.empty(part.get_shape(), dtype=_DTYPES[part.get_dtype()], device="meta")
            for name, part in slices.items()
        }
    return Tensors({name: Stored(like, partial(read, name)) for name, like in likes.items()})


@contextmanager
def opened(path: Path) -> Iterator[io.BufferedReader]:
    """The bytes of a file, or of all parts of one."""
    if _PART.search(path.name):
        with io.BufferedReader(JoinedParts(parts_of(path))) as joined:
            yield cast(io.BufferedReader, joined)
    else:
        with path.open("rb") as file:
            yield file


def _open_pickle(path: Path) -> object:
    """The contents of a file of `torch.save`, with a `Stored` in place of each tensor.

    Only the archive's directory and its pickle are read. Files older than PyTorch 1.6 are no
    archives and are read whole.
    """
    # PyTorch's documentation imports it from there; it loads a second's worth of modules.
    from torch._subclasses.fake_tensor import FakeTensorMode

    with opened(path) as file:
        archive = open_archive(file, path)
        foreign = _stand_ins(file) if archive else []
        file.seek(0)
        with torch.serialization.safe_globals([io.BytesIO, *foreign]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of kinds of tensors that are refused afterwards
            if archive is None:
                return _stored(torch.load(file, map_location="cpu", weights_only=True), None)
            try:
                with FakeTensorMode():
                    contents = torch.load(file, map_location="cpu", weights_only=True)
            except pickle.UnpicklingError:
                raise
            except UNREADABLE:  # kinds of tensors that weights are not; read whole, they have names
                file.seek(0)
                contents, archive = torch.load(file, map_location="cpu", weights_only=True), None
            return _stored(contents, archive)


def _stand_ins(file: io.BufferedReader) -> list[tuple[Any, str]]:
    file.seek(0)
    unknown = torch.serialization.get_unsafe_globals_in_checkpoint(file)
    return [(Inert, name) for name in unknown if name.partition(".")[0] in _TRAINERS]


def _stored(contents: object, archive: "Archive | None") -> object:
    """Every tensor in nested dictionaries becomes a `Stored`."""
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
    # PyTorch documents this mark of storages that are loaded in the mode for fake tensors.
    offset = contents.untyped_storage()._checkpoint_offset
    assert offset is not None
    return Stored(like, partial(archive.read, offset, like, int(contents.storage_offset())))


class Archive:
    """The storages of a .pt archive: where they lie and what their checksums are."""

    def __init__(self, path: Path, records: Mapping[int, tuple[str, int, int]]) -> None:
        """Describe an archive.

        Args:
            path: Of the file, or of a part of it.
            records: Name, bytes and CRC-32 (0: not computed) of each entry by its offset.
        """
        self._path, self._records = path, dict(records)
        self._sound: set[int] = set()

    def read(self, offset: int, like: Tensor, first: int) -> Tensor:
        """Read a tensor.

        Args:
            offset: Of its storage in the file.
            like: Its shape, strides and dtype.
            first: Its first number in the storage.

        Raises:
            CheckpointError: The checksum of the storage is wrong, or the file was cut.
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
            self._require_sound(file, offset, data)
        numbers = torch.frombuffer(data, dtype=like.dtype)
        return numbers.as_strided(like.shape, like.stride())

    def _require_sound(self, file: io.BufferedReader, offset: int, data: bytearray) -> None:
        """Compare the checksum of a storage, of which `data` was read, once."""
        if offset not in self._records:
            raise CheckpointError(f"{self._path}: damaged: a tensor lies where no entry is")
        name, size, expected = self._records[offset]
        if offset in self._sound or not expected:
            return
        if len(data) == size:
            found = zlib.crc32(data)
        else:  # a tensor that is a part of its storage
            file.seek(offset)
            found = 0
            for start in range(0, size, _CHUNK):
                found = zlib.crc32(file.read(min(_CHUNK, size - start)), found)
        if found != expected:
            raise CheckpointError(
                f"{self._path}: damaged: the checksum of its entry {shown(name)} is wrong; get the "
                "file again"
            )
        self._sound.add(offset)


def _named(contents: object, path: Path) -> Contents:
    """Tensors and bytes by name, out of what is wrapped around them."""
    wrappers: list[str] = []
    while isinstance(contents, Mapping) and len(wrappers) < 2:
        inner = next((key for key in _WRAPPERS if isinstance(contents.get(key), Mapping)), None)
        if inner is None or any(isinstance(value, Stored) for value in contents.values()):
            break
        wrappers.append(inner)
        contents = contents[inner]
    if not isinstance(contents, Mapping):
        raise CheckpointError(f"{path}: holds a {type(contents).__name__}, not named tensors")
    tensors, blobs = {}, {}
    for name, value in contents.items():
        if not isinstance(name, str):
            raise CheckpointError(
                f"{path}: the name {shown(name)} of an entry is a {type(name).__name__}, not text"
            )
        if isinstance(value, Stored):
            tensors[name] = value
        elif isinstance(value, io.BytesIO):
            blobs[name] = value.getvalue()
        elif value is not None:
            raise CheckpointError(f"{path}: entry {shown(name)} is {_kind(value)}")
    if not tensors and not blobs:
        raise CheckpointError(f"{path}: holds no tensors")
    return Contents(Tensors(tensors), blobs, tuple(wrappers))


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


def open_archive(file: io.BufferedReader, path: Path) -> "Archive | None":
    """The storages of a .pt archive; None for other formats.

    Raises:
        CheckpointError: An entry is compressed, which reading it in place would not notice; or its
            pickle is too large.
    """
    file.seek(0)
    if file.read(len(_ZIP)) != _ZIP:
        return None
    records = {}
    with zipfile.ZipFile(file) as archive:
        for entry in archive.infolist():
            require_plain_entry(entry, path)
            if entry.CRC and "/data/" not in entry.filename:
                archive.read(entry)  # compares its checksum
            # The length of the name and of what pads an entry stand before it, not in the list.
            file.seek(entry.header_offset + 26)
            sizes = struct.unpack("<HH", file.read(4))
            offset = entry.header_offset + 30 + sum(sizes)
            records[offset] = (entry.filename, entry.file_size, entry.CRC)
    return Archive(path, records)


def require_plain_entry(entry: zipfile.ZipInfo, origin: Path | str) -> None:
    """Refuse an entry of a .pt archive that is made to fill the memory.

    Raises:
        CheckpointError: It is compressed, or a pickle of more than names.
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


def write_safetensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write a .safetensors file, of which one tensor at a time is in memory.

    The format is that of the safetensors library, which needs all tensors of a file at once: the
    length of a header in JSON as 8 bytes, the header, and the tensors, the widest numbers first.
    """
    likes = Tensors.of(tensors).like
    order = sorted(likes, key=lambda name: (-likes[name].itemsize, name))
    names_of = {dtype: name for name, dtype in _DTYPES.items()}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in order:
        start, end = end, end + likes[name].nbytes
        header[name] = {
            "dtype": names_of[likes[name].dtype],
            "shape": list(likes[name].shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in order:
            numbers = tensors[name].detach().cpu().contiguous()
            file.write(numbers.reshape(-1).view(torch.uint8).numpy().data)


def write_shards(tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Write model.safetensors, or shards of it of at most `MAX_SHARD` bytes and their index."""
    plan = split_torch_state_dict_into_shards(
        Tensors.of(tensors).like, max_shard_size=MAX_SHARD, filename_pattern=SHARD_PATTERN
    )
    for name, members in plan.filename_to_tensors.items():
        write_safetensors(Tensors.of(tensors).only(members), folder / name)
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        text = json.dumps(index, indent=2, sort_keys=True) + "\n"
        (folder / INDEX).write_text(text, encoding="utf-8")


def _shard(name: str) -> str:
    if Path(name).name != name:
        raise ValueError("must be a file in the same folder")
    return name


class _Index(BaseModel):
    """The file that says which shard has a tensor."""

    weight_map: dict[str, Annotated[str, AfterValidator(_shard)]]


_INDEX = TypeAdapter(_Index)


def shards_of(index: Path) -> list[Path]:
    """The files that an index of shards names.

    Raises:
        CheckpointError: It cannot be read.
    """
    names = read_json(index, _INDEX, CheckpointError).weight_map.values()
    return [index.parent / name for name in sorted(set(names))]


def open_shards(folder: Path) -> Tensors:
    """The tensors of model.safetensors, or of the shards that its index names.

    Raises:
        CheckpointError: A file is missing, or cannot be read.
    """
    index = folder / INDEX
    files = shards_of(index) if index.is_file() else [folder / WEIGHTS_FILE]
    return Tensors.joined([open_tensors(file).tensors for file in files])


def refuse_full(folder: Path) -> None:
    """Refuse to write into a folder that holds anything.

    Raises:
        CheckpointError: It does, or it is a file.
    """
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise CheckpointError(f"{folder}: exists; choose another name, or remove it first")


def require_sound_record(record: bytes, origin: str) -> None:
    """Refuse an archive within a file that is damaged, or made to fill the memory.

    Raises:
        CheckpointError: One of its entries is compressed, too large, or has a wrong checksum.
    """
    if not record.startswith(_ZIP):
        return
    with zipfile.ZipFile(io.BytesIO(record)) as archive:
        for entry in archive.infolist():
            require_plain_entry(entry, origin)
        damaged = archive.testzip() if any(entry.CRC for entry in archive.infolist()) else None
    if damaged is not None:
        raise CheckpointError(
            f"{origin}: damaged: the checksum of its entry {shown(damaged)} is wrong; get the file "
            "again"
        )


def _kind(value: object) -> str:
    """What an entry is that should be a tensor."""
    if isinstance(value, NotWeights):
        return f"{value}, not a weight; weights are dense {', '.join(WEIGHTS)}"
    return (
        f"a {type(value).__name__}, not a tensor; expected a dictionary of tensors by their names"
    )


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
