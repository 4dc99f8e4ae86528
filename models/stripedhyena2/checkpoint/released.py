"""The layout of the published Evo 2 files, both ways, bit for bit.

It differs from ours in names, in extra axes, in the row order of the mixers' projections (q, k, v
head by head, and x2, x1, v channel by channel) and in the tap order of the short filters (newest
last). `filter.t` (a time axis) and `unembed.weight` (a copy of the embedding) carry nothing;
`_extra_state` entries are FP8 scales.
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
from stripedhyena2.config import ModelConfig, to_released
from stripedhyena2.layout import layout

SUFFIXES = (".pt", ".safetensors")
_WITHOUT_MEANING = re.compile(r"(unembed\.weight|blocks\.\d+\.(mixer\.mixer\.)?filter\.t)$")


def is_named_so(path: Path) -> bool:
    """Whether a path has the suffix of a released file, or of a part of one."""
    return path.suffix in SUFFIXES or path.suffix.startswith(".part")


def expected_released_shapes(config: ModelConfig) -> dict[str, torch.Size]:
    """Name and shape of every meaningful tensor of a released file of this shape."""
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
    meaningful = {name: t for name, t in tensors.items() if not _WITHOUT_MEANING.search(name)}
    check_tensors(meaningful, expected_released_shapes(config), origin)
    return {
        entry.ours: entry.to_ours(meaningful[entry.theirs]).contiguous() for entry in layout(config)
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
        checkpoint: FP8 scale records go into a .pt file as they came; safetensors cannot hold them.
        path: Ends in .pt or .safetensors.

    Raises:
        CheckpointError: The file cannot be written.
    """
    tensors = to_theirs(checkpoint.tensors, checkpoint.config)
    temporary, beside = path.with_name(f".{path.name}.tmp"), path.with_suffix(".yml")
    temporary_beside = beside.with_name(f".{beside.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".safetensors":
            save_file({name: tensor.clone() for name, tensor in tensors.items()}, temporary)
        else:
            blobs = {name: io.BytesIO(blob) for name, blob in checkpoint.extra_state.items()}
            torch.save({**tensors, **blobs}, temporary)
        config = yaml.safe_dump(to_released(checkpoint.config), sort_keys=False)
        temporary_beside.write_text(config, encoding="utf-8")
        temporary_beside.replace(beside)
        temporary.replace(path)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written ({error.strerror or error})") from None
    finally:
        temporary.unlink(missing_ok=True)
        temporary_beside.unlink(missing_ok=True)
