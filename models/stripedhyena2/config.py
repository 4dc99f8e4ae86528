"""The shape of a model: one frozen dataclass, read from TOML and from the released yml."""

import difflib
import tomllib
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from stripedhyena2.errors import InputError

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]

ATTENTION, SHORT, MEDIUM, LONG = "A", "S", "M", "L"


class ConfigError(InputError):
    """A model shape that cannot be: the message names file, key, value and the way out."""


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class ModelConfig:
    """The shape of a StripedHyena 2 model.

    Attributes:
        stripes: One letter a block: S Hyena-SE, M Hyena-MR, L Hyena-LI, A attention.
        width: Channels of the residual stream, D.
        num_heads: Attention heads; they divide the width into even head widths.
        mlp_width: Inner channels of the gated MLP.
        num_filter_groups: Filters of a Hyena-SE or -MR block; each serves width / groups channels.
        context: Positions the model was trained on in one window.
        rotary_base: Base of the rotary frequencies, where a checkpoint does not bring them.
        rotary_scale: Positions are divided by it (linear position interpolation).
        num_short_taps: Taps of a Hyena-SE filter.
        num_medium_taps: Taps of a Hyena-MR filter.
        num_featurizer_taps: Taps of the filter before the gates.
        num_modes: Real exponentials a channel of Hyena-LI.
        vocabulary: Token ids; bytes take the first 256.
        norm_eps: Added to the root mean square, outside the root.
        base_context: Positions it was trained on before its context was extended; None if it never
            was. The filters of MR keep the decay window of this length.
    """

    stripes: Annotated[str, Field(pattern="^[SMLA]+$")]
    width: Count
    num_heads: Count
    mlp_width: Count
    num_filter_groups: Count
    context: Count
    rotary_base: Positive = 10_000.0
    rotary_scale: Positive = 1.0
    num_short_taps: Count = 7
    num_medium_taps: Count = 128
    num_featurizer_taps: Count = 3
    num_modes: Count = 16
    vocabulary: Count = 512
    norm_eps: Positive = 1e-6
    base_context: Count | None = None

    def __post_init__(self) -> None:
        if self.width % self.num_heads or self.width // self.num_heads % 2:
            raise ValueError(
                f"num_heads = {self.num_heads} does not divide width = {self.width} into heads of "
                "an even number of channels"
            )
        if self.width % self.num_filter_groups:
            raise ValueError(
                f"num_filter_groups = {self.num_filter_groups} does not divide width = {self.width}"
            )

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return len(self.stripes)

    @property
    def original_context(self) -> int:
        """Positions that the filters were first trained on."""
        return self.base_context or self.context


_ADAPTER = TypeAdapter(ModelConfig)
_KEYS = [field.name for field in fields(ModelConfig)]


def make_config(values: Mapping[str, Any], origin: str) -> ModelConfig:
    """Check `values` and make the config of them.

    Args:
        values: Keys and values of `ModelConfig`.
        origin: Where they come from, for the error message.

    Raises:
        ConfigError: A key is unknown or missing, or a value is out of range.
    """
    for key in values:
        if key not in _KEYS:
            near = difflib.get_close_matches(key, _KEYS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(_KEYS)}"
            raise ConfigError(f"{origin}: no key {key!r} in a model shape; {hint}")
    try:
        return _ADAPTER.validate_python(dict(values))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "model"
        given = f" = {values[key]!r}" if key in values else ""
        raise ConfigError(f"{origin}: {key}{given}: {first['msg']}") from None


def read_config(path: Path) -> ModelConfig:
    """Read a shape from our TOML, or from a released yml.

    Raises:
        ConfigError: The file cannot be read as one of the two, or describes no such model.
    """
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix in (".yml", ".yaml"):
            values = yaml.safe_load(text)
            if not isinstance(values, dict):
                raise ConfigError(f"{path}: not a model description (a mapping of keys to values)")
            return make_config(_from_released(values, str(path)), str(path))
        return make_config(tomllib.loads(text), str(path))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: not a TOML or yml model description ({error})") from None


# What every released model has; a yml that differs describes a model this code does not compute.
_RELEASED_FIXED: dict[str, Any] = {
    "tie_embeddings": True,
    "final_norm": True,
    "interleave": True,
    "column_split_hyena": False,
    "hyena_flip_x1x2": False,
    "proj_groups": 1,
    "qkv_proj_bias": False,
    "short_filter_bias": False,
    "mha_out_proj_bias": True,
    "hyena_out_proj_bias": True,
    "mlp_activation": "gelu",
    "evo2_style_activations": True,
}


