"""The shape of a model: a frozen dataclass, read from TOML or from the released yml."""

import difflib
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    create_model,
)
from pydantic.dataclasses import dataclass

from stripedhyena2.errors import InputError
from stripedhyena2.mixer import MIXERS, Mixer
from stripedhyena2.values import Number, fault, read_values, shown

# Far above every real model, and low enough that the size of every tensor fits into 64 bits.
MAX_BLOCKS = 1024
Width = Annotated[int, Field(ge=1, le=2**17), Number]
Count = Annotated[int, Field(ge=1, le=2**24), Number]
Positions = Annotated[int, Field(ge=1, le=2**40), Number]
Vocabulary = Annotated[int, Field(ge=256, le=2**24), Number]  # every byte is a token
Positive = Annotated[float, Field(ge=1e-30, le=1e30, allow_inf_nan=False), Number]


def _check_letters(stripes: str) -> str:
    unknown = [letter for letter in stripes if letter not in MIXERS]
    if unknown or not stripes:
        known = ", ".join(f"{letter} ({mixer.title})" for letter, mixer in MIXERS.items())
        fault = f"no operator has the letter {unknown[0]!r}" if unknown else "needs a letter"
        raise ValueError(f"{fault}; letters are {known}")
    return stripes


class ConfigError(InputError):
    """An invalid model shape: the message names the file, key, value and the way out."""


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class ModelConfig:
    """The shape of a StripedHyena 2 model.

    Attributes:
        stripes: One letter per block: S Hyena-SE, M Hyena-MR, L Hyena-LI, A attention.
        width: Channels of the residual stream, D.
        num_heads: Attention heads; the width of a head must be an even whole number.
        mlp_width: Inner channels of the gated MLP.
        num_short_filter_groups: Filters of a Hyena-SE block; width / groups channels share each.
        num_medium_filter_groups: Filters of a Hyena-MR block, likewise.
        context: Context length: positions of the windows that the model was trained on.
        rotary_base: Base of the rotary frequencies, unless a checkpoint stores frequencies.
        rotary_scale: Positions are divided by it (linear position interpolation).
        num_short_taps: Taps of a Hyena-SE filter.
        num_medium_taps: Taps of a Hyena-MR filter.
        num_featurizer_taps: Taps of the featurizer, the filter before the gates.
        num_modes: Number of real exponentials per channel of Hyena-LI.
        vocabulary: Number of token ids; the first 256 are bytes.
        norm_eps: Added to the root mean square, outside the square root.
        base_context: Context length before the context was extended; None if it never was. The
            filters of MR keep the decay window of this length.
    """

    stripes: Annotated[str, Field(max_length=MAX_BLOCKS), AfterValidator(_check_letters)]
    width: Width
    num_heads: Count
    mlp_width: Count
    num_short_filter_groups: Count
    num_medium_filter_groups: Count
    context: Positions
    rotary_base: Positive = 10_000.0
    rotary_scale: Positive = 1.0
    num_short_taps: Count = 7
    num_medium_taps: Count = 128
    num_featurizer_taps: Count = 3
    num_modes: Count = 16
    vocabulary: Vocabulary = 512
    norm_eps: Positive = 1e-6
    base_context: Positions | None = None

    def __post_init__(self) -> None:
        if self.width % self.num_heads or self.width // self.num_heads % 2:
            raise ValueError(
                f"num_heads = {self.num_heads} does not divide width = {self.width} into heads of "
                "an even number of channels"
            )
        for key in ("num_short_filter_groups", "num_medium_filter_groups"):
            if self.width % getattr(self, key):
                raise ValueError(
                    f"{key} = {getattr(self, key)} does not divide width = {self.width}"
                )

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return len(self.stripes)

    @property
    def mixers(self) -> list[type[Mixer]]:
        """The operator of each block."""
        return [MIXERS[letter] for letter in self.stripes]

    @property
    def original_context(self) -> int:
        """Context length of the first training, whose decay window the filters keep."""
        return self.base_context or self.context


_ADAPTER = TypeAdapter(ModelConfig)
_KEYS = [field.name for field in fields(ModelConfig)]


_BOTH_GROUPS = "num_filter_groups"
_GROUPS = ("num_short_filter_groups", "num_medium_filter_groups")


