"""torch.distributed checkpoints: folders of .distcp files and a .metadata file.

They are read without a process group. The metadata is a pickle, of which only the classes that
describe tensors are instantiated; everything else is replaced by inert objects.
"""

import pickle
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load

from stripedhyena2.checkpoint.contents import WEIGHTS, CheckpointError
from stripedhyena2.checkpoint.pickles import UNREADABLE, Inert
from stripedhyena2.checkpoint.tensors import Stored, Tensors
from stripedhyena2.errors import reason_of
from stripedhyena2.values import require_regular

METADATA = ".metadata"
# The classes that torch describes tensors with. Matched by their whole names: a dotted name that
# starts in a safe module can lead out of it.
_DESCRIPTIONS = {
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    *(
        ("torch.distributed.checkpoint.metadata", name)
        for name in (
            "BytesStorageMetadata",
            "ChunkStorageMetadata",
            "Metadata",
            "MetadataIndex",
            "StorageMeta",
            "TensorProperties",
            "TensorStorageMetadata",
            "_MEM_FORMAT_ENCODING",
        )
    ),
    ("collections", "OrderedDict"),
    ("builtins", "set"),
}
_MAX_METADATA = 1 << 28  # bytes


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """Find only classes that describe tensors; others are inert."""
        is_dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if is_dtype or (module, name) in _DESCRIPTIONS:
            return super().find_class(module, name)
        return Inert


class _Reader(FileSystemReader):
    def read_metadata(self, *_: Any, **__: Any) -> Metadata:
        """As torch's, without executing pickled code."""
        with (Path(self.path) / METADATA).open("rb") as file:
            metadata = _Unpickler(file).load()
        if not isinstance(metadata, Metadata):
            raise TypeError(f"holds a {type(metadata).__name__}, not metadata")
        return metadata


def open_distributed(folder: Path) -> Tensors:
    """The tensors in such a folder, loaded lazily.

    Raises:
        CheckpointError: The metadata cannot be read.
    """
    file = folder / METADATA
    require_regular(file, CheckpointError)
    try:
        if file.stat().st_size > _MAX_METADATA:
            raise ValueError(f"larger than {_MAX_METADATA:,} bytes")
        described = _Reader(folder).read_metadata().state_dict_metadata
        return Tensors(
            {
                name: Stored(_like(entry), partial(_read, folder, name, _like(entry)))
                for name, entry in described.items()
                if isinstance(entry, TensorStorageMetadata)
                and not name.startswith("optimizer.")
                and str(entry.properties.dtype).removeprefix("torch.") in WEIGHTS
            }
        )
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read ({reason_of(error)})") from None
    except UNREADABLE as error:
        raise CheckpointError(
            f"{folder}: not a readable checkpoint of torch.distributed ({reason_of(error)})"
        ) from None


def _like(entry: TensorStorageMetadata) -> Tensor:
    return torch.empty(entry.size, dtype=entry.properties.dtype, device="meta")


def _read(folder: Path, name: str, like: Tensor) -> Tensor:
    value = torch.empty(like.shape, dtype=like.dtype)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")
            load({name: value}, storage_reader=_Reader(folder), no_dist=True)
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be read ({reason_of(error)})") from None
    except UNREADABLE as error:
        raise CheckpointError(
            f"{folder}: tensor {name!r} cannot be read ({reason_of(error)})"
        ) from None
    return value
