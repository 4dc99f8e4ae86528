"""Whatever a file of a checkpoint holds, it is read as it is meant, or refused in one line."""

import io
import json
import os
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import JsonValue, TypeAdapter
from torch import Tensor

from stripedhyena2 import CheckpointError, ConfigError, InputError, ModelConfig, load, read_config
from stripedhyena2 import values as value_files
from stripedhyena2.checkpoint import read_checkpoint, shards
from stripedhyena2.checkpoint.contents import Checkpoint, expected_shapes
from stripedhyena2.checkpoint.layouts import native, vortex
from stripedhyena2.checkpoint.scales import trained_scales
from stripedhyena2.config import MAX_BLOCKS, make_config, to_released
from stripedhyena2.values import read_json, read_values, shown
from tests.hostile import hostile, refusal, values

SHAPE = {
    "stripes": "SMLA",
    "width": 8,
    "num_heads": 2,
    "mlp_width": 16,
    "num_short_filter_groups": 2,
    "num_medium_filter_groups": 2,
    "context": 64,
    "num_modes": 3,
    "vocabulary": 256,
}
CONFIG = make_config(SHAPE, "here")
YML = to_released(CONFIG)
WEIGHT = "blocks.0.mlp.l1.weight"


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    """Weights by the names of the model."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(shape, generator=generator).abs() - 2
        for name, shape in expected_shapes(CONFIG).items()
    }


@pytest.fixture
def pt_file(weights: dict[str, Tensor], tmp_path: Path) -> Path:
    vortex.write(Checkpoint(CONFIG, weights), tmp_path / "model.pt")
    return tmp_path / "model.pt"


@pytest.fixture
def folder(weights: dict[str, Tensor], tmp_path: Path) -> Path:
    native.write(Checkpoint(CONFIG, weights), tmp_path / "native")
    return tmp_path / "native"


def config_file(tmp_path: Path, suffix: str, content: dict[str, Any]) -> Path:
    file = tmp_path / f"config{suffix}"
    dump = tomli_w.dumps if suffix == ".toml" else yaml.safe_dump
    file.write_text(dump(content), encoding="utf-8")
    return file


@hostile
@given(st.sampled_from(sorted(YML)), values(st.none(), st.dates()))
def test_a_yml_with_any_value_is_a_shape_or_a_line(tmp_path: Path, key: str, value: Any) -> None:
    file = config_file(tmp_path, ".yml", {**YML, key: value})
    line = refusal(lambda: read_config(file), ConfigError)
    assert not line or line.startswith(str(file))


@hostile
@given(st.sampled_from(sorted(SHAPE)), values(st.dates(), st.times()))
def test_a_toml_with_any_value_is_a_shape_or_a_line(tmp_path: Path, key: str, value: Any) -> None:
    file = config_file(tmp_path, ".toml", {**SHAPE, key: value})
    line = refusal(lambda: read_config(file), ConfigError)
    assert not line or line.startswith(str(file))


@hostile
@given(st.binary(max_size=40) | st.text(max_size=20).map(str.encode), st.sampled_from([".yml", ""]))
def test_bytes_are_no_shape(tmp_path: Path, content: bytes, suffix: str) -> None:
    (tmp_path / f"config{suffix}").write_bytes(content)
    assert refusal(lambda: read_config(tmp_path / f"config{suffix}"), ConfigError)


def test_the_largest_shape_is_built_and_one_block_more_is_refused() -> None:
    most = make_config({**SHAPE, "stripes": "SMLA" * (MAX_BLOCKS // 4), "width": 2**17}, "here")
    assert len(expected_shapes(ModelConfig(**{**vars(most), "stripes": "SMLA"}))) > 0
    with pytest.raises(ConfigError, match="at most 1024 characters"):
        make_config({**SHAPE, "stripes": "S" * (MAX_BLOCKS + 1)}, "here")


TEXTS = {
    "deep": (".toml", "a = " + "[" * 5000, r"nested more than 32 deep"),
    "dotted": (".toml", "a" + ".a" * 500 + " = 1", r"nested more than 32 deep"),
    "large": (".toml", "a" * 70_000, r"larger than 65,536 bytes"),
    "digits": (".toml", "a = " + "9" * 5000, r"not TOML"),
    "deep yml": (".yml", "[" * 5000, r"nested more than 32 deep"),
    "aliases": (".yml", "a: &x [1]\nb: *x", r"aliases \(\*name\) are not supported"),
    "no date": (".yml", "a: 2020-13-45", r"month must be in"),
    "no number": (".yml", "a: !!int ''", r"not yml"),
    "no time": (".yml", "a: !!timestamp x", r"not yml"),
    "code": (".yml", "a: !!python/object:os.system x", r"not yml"),
    "number as key": (".yml", "1: 2", r"the key 1 is not text"),
    "huge hexadecimal": (
        ".yml",
        yaml.safe_dump(YML) + "eps: 0x" + "f" * 9000,
        r"eps = a number of",
    ),
}


@pytest.mark.parametrize("kind", TEXTS)
def test_texts_that_parsers_choke_on_are_one_line(tmp_path: Path, kind: str) -> None:
    suffix, text, message = TEXTS[kind]
    file = tmp_path / f"config{suffix}"
    file.write_text(text)
    assert re.search(message, refusal(lambda: read_config(file), ConfigError))


@hostile
@given(st.sampled_from([shards.INDEX, native.PROVENANCE]), values(st.none()), st.booleans())
def test_any_json_is_read_or_a_line(folder: Path, name: str, value: Any, nested: bool) -> None:
    key = "weight_map" if name == shards.INDEX else "before"
    (folder / name).write_text(json.dumps({key: value} if nested else value))
    line = refusal(lambda: load(folder), CheckpointError)
    assert not line or line.startswith(str(folder))


def test_names_of_any_bytes_are_read(tmp_path: Path) -> None:
    value = {"path": os.fsdecode(b"x\xff\x80/y"), "steps": [1, 2.5, None], "sign": "\U0001f48a"}
    (tmp_path / "x.json").write_text(json.dumps(value))
    assert read_json(tmp_path / "x.json", TypeAdapter(dict[str, JsonValue])) == value


@pytest.mark.parametrize(
    "content",
    ["", "{", "[" * 20_000, "\udcff", '{"a": "\\ud800"}', '{"a": "\\udcff\\ud800"}'],
)
def test_no_json_is_a_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "x.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    schema = TypeAdapter(dict[str, Any])
    assert "x.json: invalid JSON" in refusal(
        lambda: read_json(tmp_path / "x.json", schema), InputError
    )


def test_deep_json_with_a_name_of_any_bytes_is_a_line(tmp_path: Path) -> None:
    schema = TypeAdapter(dict[str, JsonValue])
    for depth in (400, 20_000):
        text = f'{{"a": "\\udcff", "b": {"[" * depth}{"]" * depth}}}'
        (tmp_path / "x.json").write_text(text)
        assert refusal(lambda: read_json(tmp_path / "x.json", schema), InputError)


@pytest.mark.parametrize("name", ["../model.safetensors", "/dev/zero"])
def test_a_shard_lies_in_the_folder(folder: Path, name: str) -> None:
    (folder / shards.INDEX).write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(CheckpointError, match="must be a file in the same folder"):
        load(folder)


KINDS: dict[str, Callable[[Tensor], Any]] = {
    "int64": lambda w: w.to(torch.int64),
    "bool": lambda w: w > 0,
    "complex64": lambda w: w.to(torch.complex64),
    "float8_e4m3fn": lambda w: w.to(torch.float8_e4m3fn),
    "meta": lambda w: w.to("meta"),
    "sparse_coo": lambda w: w.to_sparse(),
    "sparse_csr": lambda w: w.to_sparse_csr(),
}


@pytest.mark.filterwarnings("ignore:Sparse CSR", "ignore:.*invariant checks")
@pytest.mark.parametrize("kind", KINDS)
def test_a_tensor_that_is_no_weight_is_refused_by_name(pt_file: Path, kind: str) -> None:
    tensors = torch.load(pt_file)
    torch.save({**tensors, WEIGHT: KINDS[kind](tensors[WEIGHT])}, pt_file)
    with pytest.raises(CheckpointError, match=rf"{WEIGHT}' is {kind}.*, not a weight"):
        load(pt_file)


@pytest.mark.filterwarnings("ignore")  # PyTorch warns that these kinds are old, or new
@pytest.mark.parametrize("kind", ["nested", "qint8"])
def test_so_is_one_of_a_rare_kind(pt_file: Path, kind: str) -> None:
    tensors = torch.load(pt_file)
    nested = torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)])
    quantized = torch.quantize_per_tensor(tensors[WEIGHT], 0.1, 0, torch.qint8)
    torch.save({**tensors, WEIGHT: nested if kind == "nested" else quantized}, pt_file)
    with pytest.raises(CheckpointError, match=rf"{WEIGHT}' is {kind}, not a weight"):
        load(pt_file)


@pytest.mark.parametrize("key", [None, b"bytes", 5, ("a", "b")], ids=repr)
def test_a_name_that_is_no_text_is_refused(pt_file: Path, key: object) -> None:
    torch.save({**torch.load(pt_file), key: torch.zeros(1)}, pt_file)
    with pytest.raises(CheckpointError, match=r"the name .* of an entry is"):
        load(pt_file)


@hostile
@given(st.floats(0, 1, exclude_max=True), st.binary(min_size=1, max_size=64))
def test_a_damaged_pt_is_never_read_as_other_weights(
    pt_file: Path, weights: dict[str, Tensor], place: float, noise: bytes
) -> None:
    whole = pt_file.read_bytes()
    at = int(place * len(whole))
    try:
        pt_file.write_bytes(whole[:at] + noise + whole[at + len(noise) :])
        found: dict[str, Tensor] = {}
        line = refusal(lambda: found.update(read_checkpoint(pt_file).tensors), CheckpointError)
        assert not line or line.startswith(str(pt_file))
        assert all(torch.equal(tensor, weights[name]) for name, tensor in found.items())
    finally:
        pt_file.write_bytes(whole)


@pytest.mark.parametrize("parts", [False, True])
def test_a_wrong_checksum_is_named(pt_file: Path, weights: dict[str, Tensor], parts: bool) -> None:
    whole = bytearray(pt_file.read_bytes())
    whole[whole.index(weights["blocks.0.mlp.up.weight"].numpy().tobytes()) + 100] ^= 255
    file, config = pt_file, pt_file.with_suffix(".yml")
    if parts:
        file = pt_file.with_suffix(".pt.part0")
        pt_file.with_suffix(".pt.part1").write_bytes(whole[1000:])
        whole = whole[:1000]
    file.write_bytes(whole)
    with pytest.raises(CheckpointError, match=r"damaged: the checksum of its entry .* is wrong"):
        load(file, config=config)
    assert read_checkpoint(file, config=config) is not None  # its shape is whole


def test_a_file_without_checksums_is_read(pt_file: Path) -> None:
    tensors = torch.load(pt_file)
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(tensors, pt_file)
    finally:
        torch.serialization.set_crc32_options(True)
    assert load(pt_file) is not None


@hostile
@given(st.floats(0, 1, exclude_max=True), st.binary(min_size=1, max_size=64))
def test_a_damaged_safetensors_is_read_or_a_line(folder: Path, place: float, noise: bytes) -> None:
    """It has no checksums: damage of numbers is not seen."""
    file = folder / shards.WEIGHTS_FILE
    whole = file.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    at = int(place * header)
    try:
        file.write_bytes(whole[:at] + noise + whole[at + len(noise) :])
        line = refusal(lambda: load(folder), CheckpointError)
        assert not line or line.startswith(str(folder))
    finally:
        file.write_bytes(whole)


def test_a_compressed_archive_is_refused_before_it_is_unpacked(pt_file: Path) -> None:
    with zipfile.ZipFile(pt_file) as archive:
        entries = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    with zipfile.ZipFile(pt_file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    with pytest.raises(CheckpointError, match=r"its entry .* is compressed"):
        load(pt_file)


FALSE_FRIENDS = {
    "git-lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "Git LFS pointer"),
    "page": (b"\n<!DOCTYPE html><html><body>Sign in</body></html>", "is a web page"),
    "xml": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "is a web page"),
    "empty": (b"", "is empty"),
}


@pytest.mark.parametrize("suffix", [".pt", ".safetensors", ".pt.part0"])
@pytest.mark.parametrize("kind", FALSE_FRIENDS)
def test_what_was_downloaded_in_the_place_of_weights_is_named(
    tmp_path: Path, kind: str, suffix: str
) -> None:
    content, message = FALSE_FRIENDS[kind]
    (tmp_path / f"mine{suffix}").write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path / f"mine{suffix}")


@pytest.mark.parametrize("content", [b">chr1\nACGT\n", b"\x1f\x8b\x08\x04", b"a: 1\n", b"hi\n"])
def test_another_kind_of_file_is_not_taken_for_a_pickle(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(CheckpointError, match="x: is not a checkpoint: neither a file of torch"):
        load(tmp_path / "x")


def test_a_pipe_is_not_waited_for(folder: Path, pt_file: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.pt")
    for use in (
        lambda: load(tmp_path / "pipe.pt"),
        lambda: load("/dev/zero"),
        lambda: load(pt_file, config=tmp_path / "pipe.pt"),
    ):
        assert "is a pipe or a device" in refusal(use, InputError)
    for name in (native.PROVENANCE, shards.WEIGHTS_FILE):
        (folder / name).unlink()
        os.mkfifo(folder / name)
        assert "is a pipe or a device" in refusal(lambda: load(folder), InputError)


def test_no_name_is_no_model() -> None:
    with pytest.raises(CheckpointError, match="no model ''"):
        load("")


def test_a_value_is_shown_on_one_short_line() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    for value in (deep, "x" * 10**6, [[list(range(1000))] * 1000] * 1000, 16**6000, "a\nb"):
        assert len(shown(value)) < 1000
        assert "\n" not in shown(value)
    while deep:  # piece by piece: freeing it at once is as deep
        deep = deep[0]


def test_a_table_may_be_as_deep_as_it_says(tmp_path: Path) -> None:
    most = value_files.MAX_NESTING - 2
    file = tmp_path / "x.toml"
    file.write_text("a = " + "[" * most + "]" * most)
    assert read_values(file)
    file.write_text("a = " + "[" * (most + 3) + "]" * (most + 3))
    assert "nested" in refusal(lambda: read_values(file), InputError)


@pytest.mark.parametrize("kind", ["int64", "complex64", "meta", "sparse_coo"])
def test_a_record_of_scales_is_checked_likewise(kind: str) -> None:
    record = io.BytesIO()
    torch.save({"scale_fwd": KINDS[kind](torch.ones(3))}, record)
    records = {f"blocks.0.{CONFIG.mixers[0].float8_record}": record.getvalue()}
    with pytest.raises(CheckpointError, match="scale_fwd must be a 1-D tensor"):
        trained_scales(records, CONFIG, "here")
    with zipfile.ZipFile(record, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"0" * 1000)
    packed = dict.fromkeys(records, record.getvalue())
    with pytest.raises(CheckpointError, match="is compressed"):
        trained_scales(packed, CONFIG, "here")
