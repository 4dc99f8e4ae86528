"""The native checkpoint: a folder of config.toml, model.safetensors and provenance.json.

A large model is cut into shards with an index beside them. FP8 scale records of a released file
are kept in extra_state.safetensors, as bytes. A folder appears complete or not at all.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tomli_w
import torch
from huggingface_hub import save_torch_state_dict
from pydantic import BaseModel, JsonValue, StringConstraints, TypeAdapter
from safetensors.torch import save_file
from torch import Tensor

from stripedhyena2.checkpoint.contents import (
    Checkpoint,
    CheckpointError,
    check_tensors,
    expected_shapes,
)
from stripedhyena2.checkpoint.files import atomic_path, read_tensors
from stripedhyena2.config import read_config
from stripedhyena2.values import read_json

CONFIG, WEIGHTS, PROVENANCE = "config.toml", "model.safetensors", "provenance.json"
INDEX, EXTRA_STATE = "model.safetensors.index.json", "extra_state.safetensors"


class _Index(BaseModel):
    """The file that says which shard has a tensor."""

    weight_map: dict[str, Annotated[str, StringConstraints(pattern=r"^[^/\\]+\.safetensors$")]]


_INDEX, _PROVENANCE = TypeAdapter(_Index), TypeAdapter(dict[str, JsonValue])


def is_native(path: Path) -> bool:
    """Whether `path` is a native checkpoint folder."""
    return (path / CONFIG).is_file()


def refuse_another(checkpoint: Checkpoint, folder: Path) -> None:
    """Refuse to overwrite a checkpoint of another provenance.

    Raises:
        CheckpointError: `folder` contains such a checkpoint.
    """
    if is_native(folder) and provenance_of(folder) != checkpoint.provenance:
        raise CheckpointError(
            f"{folder}: contains another checkpoint; choose another name, or remove it first"
        )


def write(checkpoint: Checkpoint, folder: Path) -> None:
    """Write a checkpoint folder.

    Raises:
        CheckpointError: `folder` exists and is not an earlier checkpoint, or cannot be written.
    """
    if folder.exists() and not is_native(folder) and (folder.is_file() or any(folder.iterdir())):
        raise CheckpointError(f"{folder}: exists and is not a checkpoint; choose another name")
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        _fill(checkpoint, temporary)


def _fill(checkpoint: Checkpoint, folder: Path) -> None:
    values = asdict(checkpoint.config)
    config = {key: value for key, value in values.items() if value is not None}  # TOML has no null
    (folder / CONFIG).write_text(tomli_w.dumps(config), encoding="utf-8")
    save_torch_state_dict(checkpoint.tensors, folder)
    for file in folder.glob("*.safetensors"):
        file.chmod(0o644)  # the library writes through a private temporary file
    if checkpoint.extra_state:
        blobs = {
            name: torch.from_numpy(np.frombuffer(blob, dtype=np.uint8).copy())
            for name, blob in checkpoint.extra_state.items()
        }
        save_file(blobs, folder / EXTRA_STATE)
    text = json.dumps(checkpoint.provenance, indent=2) + "\n"
    (folder / PROVENANCE).write_text(text, encoding="utf-8")


def read(folder: Path) -> Checkpoint:
    """Read a checkpoint folder; tensors stay memory-mapped.

    Raises:
        CheckpointError: Something is missing or does not fit the config.
    """
    config = read_config(folder / CONFIG)
    index, shards = folder / INDEX, {WEIGHTS}
    if index.is_file():
        shards = set(read_json(index, _INDEX, CheckpointError).weight_map.values())
    tensors: dict[str, Tensor] = {}
    for shard in sorted(shards):
        tensors.update(read_tensors(folder / shard)[0])
    check_tensors(tensors, expected_shapes(config), str(folder))
    return Checkpoint(config, tensors, _extra_state(folder / EXTRA_STATE), provenance_of(folder))


def _extra_state(file: Path) -> dict[str, bytes]:
    if not file.is_file():
        return {}
    blobs, _ = read_tensors(file)
    for name, blob in blobs.items():
        if blob.dtype != torch.uint8:
            raise CheckpointError(f"{file}: entry {name!r} is {blob.dtype}, not bytes (uint8)")
    return {name: blob.numpy().tobytes() for name, blob in blobs.items()}


def provenance_of(folder: Path) -> dict[str, Any]:
    """Where the weights in a folder come from, as JSON values; empty if it does not say.

    Raises:
        CheckpointError: Its provenance.json cannot be read.
    """
    file = folder / PROVENANCE
    return read_json(file, _PROVENANCE, CheckpointError) if file.exists() else {}
