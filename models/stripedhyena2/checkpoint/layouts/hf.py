"""Hugging Face folders of Evo 2: config.json in three dialects, and the files beside the weights.

All dialects have `"model_type": "evo2"`. The one that is written has the keys of the released yml,
and in addition the keys that other libraries look for.
"""

import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import JsonValue, TypeAdapter
from torch import Tensor

from stripedhyena2.checkpoint.contents import Checkpoint
from stripedhyena2.checkpoint.files import open_tensors, refuse_full, writing
from stripedhyena2.checkpoint.layouts import native
from stripedhyena2.checkpoint.layouts.bridge import interpolated, stripes_of
from stripedhyena2.checkpoint.layouts.vortex import HEAD, Vortex
from stripedhyena2.checkpoint.scales import trained_scales
from stripedhyena2.checkpoint.shards import write_shards
from stripedhyena2.checkpoint.tensors import Tensors
from stripedhyena2.config import ConfigError, ModelConfig, from_released, make_config, to_released
from stripedhyena2.outputs import atomic_path
from stripedhyena2.values import read_json

_LOG = logging.getLogger(__name__)
_VALUES: TypeAdapter[dict[str, Any]] = TypeAdapter(dict[str, JsonValue])

MODEL_TYPE = "evo2"
CONFIG, GENERATION = "config.json", "generation_config.json"
TOKENIZER, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"
CARD = "README.md"
EOS, PAD = 0, 1  # token ids
WRONG_EOS = 2  # in folders written by an early converter of another project

# Keys of the shape in the other two dialects; `hf_config` has those of the released yml.
OTHER_KEYS = (
    *("hybrid_override_pattern", "layers_block_type", "num_groups_hyena_short"),
    *("num_groups_hyena_medium", "num_groups_hyena", "hcl_state_size", "short_conv_length"),
    *("rotary_base", "seq_len_interpolation_factor", "remove_activation_post_first_layer"),
    *("layer_types", "hyena_filters", "hyena_order", "hyena_kernel_size"),
    *("rope_scaling", "rope_parameters"),
)
_HYENAS = "SML"  # the repeating order of Hyena blocks in every Evo 2


_BLOCKS = ("hybrid_override_pattern", "hcl_layer_idxs", "layer_types")  # one per dialect


def is_shape(values: Mapping[str, Any]) -> bool:
    """Whether a config.json describes the blocks of the model, in any of the dialects."""
    return any(values.get(key) is not None for key in _BLOCKS)


def read_hf_config(values: Mapping[str, Any], origin: str) -> ModelConfig:
    """The shape that a config.json describes, in any of the dialects.

    The dialects are the keys of the released yml (`hcl_layer_idxs`, ...); those of BioNeMo's export
    for vLLM (`hybrid_override_pattern`); and those of transformers' pull request 42210
    (`layer_types`), which does not have the filter lengths and the order of Hyena blocks: those of
    Evo 2 are assumed.

    Args:
        values: The contents of the file.
        origin: Its name, for messages.

    Raises:
        ConfigError: It describes another model, a key is missing, or a value is invalid.
    """
    kind = values.get("model_type", MODEL_TYPE)
    if kind != MODEL_TYPE:
        raise ConfigError(f"{origin}: model_type = {kind!r} is not an Evo 2 model ({MODEL_TYPE!r})")
    if values.get("eos_token_id") == WRONG_EOS:
        _LOG.warning(
            f"{origin}: eos_token_id = {WRONG_EOS} is the mistake of an early converter; "
            f"Evo 2 ends documents with token {EOS}, which is used instead"
        )
    if not is_shape(values):
        raise ConfigError(
            f"{origin}: does not describe its blocks: has none of {', '.join(_BLOCKS)}"
        )
    try:
        if values.get("hybrid_override_pattern") is not None:
            shape = _from_pattern(values, origin)
        elif values.get("hcl_layer_idxs") is not None:
            shape = from_released(values, origin)
        else:
            shape = _from_layer_types(values, origin)
    except KeyError as missing:
        raise ConfigError(f"{origin}: the key {missing} is missing") from None
    except (TypeError, AttributeError) as error:
        raise ConfigError(f"{origin}: a value is of another type than expected ({error})") from None
    return make_config(shape, origin)


def _from_pattern(values: Mapping[str, Any], origin: str) -> dict[str, Any]:
    """The dialect of BioNeMo's export for vLLM."""
    _check_fixed(values, origin, remove_activation_post_first_layer=True)
    theta = values["rotary_base"] if "rotary_base" in values else values["rope_theta"]
    return {
        **_widths(values, origin),
        **interpolated(
            values["max_position_embeddings"],
            values.get("seq_len_interpolation_factor") or 1,
            origin,
        ),
        "stripes": stripes_of(values["hybrid_override_pattern"], origin),
        "num_short_filter_groups": values["num_groups_hyena_short"],
        "num_medium_filter_groups": values["num_groups_hyena_medium"],
        "rotary_base": theta,
        "num_short_taps": values.get("hcs_filter_length", 7),
        "num_medium_taps": values.get("hcm_filter_length", 128),
        "num_featurizer_taps": values.get("short_conv_length", 3),
        "num_modes": values.get("hcl_state_size", 16),
    }


