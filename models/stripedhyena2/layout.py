"""The layout of the released Evo 2 files, tensor by tensor, and how it becomes ours and back.

It differs from ours in names, in extra axes, in the row order of the mixers' input projections
(q, k, v of one head after another, and x2, x1, v of one channel after another) and in the tap order
of the short filters (newest last). `checkpoint.released` translates whole files.

G filter groups, K taps.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from torch import Tensor

from stripedhyena2.config import ATTENTION, LONG, MEDIUM, SHORT, ModelConfig


def _same(tensor: Tensor) -> Tensor:
    return tensor


class Entry(NamedTuple):
    """One tensor in both layouts: its two names and the two translations."""

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


# The rows of an input projection are three parts (q, k, v or x2, x1, v) of equally many owners
# (heads or channels). Ours are ordered by part: each part of a position is contiguous in memory, so
# that the kernels read whole 16-byte vectors. Theirs are ordered by owner.
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
    """Modules whose outputs are the same in both layouts, by their released names: theirs to ours.

    Input projections are left out, because the order of their channels differs.
    """
    return {
        entry.theirs.rpartition(".")[0]: entry.ours.rpartition(".")[0]
        for entry in layout(config)
        if not entry.ours.endswith(("project_in.weight", "inverse_frequency"))
    }
