"""A shape that cannot be is refused in one line that names file, key and the way out."""

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from stripedhyena2 import ConfigError, ModelConfig, read_config
from stripedhyena2.checkpoint.published import recipes_folder
from stripedhyena2.config import change_config, make_config, to_released

SHAPE = {
    "stripes": "SMLA",
    "width": 32,
    "num_heads": 2,
    "mlp_width": 88,
    "num_short_filter_groups": 2,
    "num_medium_filter_groups": 4,
    "context": 64,
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"widht": 3}, r"shape\.toml: no key 'widht'.*did you mean 'width'"),
        ({"stripes": "SMLX"}, "stripes = 'SMLX'"),
        ({"stripes": ""}, "stripes = ''"),
        ({"width": 0}, "width = 0"),
        ({"num_heads": 5}, "num_heads = 5 does not divide width = 32"),
        ({"num_heads": 32}, "even number of channels"),
        ({"num_short_filter_groups": 3}, "num_short_filter_groups = 3 does not divide width = 32"),
        ({"num_medium_filter_groups": 3}, "num_medium_filter_groups = 3 does not divide"),
        ({"num_filter_groups": 4}, "num_filter_groups = 4 means both .* drop num_filter_groups"),
        ({"rotary_scale": float("nan")}, "rotary_scale = nan"),
        ({"context": "long"}, "context = 'long'"),
    ],
    ids=str,
)
def test_wrong_values_are_named(change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_config({**SHAPE, **change}, "shape.toml")


def test_a_missing_key_is_named() -> None:
    with pytest.raises(ConfigError, match="the key 'width' is missing"):
        make_config({key: value for key, value in SHAPE.items() if key != "width"}, "shape.toml")


def test_the_one_number_of_groups_of_earlier_versions_is_both() -> None:
    old = {key: value for key, value in SHAPE.items() if "groups" not in key}
    config = make_config({**old, "num_filter_groups": 4}, "shape.toml")
    assert (config.num_short_filter_groups, config.num_medium_filter_groups) == (4, 4)
    changed = change_config(make_config(SHAPE, "here"), {"num_filter_groups": 8}, "recipe.toml")
    assert (changed.num_short_filter_groups, changed.num_medium_filter_groups) == (8, 8)


@pytest.mark.parametrize("taps", [{"num_short_taps": 128}, {"num_medium_taps": 127}], ids=str)
def test_lengths_that_the_released_layout_cannot_tell_apart_are_refused(
    tmp_path: Path, taps: dict[str, int]
) -> None:
    config = make_config({**SHAPE, **taps}, "here")
    with pytest.raises(ConfigError, match="tells short filters from medium ones by their length"):
        to_released(config)
    values = to_released(make_config(SHAPE, "here"))
    released = {"num_short_taps": "hcs_filter_length", "num_medium_taps": "hcm_filter_length"}
    values |= {released[key]: value for key, value in taps.items()}
    (tmp_path / "config.yml").write_text(yaml.safe_dump(values))
    with pytest.raises(ConfigError, match=r"config\.yml: .* by their length"):
        read_config(tmp_path / "config.yml")


def test_released_keys_and_back(tmp_path: Path) -> None:
    config = replace(make_config(SHAPE, "here"), rotary_scale=128.0, rotary_base=1e6)
    (tmp_path / "config.yml").write_text(yaml.safe_dump(to_released(config)))
    assert read_config(tmp_path / "config.yml") == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hyena_flip_x1x2": True}, "hyena_flip_x1x2 = True is not supported"),
        ({"proj_groups": 4}, "proj_groups = 4 is not supported"),
        ({"hcl_layer_idxs": [0]}, "do not cover"),
        ({"hcl_layer_idxs": [0, 2]}, "do not cover blocks 0 to 3 once"),
        ({"hidden_size": None}, "hidden_size' is missing"),
    ],
    ids=str,
)
def test_a_yml_of_another_model_is_refused(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    values = {**to_released(make_config(SHAPE, "here")), **change}
    values = {key: value for key, value in values.items() if value is not None}
    (tmp_path / "config.yml").write_text(yaml.safe_dump(values))
    with pytest.raises(ConfigError, match=message):
        read_config(tmp_path / "config.yml")


def test_scaling_counts_only_when_interpolated(tmp_path: Path) -> None:
    values = {**to_released(make_config(SHAPE, "here")), "rotary_emb_scaling_factor": 128}
    (tmp_path / "config.yml").write_text(yaml.safe_dump(values))
    assert read_config(tmp_path / "config.yml").rotary_scale == 1


@pytest.mark.parametrize("text", ["width = ", "- a\n- b", "\x00"], ids=repr)
@pytest.mark.parametrize("suffix", [".toml", ".yml"])
def test_a_file_that_is_no_config_is_named(tmp_path: Path, text: str, suffix: str) -> None:
    file = tmp_path / f"broken{suffix}"
    file.write_text(text)
    with pytest.raises(ConfigError, match="broken"):
        read_config(file)


def test_every_shipped_shape_can_be() -> None:
    files = sorted(recipes_folder().glob("models/*.toml"))
    assert len(files) >= 7
    assert all(isinstance(read_config(file), ModelConfig) for file in files)