def _from_layer_types(values: Mapping[str, Any], origin: str) -> dict[str, Any]:
    """The dialect of transformers' pull request 42210."""
    stripes, num_hyenas = "", 0
    for index, kind in enumerate(values["layer_types"]):
        if kind not in ("attention", "full_attention", "hyena"):
            raise ConfigError(f"{origin}: layer_types[{index}] = {kind!r}: attention or hyena")
        is_hyena = kind == "hyena"
        stripes += _HYENAS[num_hyenas % len(_HYENAS)] if is_hyena else "A"
        num_hyenas += is_hyena
    rope = values.get("rope_parameters") or values.get("rope_scaling") or {}
    factor = rope.get("factor", 1)
    if factor == 1 and values["max_position_embeddings"] > 8192:
        _LOG.warning(
            f"{origin}: max_position_embeddings = {values['max_position_embeddings']:,} without a "
            "factor of interpolation; Evo 2 models of more than 8,192 positions divide them by "
            "context / 8,192, and this may have been lost in a conversion"
        )
    return {
        **_widths(values, origin),
        **interpolated(values["max_position_embeddings"], factor, origin),
        "stripes": stripes,
        "num_short_filter_groups": values["hyena_filters"],
        "num_medium_filter_groups": values["hyena_filters"],
        "rotary_base": values.get("rope_theta") or rope.get("rope_theta") or 10_000,
    }


def _widths(values: Mapping[str, Any], origin: str) -> dict[str, Any]:
    """The keys that both other dialects name as transformers does."""
    _check_fixed(values, origin, tie_word_embeddings=True)
    return {
        "width": values["hidden_size"],
        "num_heads": values["num_attention_heads"],
        "mlp_width": values["intermediate_size"],
        "vocabulary": values.get("vocab_size", 512),
        "norm_eps": values.get("rms_norm_eps", 1e-6),
    }


def _check_fixed(values: Mapping[str, Any], origin: str, **fixed: Any) -> None:
    for key, only in fixed.items():
        if values.get(key, only) != only:
            raise ConfigError(f"{origin}: {key} = {values[key]!r} is not supported, only {only!r}")


def is_hf(folder: Path) -> bool:
    """Whether a folder has a config.json and safetensors weights."""
    return (folder / CONFIG).is_file() and any(folder.glob("*.safetensors"))


def head_tensors(folder: Path) -> dict[str, Tensor]:
    """The tensors of a classifier head on top of the model, if a folder has any."""
    found: dict[str, Tensor] = {}
    for file in sorted(folder.glob("model*.safetensors")):
        tensors = open_tensors(file).tensors
        found |= tensors.only(name for name in tensors if name.startswith(HEAD))
    return found


def hf_config(config: ModelConfig, dtype: torch.dtype) -> dict[str, Any]:
    """The contents of config.json for a model of this shape and stored dtype.

    Raises:
        ConfigError: The released layout cannot express the model.
    """
    return {
        "model_type": MODEL_TYPE,
        "architectures": ["Evo2ForCausalLM"],
        **to_released(config),
        "num_hidden_layers": config.depth,
        "intermediate_size": config.mlp_width,
        "max_position_embeddings": config.context,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rotary_base,
        "tie_word_embeddings": True,
        "torch_dtype": str(dtype).removeprefix("torch."),
        "bos_token_id": None,
        "eos_token_id": EOS,
        "pad_token_id": PAD,
    }


def write_beside(folder: Path, config: ModelConfig, provenance: Mapping[str, Any]) -> None:
    """Write the other files of a folder: tokenizer, generation config and card, unless they exist.

    Args:
        folder: An existing folder.
        config: Shape of the model.
        provenance: The provenance of a `Checkpoint`.
    """
    files = {
        GENERATION: _json({"eos_token_id": EOS, "pad_token_id": PAD}),
        TOKENIZER: _json(tokenizer(config.vocabulary)),
        TOKENIZER_CONFIG: _json(tokenizer_config(config.context)),
        CARD: _card(config, provenance),
    }
    for name, text in files.items():
        if not (folder / name).exists():
            (folder / name).write_text(text, encoding="utf-8")


def _json(values: Mapping[str, Any]) -> str:
    return json.dumps(values, indent=2, ensure_ascii=False) + "\n"


