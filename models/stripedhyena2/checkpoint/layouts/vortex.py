"""The layout of the published Evo 2 files, which Vortex reads: both ways, bit for bit.

`layout.layout` describes how it differs from ours. `filter.t` (a time axis) and `unembed.weight` (a
copy of the embedding) are redundant; `_extra_state` entries are FP8 scales.
"""

import io
import re
from collections.abc import Collection
from pathlib import Path

import torch
from torch import Tensor

from stripedhyena2.checkpoint.contents import Checkpoint, check_tensors, expected_shapes
from stripedhyena2.checkpoint.files import writing
from stripedhyena2.checkpoint.layouts.base import Layout
from stripedhyena2.checkpoint.shards import write_safetensors
from stripedhyena2.checkpoint.tensors import Rule, Tensors, translate
from stripedhyena2.config import ModelConfig, released_yml
from stripedhyena2.layout import layout
from stripedhyena2.outputs import atomic_paths

SUFFIXES = (".pt", ".safetensors")
HEAD = "score."  # prefix of the tensors of a classifier head on top of the model
_UNUSED = re.compile(
    r"(^score\..*|unembed\.weight|_extra_state|\.filter\.t|\.(input|weight)_scale)$"
)
# Savanna's own converter gives the final norm the name of a module of the last block.
_FINAL_NORM = re.compile(r"blocks\.\d+\.norm\.scale")


class Vortex(Layout):
    """The names and forms of the released files."""

    name, stored_as = "vortex", "released"

    def claims(self, names: Collection[str]) -> bool:
        """As in `Layout`."""
        return "embedding_layer.weight" in names

    def to_ours(self, tensors: Tensors, config: ModelConfig, origin: str) -> Tensors:
        """As in `Layout`."""
        used = tensors.renamed(_current_name)
        check_tensors(used.like, {n: t.shape for n, t in expected(config).items()}, origin)
        table = {entry.ours: Rule((entry.theirs,), entry.to_ours) for entry in layout(config)}
        return translate(used, table, origin)

    def from_ours(self, tensors: Tensors, config: ModelConfig) -> Tensors:
        """As in `Layout`, with the copy of the embedding that released files have."""
        table = {entry.theirs: Rule((entry.ours,), entry.to_theirs) for entry in layout(config)}
        table["unembed.weight"] = table["embedding_layer.weight"]
        return translate(tensors, table, "this model")


def _current_name(name: str) -> str | None:
    if _UNUSED.search(name):
        return None
    return "norm.scale" if _FINAL_NORM.fullmatch(name) else name


def expected(config: ModelConfig) -> dict[str, Tensor]:
    """Every tensor of a released file that the model uses, on the meta device."""
    ours = {name: torch.empty(s, device="meta") for name, s in expected_shapes(config).items()}
    return {entry.theirs: entry.to_theirs(ours[entry.ours]) for entry in layout(config)}


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
    description = released_yml(checkpoint.config)
    tensors = Vortex().from_ours(Tensors.of(checkpoint.tensors), checkpoint.config)
    with writing(path), atomic_paths(path, path.with_suffix(".yml")) as (weights, yml):
        yml.write_text(description, encoding="utf-8")
        if path.suffix == ".safetensors":
            write_safetensors(tensors, weights)
        else:
            blobs = {name: io.BytesIO(blob) for name, blob in checkpoint.extra_state.items()}
            torch.save({**tensors, **blobs}, weights)
