"""Single checkpoint files: opened in any format, and errors of writing them."""

import io
import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError

from stripedhyena2.checkpoint.contents import WEIGHTS, CheckpointError
from stripedhyena2.checkpoint.pickles import UNREADABLE, NotWeights, open_pickle
from stripedhyena2.checkpoint.shards import INDEX, WEIGHTS_FILE, open_safetensors, shards_of
from stripedhyena2.checkpoint.tensors import Stored, Tensors
from stripedhyena2.errors import reason_of
from stripedhyena2.memory import is_out_of_memory, out_of_memory
from stripedhyena2.values import require_regular, shown

_WRAPPERS = ("module", "state_dict", "model_state_dict", "model")  # keys around the tensors
_HEADER_BYTES = 512  # enough to recognize a file by its first bytes


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn errors of writing into one line that names `path`; creates missing parent folders.

    Raises:
        CheckpointError: In place of the error of the system or of the library that writes.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written ({reason_of(error)})") from None
    except (RuntimeError, SafetensorError) as error:  # from torch and safetensors if a disk is full
        raise CheckpointError(
            f"{path}: cannot be written; is the disk full? ({reason_of(error)})"
        ) from None


def refuse_full(
    folder: Path, problem: str = "exists; choose another name, or remove it first"
) -> None:
    """Refuse to write into a folder that is not empty.

    Raises:
        CheckpointError: It is not empty, or it is a file.
    """
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise CheckpointError(f"{folder}: {problem}")


class Contents(NamedTuple):
    """The contents of a file of weights.

    Attributes:
        tensors: By name, loaded lazily.
        blobs: Raw bytes beside them: FP8 records, never executed.
        wrappers: Keys of the dictionaries around the tensors, outermost first, e.g. "state_dict".
    """

    tensors: Tensors
    blobs: dict[str, bytes]
    wrappers: tuple[str, ...] = ()


def open_tensors(path: Path) -> Contents:
    """Open a file of named tensors. Data is read, and checksums are verified, on access.

    Args:
        path: A .safetensors file, a file of `torch.save`, or any part `NAME.partN` of one.

    Raises:
        CheckpointError: The file cannot be read, is damaged, or contains anything but tensors and
            bytes.
    """
    require_weights(path)
    try:
        if path.suffix == ".safetensors":
            return Contents(open_safetensors(path), {})
        return _named(open_pickle(path), path)
    except CheckpointError:
        raise
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({reason_of(error)})") from None
    except pickle.UnpicklingError:
        raise CheckpointError(
            f"{path}: contains more than tensors and is not opened, because that would run its "
            "code; ask its author for a plain dictionary of tensors or a safetensors file"
        ) from None
    except UNREADABLE as error:
        if is_out_of_memory(error):
            raise CheckpointError(f"{path}: {out_of_memory(error)}") from None
        kind = "safetensors file" if path.suffix == ".safetensors" else "PyTorch checkpoint"
        raise CheckpointError(f"{path}: not a complete {kind} ({reason_of(error)})") from None


def open_shards(folder: Path) -> Tensors:
    """The tensors of model.safetensors, or of the shards listed in its index.

    Raises:
        CheckpointError: A file is missing, or cannot be read.
    """
    index = folder / INDEX
    files = shards_of(index) if index.is_file() else [folder / WEIGHTS_FILE]
    return Tensors.joined([open_tensors(file).tensors for file in files])


def _named(contents: object, path: Path) -> Contents:
    """Tensors and bytes by name, taken out of the dictionaries around them."""
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


def _kind(value: object) -> str:
    """A description of an entry that should be a tensor and is not."""
    if isinstance(value, NotWeights):
        return f"{value}, not a weight; weights are dense {', '.join(WEIGHTS)}"
    return (
        f"a {type(value).__name__}, not a tensor; expected a dictionary of tensors by their names"
    )


def require_weights(path: Path) -> None:
    """Refuse files that are often found in place of weights; only the first bytes are read.

    Raises:
        CheckpointError: Not a regular file, or an empty file, a Git LFS pointer or a web page.
    """
    require_regular(path, CheckpointError)
    try:
        with path.open("rb") as file:
            start = file.read(_HEADER_BYTES)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({reason_of(error)})") from None
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
