"""The layout of the published Evo 2 files, both ways, bit for bit.

`layout` describes how it differs from ours. `filter.t` (a time axis) and `unembed.weight` (a copy
of the embedding) contain nothing of their own; `_extra_state` entries are FP8 scales.
"""

import io
import re
from collections.abc import Mapping
from pathlib import Path

import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor

from stripedhyena2.checkpoint.contents import (
    Checkpoint,
    CheckpointError,
    check_tensors,
    expected_shapes,
)
from stripedhyena2.checkpoint.files import writing
from stripedhyena2.config import ModelConfig, to_released
from stripedhyena2.layout import layout
from stripedhyena2.outputs import atomic_paths

SUFFIXES = (".pt", ".safetensors")
_REDUNDANT = re.compile(r"(unembed\.weight|blocks\.\d+\.(mixer\.mixer\.)?filter\.t)$")


def has_suffix(path: Path) -> bool:
    """Whether a path has the suffix of a released file, or of a part of one."""
    return path.suffix in SUFFIXES or path.suffix.startswith(".part")


def expected_released_shapes(config: ModelConfig) -> dict[str, torch.Size]:
    """Name and shape of every tensor that matters in a released file of this shape."""
    ours = expected_shapes(config)
    return {
        entry.theirs: entry.to_theirs(torch.empty(ours[entry.ours], device="meta")).shape
        for entry in layout(config)
    }


def to_ours(tensors: Mapping[str, Tensor], config: ModelConfig, origin: str) -> dict[str, Tensor]:
    """Translate the tensors of a released file.

    Raises:
        CheckpointError: A tensor is missing, extra or of another shape.
    """
    if "module" in {name.partition(".")[0] for name in tensors}:
        raise CheckpointError(f"{origin}: this is a training checkpoint, not a released Evo 2 file")
    needed = {name: t for name, t in tensors.items() if not _REDUNDANT.search(name)}
    check_tensors(needed, expected_released_shapes(config), origin)
    return {
        entry.ours: entry.to_ours(needed[entry.theirs]).contiguous() for entry in layout(config)
    }


def to_theirs(tensors: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """Translate our tensors into a released file's, its copy of the embedding included."""
    released = {
        entry.theirs: entry.to_theirs(tensors[entry.ours]).contiguous() for entry in layout(config)
    }
    return {**released, "unembed.weight": released["embedding_layer.weight"]}


def write(checkpoint: Checkpoint, path: Path) -> None:
    """Write a released-layout file, and the yml of its shape beside it.

    Args:
        checkpoint: FP8 scale records go into a .pt file unchanged; safetensors cannot hold them.
        path: Ends in .pt or .safetensors.

    Raises:
        CheckpointError: The file cannot be written.
        OutputInUseError: Another process writes it.
        ConfigError: The released layout cannot express the model.
    """
    config = yaml.safe_dump(to_released(checkpoint.config), sort_keys=False)
    tensors = to_theirs(checkpoint.tensors, checkpoint.config)
    with writing(path), atomic_paths(path, path.with_suffix(".yml")) as (weights, description):
        description.write_text(config, encoding="utf-8")
        if path.suffix == ".safetensors":
            save_file({name: tensor.clone() for name, tensor in tensors.items()}, weights)
            weights.chmod(0o644)  # the library writes through a private temporary file
        else:
            blobs = {name: io.BytesIO(blob) for name, blob in checkpoint.extra_state.items()}
            torch.save({**tensors, **blobs}, weights)