def byte_letters() -> list[str]:
    """The character that stands for each byte in a byte-level tokenizer.json.

    A printable byte of Latin-1 is its own character; the others are numbered from U+0100 on.
    Source: the byte-level encoding of GPT-2, which `tokenizers` calls ByteLevel.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def tokenizer(vocabulary: int = 512) -> dict[str, Any]:
    """The contents of tokenizer.json: every byte is the token of that id, nothing is added.

    Ids from 256 on are not bytes: no text is encoded to them, but a model can sample them.
    """
    letters = byte_letters()[:vocabulary]
    names = [*letters, *(f"<{index}>" for index in range(len(letters), vocabulary))]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": index, "content": names[index], **special, "special": True}
            for index in (EOS, PAD)
        ],
        "normalizer": None,
        "pre_tokenizer": {**byte_level, "trim_offsets": False},
        "post_processor": None,
        "decoder": {**byte_level, "trim_offsets": False},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {name: index for index, name in enumerate(names)},
            "merges": [],
        },
    }


def tokenizer_config(context: int | None = None) -> dict[str, Any]:
    """The contents of tokenizer_config.json.

    Padding is on the left, as generation needs it. The names of the two special tokens are letters
    that text may contain, where they are encoded as their own bytes (`split_special_tokens`).
    """
    letters = byte_letters()
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": letters[EOS],
        "pad_token": letters[PAD],
        "padding_side": "left",
        "split_special_tokens": True,
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        **({} if context is None else {"model_max_length": context}),
    }


_ORIGINS = ("license", "source", "repository", "commit", "sha256")  # keys of a provenance


def _origins(provenance: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """License, source, commit and hash in a provenance, from the newest to the oldest."""
    origin: Any = provenance
    while isinstance(origin, Mapping):
        yield from ((key, origin[key]) for key in _ORIGINS if key in origin)
        origin = origin.get("before")


def _card(config: ModelConfig, provenance: Mapping[str, Any]) -> str:
    """A model card."""
    facts = list(_origins(provenance))
    license_id = next((str(value).lower() for key, value in facts if key == "license"), None)
    head = ["---", "library_name: transformers", "pipeline_tag: text-generation"]
    head += [f"license: {license_id}"] if license_id else []
    rows = [
        ("blocks", f"{config.depth}: `{config.stripes}`"),
        ("width", f"{config.width:,}"),
        ("context", f"{config.context:,} bases"),
        *((key, f"`{value}`") for key, value in facts),
    ]
    table = "\n".join(f"| {key} | {value} |" for key, value in rows)
    return f"""{chr(10).join(head)}
tags: [evo2, stripedhyena2, genomics, dna]
---

# An Evo 2 model

StripedHyena 2 weights in the Hugging Face layout. A token is a byte: A is 65, C 67, G 71, T 84.

| | |
|---|---|
{table}

```python
import evo2cli.hf  # pip install 'evo2cli[hf]': registers the model for the Auto classes
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("this folder")
tokenizer = AutoTokenizer.from_pretrained("this folder")
ids = tokenizer("ATGAAACGC", return_tensors="pt")
print(tokenizer.decode(model.generate(**ids, max_new_tokens=60)[0]))
```
"""


def read_config_file(file: Path) -> ModelConfig:
    """The shape in a config.json.

    Raises:
        ConfigError: As `read_hf_config`, or the file cannot be read.
    """
    values = read_json(file, _VALUES, ConfigError)
    return read_hf_config(values, str(file))


def write(checkpoint: Checkpoint, folder: Path) -> None:
    """Write a folder for Hugging Face libraries: the tensors of vortex, sharded if they are large.

    FP8 scales are stored as tensors beside the projections, and their records as bytes in a
    separate file.

    Raises:
        CheckpointError: The folder exists and is not empty, or cannot be written.
        ConfigError: The layout cannot express the model.
    """
    config, ours = checkpoint.config, Tensors.of(checkpoint.tensors)
    dtype = max((like.numel(), like.dtype) for like in ours.like.values())[1]
    described = hf_config(config, dtype)
    refuse_full(folder)
    with writing(folder), atomic_path(folder) as temporary:
        temporary.mkdir()
        write_weights(checkpoint, temporary)
        (temporary / CONFIG).write_text(_json(described), encoding="utf-8")
        native.write_beside(checkpoint, temporary)
        write_beside(temporary, config, checkpoint.provenance)


def write_weights(checkpoint: Checkpoint, folder: Path) -> None:
    """Write the tensors of a checkpoint under the names of vortex, without `unembed.weight`."""
    config, ours = checkpoint.config, Tensors.of(checkpoint.tensors)
    released = Vortex().from_ours(ours, config)
    tied = released.only(name for name in released if name != "unembed.weight")
    scales = trained_scales(checkpoint.extra_state, config, str(folder))
    beside = {}
    for name, pair in scales.items():
        projection = f"{name.removesuffix('mixer.project_in.weight')}projections"
        beside[f"{projection}.input_scale"] = torch.tensor(pair.input)
        beside[f"{projection}.weight_scale"] = torch.tensor(pair.weight)
    write_shards(Tensors.joined([tied, Tensors.of(beside)]), folder)