def _from_released(values: Mapping[str, Any], origin: str) -> dict[str, Any]:
    """Translate the keys of a released yml; `make_config` checks the values."""
    for key, fixed in _RELEASED_FIXED.items():
        if values.get(key, fixed) != fixed:
            raise ConfigError(f"{origin}: {key} = {values[key]!r} is not supported, only {fixed!r}")
    try:
        width, groups = values["hidden_size"], values["hcm_filter_groups"]
        if values["hcs_filter_groups"] != groups:
            raise ConfigError(f"{origin}: hcs_filter_groups and hcm_filter_groups must be equal")
        if values["hcs_filter_length"] >= 128 or values["hcm_filter_length"] < 128:
            raise ConfigError(f"{origin}: needs hcs_filter_length < 128 <= hcm_filter_length")
        interpolated = values.get("use_interpolated_rotary_pos_emb", False)
        return {
            "stripes": _stripes(values, origin),
            "width": width,
            "num_heads": values["num_attention_heads"],
            "mlp_width": values.get("inner_mlp_size") or _default_mlp_width(values),
            "num_filter_groups": groups,
            "context": values["max_seqlen"],
            "rotary_base": values.get("rotary_emb_base", 10_000),
            "rotary_scale": values.get("rotary_emb_scaling_factor", 1) if interpolated else 1,
            "num_short_taps": values["hcs_filter_length"],
            "num_medium_taps": values["hcm_filter_length"],
            "num_featurizer_taps": values["short_filter_length"],
            "num_modes": values["state_size"],
            "vocabulary": values["vocab_size"],
            "norm_eps": values["eps"],
            "base_context": _base_context(values),
        }
    except KeyError as missing:
        raise ConfigError(f"{origin}: the key {missing} is missing") from None


def _base_context(values: Mapping[str, Any]) -> int | None:
    """As our own yml says; else what interpolation stretched to the context, as in Evo 2."""
    if "base_context" in values or not values.get("use_interpolated_rotary_pos_emb", False):
        return values.get("base_context")
    base, rest = divmod(values["max_seqlen"], values.get("rotary_emb_scaling_factor", 1))
    return None if rest else int(base)


def _stripes(values: Mapping[str, Any], origin: str) -> str:
    """The stripe string from the four lists of block indices."""
    lists = {
        ATTENTION: "attn_layer_idxs",
        LONG: "hcl_layer_idxs",
        MEDIUM: "hcm_layer_idxs",
        SHORT: "hcs_layer_idxs",
    }
    kinds = {index: letter for letter, key in lists.items() for index in values[key]}
    depth = values["num_layers"]
    if sorted(kinds) != list(range(depth)):
        raise ConfigError(f"{origin}: the *_layer_idxs do not cover blocks 0 to {depth - 1}")
    return "".join(kinds[index] for index in range(depth))


def _default_mlp_width(values: Mapping[str, int]) -> int:
    """8/3 of the width, rounded up to the multiple the yml names."""
    multiple = values["inner_size_multiple_of"] * values.get("model_parallel_size", 1)
    return -(-int(2 * values["hidden_size"] * 4 / 3) // multiple) * multiple


def to_released(config: ModelConfig) -> dict[str, Any]:
    """The yml keys of a released model that describe `config`; `read_config` reads them back."""

    def indices(letter: str) -> list[int]:
        return [index for index, kind in enumerate(config.stripes) if kind == letter]

    return {
        "vocab_size": config.vocabulary,
        "hidden_size": config.width,
        "num_filters": config.width,
        "num_layers": config.depth,
        "attn_layer_idxs": indices(ATTENTION),
        "hcl_layer_idxs": indices(LONG),
        "hcm_layer_idxs": indices(MEDIUM),
        "hcs_layer_idxs": indices(SHORT),
        "hcm_filter_length": config.num_medium_taps,
        "hcs_filter_length": config.num_short_taps,
        "hcl_filter_groups": config.width,
        "hcm_filter_groups": config.num_filter_groups,
        "hcs_filter_groups": config.num_filter_groups,
        "short_filter_length": config.num_featurizer_taps,
        "num_attention_heads": config.num_heads,
        "inner_mlp_size": config.mlp_width,
        "state_size": config.num_modes,
        "eps": config.norm_eps,
        "rotary_emb_base": config.rotary_base,
        "rotary_emb_scaling_factor": config.rotary_scale,
        "use_interpolated_rotary_pos_emb": config.rotary_scale != 1,
        "max_seqlen": config.context,
        "base_context": config.base_context,  # ours: readers of these files pass over it
        **_RELEASED_FIXED,
        "column_split": True,
        "tokenizer_type": "CharLevelTokenizer",
    }