def current_keys(values: Mapping[str, Any], origin: str) -> dict[str, Any]:
    """The values, with keys of earlier versions replaced by the current ones.

    Until 2026 a single key `num_filter_groups` stood for both numbers of groups; checkpoint folders
    and recipes that have it stay readable.

    Raises:
        ConfigError: The old key and a new one are given together.
    """
    renamed = dict(values)
    if _BOTH_GROUPS in renamed:
        both = renamed.pop(_BOTH_GROUPS)
        for key in _GROUPS:
            if key in renamed:
                raise ConfigError(
                    f"{origin}: {_BOTH_GROUPS} = {shown(both)} means both "
                    f"{' and '.join(_GROUPS)}, but {key} = {shown(renamed[key])} is given too; "
                    f"drop {_BOTH_GROUPS}"
                )
        renamed |= dict.fromkeys(_GROUPS, both)
    return renamed


def make_config(values: Mapping[str, Any], origin: str) -> ModelConfig:
    """Validate `values` and build a config from them.

    Args:
        values: Keys and values of `ModelConfig`, also of earlier versions.
        origin: Where they come from, for the error message.

    Raises:
        ConfigError: A key is unknown or missing, or a value is out of range.
    """
    for key in values:
        if key not in (*_KEYS, _BOTH_GROUPS):
            near = difflib.get_close_matches(key, _KEYS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(_KEYS)}"
            raise ConfigError(f"{origin}: no key {shown(key)} in a model shape; {hint}")
    values = current_keys(values, origin)
    try:
        return _ADAPTER.validate_python(values)
    except ValidationError as error:
        raise ConfigError(f"{origin}: {fault(error)}") from None


def change_config(config: ModelConfig, changes: Mapping[str, Any], origin: str) -> ModelConfig:
    """The shape with some keys changed; arguments and errors are those of `make_config`."""
    return make_config({**asdict(config), **current_keys(changes, origin)}, origin)


def read_config(path: str | Path) -> ModelConfig:
    """Read a shape from our TOML, or from a released yml.

    Raises:
        ConfigError: The file is neither, or the shape is invalid.
    """
    path = Path(path)
    values = read_values(path, ConfigError)
    if path.suffix in (".yml", ".yaml"):
        values = from_released(values, str(path))
    return make_config(values, str(path))


# Keys with the same value in all released models; other values are not implemented.
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


