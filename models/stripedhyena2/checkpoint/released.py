"""The layout of the published Evo 2 files, both ways, bit for bit.

It differs from ours in names, in extra axes, in the row order of the mixers' projections (q, k, v
head by head, and x2, x1, v channel by channel) and in the tap order of the short filters (newest
last). `filter.t` (a time axis) and `unembed.weight` (a copy of the embedding) carry nothing;
`_extra_state` entries are FP8 scales.
"""

import io
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

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
from stripedhyena2.checkpoint.files import atomic_path
from stripedhyena2.config import ATTENTION, LONG, MEDIUM, SHORT, ModelConfig, to_released

SUFFIXES = (".pt", ".safetensors")
_WITHOUT_MEANING = re.compile(r"(unembed\.weight|blocks\.\d+\.(mixer\.mixer\.)?filter\.t)$")


def is_named_so(path: Path) -> bool:
    """Whether a path has the suffix of a released file, or of a part of one."""
    return path.suffix in SUFFIXES or path.suffix.startswith(".part")


def _same(tensor: Tensor) -> Tensor:
    return tensor


class Entry(NamedTuple):
    """One tensor in both layouts: ours and theirs by name, and the two translations."""

    ours: str
    theirs: str
    to_ours: Callable[[Tensor], Tensor] = _same
    to_theirs: Callable[[Tensor], Tensor] = _same


def layout(config: ModelConfig) -> Iterator[Entry]:
    """Every tensor of a model of this shape."""
    yield Entry("embedding.weight", "embedding_layer.weight")
    yield Entry("norm.scale", "norm.scale")
    for index, kind in enumerate(config.stripes):
        mixer = _attention(config) if kind == ATTENTION else _hyena(config, kind)
        for entry in [*_BLOCK, *mixer]:
            prefix = f"blocks.{index}."
            yield entry._replace(ours=prefix + entry.ours, theirs=prefix + entry.theirs)


_BLOCK = [
    Entry("pre_norm.scale", "pre_norm.scale"),
    Entry("post_norm.scale", "post_norm.scale"),
    Entry("mlp.gate.weight", "mlp.l1.weight"),
    Entry("mlp.up.weight", "mlp.l2.weight"),
    Entry("mlp.down.weight", "mlp.l3.weight"),
]


def _newest_first(taps_G1K: Tensor) -> Tensor:
    return taps_G1K.squeeze(1).flip(1)


def _newest_last(taps_GK: Tensor) -> Tensor:
    return taps_GK.flip(1).unsqueeze(1)


# A projection's rows are three parts (q, k, v or x2, x1, v) of equal owners (heads or channels).
# Ours go part by part: each part of a position is one piece of memory, which the kernels read as
# whole 16-byte vectors. Theirs go owner by owner.
def _by_part(rows: Tensor, num_owners: int) -> Tensor:
    by_owner = rows.reshape(num_owners, 3, -1, rows.shape[1])
    return by_owner.transpose(0, 1).reshape(rows.shape)


def _by_owner(rows: Tensor, num_owners: int) -> Tensor:
    by_part = rows.reshape(3, num_owners, -1, rows.shape[1])
    return by_part.transpose(0, 1).reshape(rows.shape)


def _hyena(config: ModelConfig, kind: str) -> Iterable[Entry]:
    width = config.width
    yield Entry(
        "mixer.project_in.weight",
        "projections.weight",
        lambda rows: _by_part(rows, width),
        lambda rows: _by_owner(rows, width),
    )
    yield Entry(
        "mixer.operator.featurizer_taps_CK",
        "filter.short_filter_weight",
        lambda taps: _by_part(_newest_first(taps), width),
        lambda taps: _newest_last(_by_owner(taps, width)),
    )
    yield Entry("mixer.project_out.weight", "out_filter_dense.weight")
    yield Entry("mixer.project_out.bias", "out_filter_dense.bias")
    if kind == SHORT:
        yield Entry("mixer.operator.taps_GK", "filter.h", _newest_first, _newest_last)
    if kind == MEDIUM:
        yield Entry(
            "mixer.operator.taps_GK", "filter.h", lambda h: h.squeeze(1), lambda h: h.unsqueeze(1)
        )
    if kind == LONG:
        yield Entry(
            "mixer.operator.log_poles_DS",
            "filter.log_poles",
            lambda p: p.squeeze(2),
            lambda p: p.unsqueeze(2),
        )
        yield Entry("mixer.operator.residues_DS", "filter.residues")
    if kind in (MEDIUM, LONG):
        yield Entry("mixer.operator.skip_D", "filter.D")


def _attention(config: ModelConfig) -> Iterable[Entry]:
    heads = config.num_heads
    yield Entry(
        "mixer.project_in.weight",
        "inner_mha_cls.Wqkv.weight",
        lambda rows: _by_part(rows, heads),
        lambda rows: _by_owner(rows, heads),
    )
    yield Entry("mixer.project_out.weight", "inner_mha_cls.out_proj.weight")
    yield Entry("mixer.project_out.bias", "inner_mha_cls.out_proj.bias")
    yield Entry("mixer.inverse_frequency", "inner_mha_cls.rotary_emb.inv_freq")


def shared_modules(config: ModelConfig) -> dict[str, str]:
    """Modules that give the same output in both layouts, channel by channel: theirs to ours.

    Input projections are none of them: their channels come in another order.
    """
    return {
        entry.theirs.rpartition(".")[0]: entry.ours.rpartition(".")[0]
        for entry in layout(config)
        if not entry.ours.endswith(("project_in.weight", "inverse_frequency"))
    }


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
    with atomic_path(path) as temporary:
        if path.suffix == ".safetensors":
            save_file({name: tensor.clone() for name, tensor in tensors.items()}, temporary)
        else:
            blobs = {name: io.BytesIO(blob) for name, blob in checkpoint.extra_state.items()}
            torch.save({**tensors, **blobs}, temporary)
        config = yaml.safe_dump(to_released(checkpoint.config), sort_keys=False)
        with atomic_path(path.with_suffix(".yml")) as description:
            description.write_text(config, encoding="utf-8")
