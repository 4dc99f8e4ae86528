"""The native checkpoint: a folder with config.toml, model.safetensors and provenance.json.

A large model is sharded, with an index. The FP8 scale records of a released file are kept in
extra_state.safetensors, as bytes. Folders are written atomically.
"""

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w
import torch
from pydantic import JsonValue, TypeAdapter

from stripedhyena2.checkpoint.contents import (
    Checkpoint,
    CheckpointError,
    check_tensors,
    expected_shapes,
)
from stripedhyena2.checkpoint.files import open_shards, open_tensors, refuse_full, writing
from stripedhyena2.checkpoint.layouts.base import Layout
from stripedhyena2.checkpoint.shards import write_safetensors, write_shards
from stripedhyena2.checkpoint.tensors import Tensors
from stripedhyena2.config import ModelConfig, read_config
from stripedhyena2.outputs import atomic_path
from stripedhyena2.values import read_json

CONFIG, PROVENANCE = "config.toml", "provenance.json"
BESIDE = EXTRA_STATE, TRAINING_FORM = "extra_state.safetensors", "training_form.safetensors"

_PROVENANCE = TypeAdapter(dict[str, JsonValue])


class Native(Layout):
    """The model's own names and forms."""

    name = "native"

    def claims(self, names: Collection[str]) -> bool:
        """As in `Layout`."""
        return "embedding.weight" in names

    def to_ours(self, tensors: Tensors, config: ModelConfig, origin: str) -> Tensors:
        """As in `Layout`."""
        check_tensors(tensors.like, expected_shapes(config), origin)
        return tensors

    def from_ours(self, tensors: Tensors, config: ModelConfig) -> Tensors:
        """As in `Layout`."""
        del config
        return tensors


def is_native(path: Path) -> bool:
    """Whether `path` is a native checkpoint folder."""
    return (path / CONFIG).is_file()


def write(checkpoint: Checkpoint, folder: Path, *, over_another: bool = True) -> None:
    """Write a checkpoint folder.

    Args:
        checkpoint: What to write.
        folder: The folder; an earlier checkpoint is replaced atomically.
        over_another: Whether the earlier one may have another provenance.

    Raises:
        CheckpointError: `folder` is not an earlier checkpoint, or has another provenance, or cannot
            be written.
        OutputInUseError: Another process writes it.
    """
    refuse_other(folder)
    with writing(folder), atomic_path(folder) as temporary:
        if (
            not over_another
            and is_native(folder)
            and provenance_of(folder) != checkpoint.provenance
        ):
            raise CheckpointError(
                f"{folder}: contains another checkpoint; choose another name, or remove it first"
            )
        temporary.mkdir()
        _fill(checkpoint, temporary)


def refuse_other(folder: Path) -> None:
    """Refuse to overwrite a folder that is not a checkpoint.

    Raises:
        CheckpointError: It has other contents, or is a file.
    """
    if not is_native(folder):
        refuse_full(folder, "exists and is not a checkpoint; choose another name")


def _fill(checkpoint: Checkpoint, folder: Path) -> None:
    values = asdict(checkpoint.config)
    config = {key: value for key, value in values.items() if value is not None}  # TOML has no null
    (folder / CONFIG).write_text(tomli_w.dumps(config), encoding="utf-8")
    write_shards(checkpoint.tensors, folder)
    if checkpoint.training_form:
        write_safetensors(checkpoint.training_form, folder / TRAINING_FORM)
    write_beside(checkpoint, folder)


def write_beside(checkpoint: Checkpoint, folder: Path) -> None:
    """Write the files beside the weights: FP8 records as bytes, and the provenance."""
    if checkpoint.extra_state:
        blobs = {
            name: torch.from_numpy(np.frombuffer(blob, dtype=np.uint8).copy())
            for name, blob in checkpoint.extra_state.items()
        }
        write_safetensors(blobs, folder / EXTRA_STATE)
    text = json.dumps(checkpoint.provenance, indent=2) + "\n"
    (folder / PROVENANCE).write_text(text, encoding="utf-8")


def add_to_provenance(folder: Path, facts: Mapping[str, Any]) -> None:
    """Add facts to the provenance of a folder."""
    text = json.dumps({**provenance_of(folder), **facts}, indent=2) + "\n"
    with writing(folder), atomic_path(folder / PROVENANCE) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read(folder: Path) -> Checkpoint:
    """Read a checkpoint folder; tensors are loaded lazily.

    Raises:
        CheckpointError: Something is missing or does not match the config.
    """
    config = read_config(folder / CONFIG)
    tensors = Native().to_ours(open_shards(folder), config, str(folder))
    form = folder / TRAINING_FORM
    return Checkpoint(
        config,
        tensors,
        extra_state_of(folder),
        provenance_of(folder),
        open_tensors(form).tensors if form.exists() else {},
    )


def extra_state_of(folder: Path) -> dict[str, bytes]:
    """The FP8 records in a folder, as bytes.

    Raises:
        CheckpointError: They cannot be read.
    """
    file = folder / EXTRA_STATE
    if not file.is_file():
        return {}
    blobs = open_tensors(file).tensors
    for name, like in blobs.like.items():
        if like.dtype != torch.uint8:
            raise CheckpointError(f"{file}: entry {name!r} is {like.dtype}, not bytes (uint8)")
    return {name: blob.numpy().tobytes() for name, blob in blobs.items()}


def provenance_of(folder: Path) -> dict[str, Any]:
    """Where the weights in a folder come from, as JSON values; empty if it does not say.

    Raises:
        CheckpointError: Its provenance.json cannot be read.
    """
    file = folder / PROVENANCE
    return read_json(file, _PROVENANCE, CheckpointError) if file.exists() else {}
