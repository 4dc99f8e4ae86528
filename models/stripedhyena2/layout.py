"""The tensors of our layout and of the released Evo 2 files, and their bit-exact translation.

The layouts differ in names, in extra axes, in the row order of the projections and in the tap order
of the short filters. Every operator lists its own tensors (`Mixer.released_tensors`); `layout`
lists those of a whole model, which `checkpoint.layouts.vortex` translates.

G filter groups, K taps.
"""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

if TYPE_CHECKING:
    from stripedhyena2.config import ModelConfig


def _same(tensor: Tensor) -> Tensor:
    return tensor


class Entry(NamedTuple):
    """One tensor in both layouts: its two names and the two translations."""

    ours: str
    theirs: str
    to_ours: Callable[[Tensor], Tensor] = _same
    to_theirs: Callable[[Tensor], Tensor] = _same


# The rows of an input projection are three parts (q, k, v or x2, x1, v) of equally many owners
# (heads or channels). Ours are ordered by part: each part of a position is contiguous, and the
# kernels load it as 16-byte vectors. Theirs are ordered by owner.
def by_part(rows: Tensor, num_owners: int) -> Tensor:
    """Rows in the order of our layout."""
    by_owner = rows.reshape(num_owners, 3, -1, rows.shape[1])
    return by_owner.transpose(0, 1).reshape(rows.shape)


def by_owner(rows: Tensor, num_owners: int) -> Tensor:
    """Rows in the order of the released layout."""
    by_part = rows.reshape(3, num_owners, -1, rows.shape[1])
    return by_part.transpose(0, 1).reshape(rows.shape)


def newest_first(taps_G1K: Tensor) -> Tensor:
    """Taps in the order of our layout: tap k is for the sample k positions back."""
    return taps_G1K.squeeze(1).flip(1)


def newest_last(taps_GK: Tensor) -> Tensor:
    """Taps in the order of the released layout."""
    return taps_GK.flip(1).unsqueeze(1)


def layout(config: "ModelConfig") -> Iterator[Entry]:
    """Every tensor of a model of this shape, in both layouts."""
    yield Entry("embedding.weight", "embedding_layer.weight")
    yield Entry("norm.scale", "norm.scale")
    for index, mixer in enumerate(config.mixers):
        inner = [
            entry._replace(ours=f"mixer.{entry.ours}") for entry in mixer.released_tensors(config)
        ]
        for entry in [*_BLOCK, *inner]:
            prefix = f"blocks.{index}."
            yield entry._replace(ours=prefix + entry.ours, theirs=prefix + entry.theirs)


_BLOCK = [
    Entry("pre_norm.scale", "pre_norm.scale"),
    Entry("post_norm.scale", "post_norm.scale"),
    Entry("mlp.gate.weight", "mlp.l1.weight"),
    Entry("mlp.up.weight", "mlp.l2.weight"),
    Entry("mlp.down.weight", "mlp.l3.weight"),
]


def shared_modules(config: "ModelConfig") -> dict[str, str]:
    """The modules whose outputs are the same in both layouts: released names to ours.

    Input projections are not among them: their channels are in another order.
    """
    buffers = {
        f"blocks.{index}.mixer.{name}"
        for index, mixer in enumerate(config.mixers)
        for name in mixer.buffers_of(config)
    }
    return {
        entry.theirs.rpartition(".")[0]: entry.ours.rpartition(".")[0]
        for entry in layout(config)
        if entry.ours not in buffers and not entry.ours.endswith("project_in.weight")
    }
