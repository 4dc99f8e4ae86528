"""Savanna, the training program of Evo 2: filters are stored in the form that they train in.

A folder DIR/global_stepN with one mp_rank_XX_model_states.pt per model-parallel rank, or one flat
file. Block i is `sequential.{i+2}`; the final norm follows the last block after one or two modules
without parameters.

G filter groups, C = 3D channels, D channels, K taps, S modes.
"""

import io
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from stripedhyena2.checkpoint.contents import Checkpoint, CheckpointError
from stripedhyena2.checkpoint.files import refuse_full, writing
from stripedhyena2.checkpoint.layouts.named import Named, computed_frequencies
from stripedhyena2.checkpoint.tensors import Rule, Stored, Table, Tensors
from stripedhyena2.config import ModelConfig, released_yml
from stripedhyena2.outputs import atomic_path

_FINAL_NORM = re.compile(r"(sequential\.\d+|blocks\.\d+)\.norm\.(weight|scale)")
# Time axes, FP8 states, and norms that exist but are never applied.
_UNUSED = re.compile(
    r"(_extra_state|\.filter\.t|\.(post_attention_layernorm|outer_mlp_layernorm)\.\w+)$"
)
_WEIGHTS = "mp_rank_00_model_states.pt"
_RECORD = re.compile(r"sequential\.(\d+)\.mixer\.dense_projection\._extra_state")
# Tensors as long as the training context, of which the model uses the first taps.
_LONG = re.compile(r"\.mixer\.mixer\.filter\.(h|decay)$")
# Model-parallel ranks hold columns of these, copies of those, and rows of all other tensors.
_COLUMNS = re.compile(r"(mixer\.dense|mlp\.w3)\.weight$")
_COPIES = re.compile(r"(norm\.\w+|\.bias|\.filter\.t|\.inv_freq)$")


class Savanna(Named):
    """The names and forms of Savanna."""

    name = "savanna"

    def claims(self, names: Collection[str]) -> bool:
        """Whether there are names that start like those of Savanna's modules."""
        return any(name.startswith("sequential.") for name in names)

    def is_unused(self, name: str) -> bool:
        """Whether a tensor is not used by the model."""
        return _UNUSED.search(name) is not None

    def has_any_length(self, name: str) -> bool:
        """Whether a tensor may be longer than the model needs."""
        return _LONG.search(name) is not None

    def to_released(self, config: ModelConfig, names: Collection[str], origin: str) -> Table:
        """As in `Named`."""
        final_norms = [name for name in names if _FINAL_NORM.fullmatch(name)]
        if len(final_norms) != 1:
            raise CheckpointError(
                f"{origin}: expected one final norm, e.g. 'sequential.N.norm.weight', but found "
                f"{', '.join(final_norms) or 'none'}"
            )
        return {
            ours: computed_frequencies(config)
            if ours.endswith("inv_freq") and rule.sources[0] not in names
            else rule
            for ours, rule in _rules(config, final_norms[0])
        }

    def extra_state(self, blobs: Mapping[str, bytes]) -> dict[str, bytes]:
        """As in `Layout`: those of the input projections, the only layers that ran in FP8."""
        matches = {name: _RECORD.fullmatch(name) for name in blobs}
        return {
            f"blocks.{int(match[1]) - 2}.projections._extra_state": blobs[name]
            for name, match in matches.items()
            if match
        }

    def training_form(self, tensors: Tensors, config: ModelConfig) -> Tensors:
        """As in `Layout`: the two factors of the decay rates of Hyena-LI."""
        parts = {
            f"sequential.{index + 2}.mixer.mixer.filter.{part}": (
                f"blocks.{index}.mixer.operator.log_poles_DS.{part}"
            )
            for index, letter in enumerate(config.stripes)
            if letter == "L"
            for part in ("p", "gamma")
        }
        return tensors.renamed(parts.get)

    def from_released(self, config: ModelConfig) -> Table:
        """As in `Named`.

        The forward pass is the same. A released file does not have the factors that the filters
        were trained as, so gamma is 0 and decay is 1.
        """
        table: dict[str, Rule] = {}
        for ours, rule in _rules(config, f"sequential.{config.depth + 3}.norm.weight"):
            if ours.endswith("log_poles"):
                p, gamma = rule.sources
                table[p] = Rule((ours,), lambda poles_DS1: torch.log(-poles_DS1.squeeze(2)))
                table[gamma] = Rule((ours,), lambda poles: torch.zeros_like(poles.squeeze(2)))
            elif len(rule.sources) == 2:
                h, decay = rule.sources
                table[h] = Rule((ours,), lambda taps_G1K: taps_G1K.squeeze(1))
                table[decay] = Rule((ours,), lambda taps: torch.ones_like(taps.squeeze(1)))
            elif ours.endswith("short_filter_weight"):
                table[rule.sources[0]] = Rule((ours,), lambda taps_C1K: taps_C1K.squeeze(1))
            else:
                table[rule.sources[0]] = Rule((ours,))
        return table


