"""Safetensors files, and models that are sharded over several of them.

The safetensors library writes all tensors of a file at once; here one at a time is in memory.
"""

import json
import struct
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from pydantic import AfterValidator, BaseModel, TypeAdapter
from safetensors import safe_open
from torch import Tensor

from stripedhyena2.checkpoint.contents import CheckpointError
from stripedhyena2.checkpoint.tensors import Stored, Tensors
from stripedhyena2.outputs import is_utf8
from stripedhyena2.values import read_json

WEIGHTS_FILE, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARD_PATTERN = "model{suffix}.safetensors"
MAX_SHARD = 5_000_000_000  # bytes
_DTYPES = {
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F32": torch.float32,
    "F64": torch.float64,
    "U8": torch.uint8,
}


def _shard(name: str) -> str:
    if Path(name).name != name:
        raise ValueError("must be a file in the same folder")
    return name


class _Index(BaseModel):
    """The index: which shard has which tensor."""

    weight_map: dict[str, Annotated[str, AfterValidator(_shard)]]


_INDEX = TypeAdapter(_Index)


def shards_of(index: Path) -> list[Path]:
    """The shard files that an index lists.

    Raises:
        CheckpointError: It cannot be read.
    """
    names = read_json(index, _INDEX, CheckpointError).weight_map.values()
    return [index.parent / name for name in sorted(set(names))]


def open_safetensors(path: Path) -> Tensors:
    """The tensors of a file, loaded lazily.

    The file is mapped again for each tensor, so that the pages of others do not stay in memory.

    Raises:
        CheckpointError: The safetensors library cannot open the path.
    """
    if not is_utf8(path):
        raise CheckpointError(f"{path}: safetensors needs a path in UTF-8; rename file or folder")

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


def write_safetensors(
    tensors: Mapping[str, Tensor], path: Path, facts: Mapping[str, str] | None = None
) -> None:
    """Write a .safetensors file with one tensor at a time in memory.

    The safetensors library needs all tensors of a file at once, and creates files that only their
    owner can read. The format is the same: the length of a JSON header as 8 bytes, the header, and
    the tensors, the widest dtypes first.

    Args:
        tensors: By name.
        path: The file.
        facts: Additional metadata.
    """
    likes = Tensors.of(tensors).like
    order = sorted(likes, key=lambda name: (-likes[name].itemsize, name))
    names_of = {dtype: name for name, dtype in _DTYPES.items()}
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **(facts or {})}}
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
    """Write model.safetensors, or shards of at most `MAX_SHARD` bytes and their index."""
    plan = split_torch_state_dict_into_shards(
        Tensors.of(tensors).like, max_shard_size=MAX_SHARD, filename_pattern=SHARD_PATTERN
    )
    for name, members in plan.filename_to_tensors.items():
        write_safetensors(Tensors.of(tensors).only(members), folder / name)
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        text = json.dumps(index, indent=2, sort_keys=True) + "\n"
        (folder / INDEX).write_text(text, encoding="utf-8")