class _Released(BaseModel):
    """The keys of a released yml that are used. `_released_schema` adds those of the blocks."""

    model_config = ConfigDict(protected_namespaces=())

    num_layers: Annotated[int, Field(ge=1, le=MAX_BLOCKS), Number]
    hidden_size: Width
    num_attention_heads: Count
    inner_mlp_size: Count | None = None
    inner_size_multiple_of: Count = 1
    model_parallel_size: Count = 1
    hcs_filter_groups: Count
    hcm_filter_groups: Count
    hcs_filter_length: Count
    hcm_filter_length: Count
    short_filter_length: Count
    state_size: Count
    vocab_size: Vocabulary
    eps: Positive
    max_seqlen: Positions
    rotary_emb_base: Positive = 10_000
    rotary_emb_scaling_factor: Positive = 1
    use_interpolated_rotary_pos_emb: bool = False
    base_context: Positions | None = None

    @property
    def rotary_scale(self) -> float:
        """The scaling factor, which applies only if positions are interpolated."""
        return self.rotary_emb_scaling_factor if self.use_interpolated_rotary_pos_emb else 1

    @property
    def mlp_width(self) -> int:
        """The given width, else 8/3 of the model width, rounded up to the multiple in the yml."""
        multiple = self.inner_size_multiple_of * self.model_parallel_size
        return self.inner_mlp_size or -(-int(2 * self.hidden_size * 4 / 3) // multiple) * multiple

    @property
    def original_context(self) -> int | None:
        """The `base_context` of our own yml, else the context before interpolation, as in Evo 2."""
        if "base_context" in self.model_fields_set or not self.use_interpolated_rotary_pos_emb:
            return self.base_context
        base, rest = divmod(self.max_seqlen, self.rotary_scale)
        return None if rest else int(base)


def from_released(values: Mapping[str, Any], origin: str) -> dict[str, Any]:
    """Translate the keys of a released yml; `make_config` validates the values again."""
    for key, fixed in _RELEASED_FIXED.items():
        if values.get(key, fixed) != fixed:
            raise ConfigError(
                f"{origin}: {key} = {shown(values[key])} is not supported, only {fixed!r}"
            )
    try:
        released = _released_schema().model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{origin}: {fault(error)}") from None
    _check_released_taps(released.hcs_filter_length, released.hcm_filter_length, origin)
    return {
        "stripes": _stripes(released, origin),
        "width": released.hidden_size,
        "num_heads": released.num_attention_heads,
        "mlp_width": released.mlp_width,
        "num_short_filter_groups": released.hcs_filter_groups,
        "num_medium_filter_groups": released.hcm_filter_groups,
        "context": released.max_seqlen,
        "rotary_base": released.rotary_emb_base,
        "rotary_scale": released.rotary_scale,
        "num_short_taps": released.hcs_filter_length,
        "num_medium_taps": released.hcm_filter_length,
        "num_featurizer_taps": released.short_filter_length,
        "num_modes": released.state_size,
        "vocabulary": released.vocab_size,
        "norm_eps": released.eps,
        "base_context": released.original_context,
    }


RELEASED_MEDIUM_TAPS = 128


def _check_released_taps(num_short_taps: int, num_medium_taps: int, origin: str) -> None:
    """Refuse filter lengths that the released layout cannot express.

    Its reader, Vortex, treats any filter of 128 taps or more as a medium one (stored newest first,
    with a skip) and any shorter filter as a short one (stored newest last, without a skip).
    """
    if not num_short_taps < RELEASED_MEDIUM_TAPS <= num_medium_taps:
        raise ConfigError(
            f"{origin}: the released layout tells short filters from medium ones by their length: "
            f"needs hcs_filter_length = {num_short_taps} < {RELEASED_MEDIUM_TAPS} <= "
            f"hcm_filter_length = {num_medium_taps}"
        )


def _released_mixers() -> list[type[Mixer]]:
    """The operators that the released layout supports, in the order of its keys."""
    known = [mixer for mixer in MIXERS.values() if mixer.released_indices]
    return sorted(known, key=lambda mixer: str(mixer.released_indices))


def _released_schema() -> type[_Released]:
    """The schema of a released yml, with a list of block indices for each operator."""
    indices = Annotated[list[Annotated[int, Field(ge=0), Number]], Field(max_length=MAX_BLOCKS)]
    keys: Any = {str(mixer.released_indices): (indices, ...) for mixer in _released_mixers()}
    return create_model("Released", __base__=_Released, **keys)


def _stripes(values: _Released, origin: str) -> str:
    """The stripe string from the lists of block indices."""
    letters = sorted(
        (index, mixer.letter)
        for mixer in _released_mixers()
        for index in getattr(values, str(mixer.released_indices))
    )
    if [index for index, _ in letters] != list(range(values.num_layers)):
        raise ConfigError(
            f"{origin}: the *_layer_idxs do not cover blocks 0 to {values.num_layers - 1} once"
        )
    return "".join(letter for _, letter in letters)


def released_yml(config: ModelConfig) -> str:
    """The yml file with the keys of `to_released`, as written beside the weights.

    Raises:
        ConfigError: As `to_released`.
    """
    return yaml.safe_dump(to_released(config), sort_keys=False)


def to_released(config: ModelConfig) -> dict[str, Any]:
    """The keys of a released yml that describe `config`; `read_config` reads them back.

    Raises:
        ConfigError: The released layout cannot express the model.
    """
    for mixer in config.mixers:
        if mixer.released_indices is None:
            raise ConfigError(
                f"stripes = {config.stripes!r}: the released layout does not support {mixer.title} "
                f"({mixer.letter}); use the native layout"
            )
    _check_released_taps(config.num_short_taps, config.num_medium_taps, "this shape")
    return {
        "vocab_size": config.vocabulary,
        "hidden_size": config.width,
        "num_filters": config.width,
        "num_layers": config.depth,
        **{
            str(mixer.released_indices): [
                i for i, other in enumerate(config.mixers) if other is mixer
            ]
            for mixer in _released_mixers()
        },
        "hcm_filter_length": config.num_medium_taps,
        "hcs_filter_length": config.num_short_taps,
        "hcl_filter_groups": config.width,
        "hcm_filter_groups": config.num_medium_filter_groups,
        "hcs_filter_groups": config.num_short_filter_groups,
        "short_filter_length": config.num_featurizer_taps,
        "num_attention_heads": config.num_heads,
        "inner_mlp_size": config.mlp_width,
        "state_size": config.num_modes,
        "eps": config.norm_eps,
        "rotary_emb_base": config.rotary_base,
        "rotary_emb_scaling_factor": config.rotary_scale,
        "use_interpolated_rotary_pos_emb": config.rotary_scale != 1,
        "max_seqlen": config.context,
        "base_context": config.base_context,  # our own key; other readers ignore it
        **_RELEASED_FIXED,
        "column_split": True,
        "tokenizer_type": "CharLevelTokenizer",
    }