def _rules(config: ModelConfig, final_norm: str) -> Iterator[tuple[str, Rule]]:
    """The rules for the tensors of the released layout, from Savanna's."""
    yield "embedding_layer.weight", Rule(("sequential.0.word_embeddings.weight",))
    yield "norm.scale", Rule((final_norm,))
    for index, letter in enumerate(config.stripes):
        ours, theirs = f"blocks.{index}.", f"sequential.{index + 2}."
        yield ours + "pre_norm.scale", Rule((theirs + "input_layernorm.weight",))
        yield ours + "post_norm.scale", Rule((theirs + "pre_mlp_layernorm.weight",))
        for number in (1, 2, 3):
            yield f"{ours}mlp.l{number}.weight", Rule((f"{theirs}mlp.w{number}.weight",))
        mixer, operator = theirs + "mixer.", theirs + "mixer.mixer."
        if letter == "A":
            ours += "inner_mha_cls."
            yield ours + "Wqkv.weight", Rule((mixer + "dense_projection.weight",))
            yield ours + "out_proj.weight", Rule((mixer + "dense.weight",))
            yield ours + "out_proj.bias", Rule((mixer + "dense.bias",))
            yield ours + "rotary_emb.inv_freq", Rule((mixer + "rotary_emb.inv_freq",))
            continue
        yield ours + "projections.weight", Rule((mixer + "dense_projection.weight",))
        yield ours + "out_filter_dense.weight", Rule((mixer + "dense.weight",))
        yield ours + "out_filter_dense.bias", Rule((mixer + "dense.bias",))
        featurizer = Rule((mixer + "hyena_proj_conv.short_conv_weight",), _with_middle_axis)
        yield ours + "filter.short_filter_weight", featurizer
        ours += "filter."
        if letter == "S":
            taps = Rule((operator + "short_conv.short_conv_weight",), _with_middle_axis)
            yield ours + "h", taps
            continue
        yield ours + "D", Rule((operator + "conv_bias",))
        theirs = operator + "filter."
        if letter == "M":
            yield ours + "h", Rule((theirs + "h", theirs + "decay"), _windowed_taps(config))
        else:
            yield ours + "log_poles", Rule((theirs + "p", theirs + "gamma"), _poles)
            yield ours + "residues", Rule((theirs + "R",))


def _with_middle_axis(taps: Tensor) -> Tensor:
    """Taps [G, K] or [G, 1, K] as [G, 1, K]."""
    return taps.reshape(taps.shape[0], 1, taps.shape[-1])


def _windowed_taps(config: ModelConfig) -> Callable[[Tensor, Tensor], Tensor]:
    def taps(h_GK: Tensor, decay_GK: Tensor) -> Tensor:
        return (h_GK * decay_GK)[:, : config.num_medium_taps].unsqueeze(1)

    return taps


def _poles(p_DS: Tensor, gamma_DS: Tensor) -> Tensor:
    return -(torch.exp(p_DS.float()) * torch.exp(gamma_DS.float())).unsqueeze(2)


def join_ranks(ranks: Sequence[Tensors], origin: str) -> Tensors:
    """Join the parts of tensors that model-parallel ranks hold.

    Raises:
        CheckpointError: The ranks do not hold tensors of the same names.
    """
    first = ranks[0]
    for number, rank in enumerate(ranks):
        if different := set(first) ^ set(rank):
            raise CheckpointError(
                f"{origin}: ranks 0 and {number} do not hold the same tensors, e.g. "
                f"{min(different)!r}; are all files of one step there?"
            )

    def joined(name: str) -> Stored:
        if len(ranks) == 1 or _COPIES.search(name):
            return Stored(first.like[name], lambda: first[name])
        dim = 1 if _COLUMNS.search(name) else 0
        return Stored(
            torch.cat([rank.like[name] for rank in ranks], dim),
            lambda: torch.cat([rank[name] for rank in ranks], dim),
        )

    return Tensors({name: joined(name) for name in first})


def write(checkpoint: Checkpoint, folder: Path) -> None:
    """Write the folder that Savanna and DeepSpeed load: one model-parallel rank at step 0.

    The shape is written beside the weights, as for a released file; Savanna does not read it.

    Raises:
        CheckpointError: The folder exists and is not empty, or cannot be written.
        ConfigError: The layout cannot express the model.
    """
    config = checkpoint.config
    description = released_yml(config)  # refuses operators that Savanna does not have
    refuse_full(folder)
    module: dict[str, object] = dict(Savanna().from_ours(Tensors.of(checkpoint.tensors), config))
    for name, blob in checkpoint.extra_state.items():
        index = re.fullmatch(r"blocks\.(\d+)\.projections\._extra_state", name)
        if index:
            record = f"sequential.{int(index[1]) + 2}.mixer.dense_projection._extra_state"
            module[record] = io.BytesIO(blob)
    with writing(folder), atomic_path(folder) as temporary:
        step = temporary / "global_step0"
        step.mkdir(parents=True)
        torch.save({"module": module}, step / _WEIGHTS)
        (step / _WEIGHTS).with_suffix(".yml").write_text(description, encoding="utf-8")
        (temporary / "latest").write_text(step.name, encoding="utf-8")
