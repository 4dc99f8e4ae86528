"""Laws of checkpoints: manifests match, round trips are bit exact, wrong files are named."""

import io
import json
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from hyenakernels import causal_fir
from stripedhyena2 import (
    CheckpointError,
    InputError,
    ModelConfig,
    StripedHyena2,
    load,
    read_config,
    save,
)
from stripedhyena2.checkpoint import read_checkpoint, shards
from stripedhyena2.checkpoint.contents import Checkpoint
from stripedhyena2.checkpoint.layouts import native, vortex
from stripedhyena2.checkpoint.published import PUBLISHED, published_config
from stripedhyena2.checkpoint.tensors import Tensors

MANIFESTS = [
    "evo2_1b_base",
    "evo2_7b_base",
    "evo2_7b_262k",
    "evo2_7b",
    "evo2_20b",
    "evo2_40b_base",
    "evo2_40b",
]


def released_tensors(config: ModelConfig) -> dict[str, Tensor]:
    """Random weights in the released layout and its dtypes."""
    generator = torch.Generator().manual_seed(7)
    tensors = {}
    for name, like in vortex.expected(config).items():
        wide = name.endswith(("log_poles", "residues"))
        value = torch.randn(like.shape, generator=generator) * 0.1
        if name.endswith("log_poles"):
            value = -value.abs() - 0.01
        tensors[name] = value if wide else value.bfloat16()
    return tensors


@pytest.fixture
def pt_file(tiny_config: ModelConfig, tmp_path: Path) -> Path:
    """A released .pt with everything such files carry, and its yml."""
    tensors: dict[str, object] = dict(released_tensors(tiny_config))
    tensors["unembed.weight"] = tensors["embedding_layer.weight"]
    tensors["blocks.2.mixer.mixer.filter.t"] = torch.zeros(1, 1, 8)
    tensors["blocks.0.projections._extra_state"] = io.BytesIO(b"scales, never opened")
    torch.save(tensors, tmp_path / "model.pt")
    checkpoint = read_checkpoint_config(tiny_config)
    (tmp_path / "model.yml").write_text(checkpoint)
    return tmp_path / "model.pt"


def read_checkpoint_config(config: ModelConfig) -> str:
    import yaml

    from stripedhyena2.config import to_released

    return yaml.safe_dump(to_released(config))


@pytest.mark.parametrize("name", MANIFESTS)
def test_the_released_layout_is_the_manifests(shared: Path, name: str) -> None:
    manifest = json.loads((shared / "manifests" / f"{name}.json").read_text())
    expected = {key: torch.Size(shape) for key, (shape, _) in manifest["tensors"].items()}
    expected.pop("unembed.weight", None)
    found = vortex.expected(published_config(name))
    assert {key: like.shape for key, like in found.items()} == expected


@pytest.mark.parametrize("name", MANIFESTS)
def test_shapes_are_the_published_yml(shared: Path, tmp_path: Path, name: str) -> None:
    manifest = json.loads((shared / "manifests" / f"{name}.json").read_text())
    (tmp_path / "config.yml").write_text(json.dumps(manifest["config"]))  # JSON is YAML
    config = published_config(name)
    named = 32_768 if name == "evo2_7b_base" else config.context  # it was trained at 8,192
    assert read_config(tmp_path / "config.yml") == replace(config, context=named)
    with torch.device("meta"):
        parameters = sum(p.numel() for p in StripedHyena2(config).parameters())
    assert parameters == manifest["counts"]["parameters_unique"]


def test_every_published_name_has_a_shape() -> None:
    assert all(published_config(name).width for name in PUBLISHED)


def test_native_and_back_is_bit_exact(pt_file: Path, tmp_path: Path) -> None:
    checkpoint = read_checkpoint(pt_file, config=pt_file.with_suffix(".yml"))
    native.write(checkpoint, tmp_path / "native")
    again = native.read(tmp_path / "native")
    vortex.write(again, tmp_path / "again.pt")

    before = torch.load(pt_file, weights_only=False)
    after = torch.load(tmp_path / "again.pt", weights_only=False)
    before.pop("blocks.2.mixer.mixer.filter.t")
    assert before.keys() == after.keys()
    for name, value in before.items():
        if isinstance(value, io.BytesIO):
            assert value.getvalue() == after[name].getvalue()
        else:
            assert value.dtype == after[name].dtype, name
            assert torch.equal(value, after[name]), name
    assert read_config(tmp_path / "again.yml") == checkpoint.config


@pytest.mark.parametrize(("short", "medium"), [(2, 12), (24, 3)])
def test_se_and_mr_may_have_different_numbers_of_groups(
    tiny_config: ModelConfig, tmp_path: Path, short: int, medium: int
) -> None:
    config = replace(tiny_config, num_short_filter_groups=short, num_medium_filter_groups=medium)
    tensors = released_tensors(config)
    tensors["unembed.weight"] = tensors["embedding_layer.weight"]
    (tmp_path / "before.yml").write_text(read_checkpoint_config(config))
    torch.save(tensors, tmp_path / "before.pt")
    checkpoint = read_checkpoint(tmp_path / "before.pt")
    assert checkpoint.config == config
    native.write(checkpoint, tmp_path / "native")
    vortex.write(native.read(tmp_path / "native"), tmp_path / "after.pt")

    after = torch.load(tmp_path / "after.pt")
    assert tensors.keys() == after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in tensors.items())
    assert read_config(tmp_path / "after.yml") == config
    ids = torch.arange(65, 95)[None]
    paths = ("before.pt", "native", "after.pt")
    first, *others = [load(tmp_path / path, dtype=torch.float64)(ids) for path in paths]
    assert all(torch.equal(logits, first) for logits in others)


@pytest.mark.parametrize("index", [0, 1, 2], ids=["SE", "MR", "LI"])
def test_parts_side_by_side_are_the_released_parts_channel_by_channel(
    tiny_config: ModelConfig, index: int
) -> None:
    theirs = released_tensors(tiny_config)
    ours = vortex.Vortex().to_ours(Tensors.of(theirs), tiny_config, "here")
    x_BLD = torch.randn(2, 30, tiny_config.width, generator=torch.Generator().manual_seed(1))
    hyena, block = f"blocks.{index}.mixer", f"blocks.{index}"

    z_BLC = x_BLD @ theirs[f"{block}.projections.weight"].float().T
    taps_C1K = theirs[f"{block}.filter.short_filter_weight"].float()
    padded_BCT = torch.nn.functional.pad(z_BLC.transpose(1, 2), (taps_C1K.shape[2] - 1, 0))
    z_BCL = torch.nn.functional.conv1d(padded_BCT, taps_C1K, groups=taps_C1K.shape[0])
    expected = z_BCL.transpose(1, 2).unflatten(2, (-1, 3)).unbind(3)

    z_BLC = x_BLD @ ours[f"{hyena}.project_in.weight"].float().T
    z_BLC, _ = causal_fir(z_BLC, ours[f"{hyena}.operator.featurizer_taps_CK"].float())
    for part, expected_part in zip(z_BLC.chunk(3, dim=2), expected, strict=True):
        torch.testing.assert_close(part, expected_part)


def test_every_container_gives_the_same_model(pt_file: Path, tmp_path: Path) -> None:
    config, whole = pt_file.with_suffix(".yml"), pt_file.read_bytes()
    for number, start in enumerate(range(0, len(whole), 50_001)):
        (tmp_path / f"cut.pt.part{number}").write_bytes(whole[start : start + 50_001])
    tensors = {
        name: tensor.clone()
        for name, tensor in torch.load(pt_file, weights_only=False).items()
        if isinstance(tensor, Tensor)
    }
    save_file(tensors, tmp_path / "model.safetensors")
    native.write(read_checkpoint(pt_file, config=config), tmp_path / "folder")

    ids = torch.arange(65, 95)[None]
    expected = load(pt_file, config=config)(ids)
    for path in ("cut.pt.part0", "cut.pt.part1", "model.safetensors"):
        assert torch.equal(load(tmp_path / path, config=config)(ids), expected), path
    assert torch.equal(load(tmp_path / "folder")(ids), expected)


def test_loaded_weights_train(pt_file: Path) -> None:
    model = load(pt_file, config=pt_file.with_suffix(".yml"))
    model(torch.arange(65, 95)[None]).square().mean().backward()
    assert all(p.requires_grad and p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_poles_and_frequencies_are_never_narrowed(pt_file: Path, dtype: torch.dtype) -> None:
    model = load(pt_file, config=pt_file.with_suffix(".yml"), dtype=dtype)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    for name, tensor in model.state_dict().items():
        narrow = not name.endswith(("log_poles_DS", "residues_DS", "inverse_frequency"))
        assert tensor.dtype == (dtype if narrow else wide), name


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"device": "gpu"}, "device='gpu': not available here"),
        ({"device": "cuda:99"}, "device='cuda:99': not available here"),
        ({"device": [torch.device("cuda", 99)]}, "device='cuda:99': not available here"),
        ({"device": []}, "name at least one device"),
        ({"dtype": "bf16"}, "dtype='bf16': must be one of torch.float32, torch.bfloat16"),
        ({"dtype": torch.int8}, "dtype=torch.int8: must be one of"),
    ],
    ids=str,
)
def test_where_weights_cannot_go_is_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message) as it:
        load("nano", **wrong)  # type: ignore[arg-type]
    assert "\n" not in str(it.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_gpu_that_is_not_there_is_refused() -> None:
    with pytest.raises(InputError, match="device='cuda': not available here"):
        load("nano", device="cuda")


@pytest.mark.parametrize("kind", [Path, str])
def test_saved_is_loaded(
    tiny_model: StripedHyena2, tmp_path: Path, kind: type[Path] | type[str]
) -> None:
    folder = kind(tmp_path / "model")
    save(tiny_model, folder, {"steps": 3})
    again = load(folder, dtype=torch.float64)
    assert read_config(kind(tmp_path / "model" / "config.toml")) == tiny_model.config
    for name, tensor in tiny_model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    assert native.read(tmp_path / "model").provenance == {"steps": 3}


def test_large_models_are_sharded(
    tiny_model: StripedHyena2, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "MAX_SHARD", 100_000)
    save(tiny_model, tmp_path / "model", {})
    assert len(list((tmp_path / "model").glob("*.safetensors"))) > 2
    again = load(tmp_path / "model", dtype=torch.float64).state_dict()
    assert all(torch.equal(t, again[name]) for name, t in tiny_model.state_dict().items())


def broken(pt_file: Path, change: str) -> None:
    tensors = torch.load(pt_file, weights_only=False)
    if change == "missing":
        del tensors["blocks.1.filter.D"]
    elif change == "extra":
        tensors["blocks.1.filter.E"] = torch.zeros(3)
    elif change == "shape":
        tensors["blocks.1.filter.D"] = torch.zeros(3)
    torch.save(tensors, pt_file)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("missing", r"'blocks\.1\.filter\.D' \[24\] is missing"),
        ("extra", r"'blocks\.1\.filter\.E' \[3\] is not part of this model"),
        ("shape", r"'blocks\.1\.filter\.D' is \[3\], expected \[24\]"),
    ],
)
def test_a_wrong_tensor_is_named(pt_file: Path, change: str, message: str) -> None:
    broken(pt_file, change)
    with pytest.raises(CheckpointError, match=message):
        load(pt_file, config=pt_file.with_suffix(".yml"))


class Payload:
    """Pickles as a call that leaves a trace."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.trace,)


@pytest.mark.parametrize("by", ["torch", "pickle"])
def test_code_in_a_pickle_is_not_run(tmp_path: Path, by: str) -> None:
    file, trace = tmp_path / "evo2_7b.pt", tmp_path / "trace"
    if by == "torch":
        torch.save({"a": Payload(trace)}, file)
    else:
        file.write_bytes(pickle.dumps({"a": Payload(trace)}))
    with pytest.raises(CheckpointError, match=r"evo2_7b\.pt"):
        load(file)
    assert not trace.exists()


@pytest.mark.parametrize("keep", [0, 10, 1000, -100], ids=lambda keep: f"keep{keep}")
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_truncated_file_is_named(pt_file: Path, tmp_path: Path, keep: int, suffix: str) -> None:
    file = tmp_path / f"cut{suffix}"
    if suffix == ".safetensors":
        tensors = torch.load(pt_file, weights_only=False).items()
        save_file({n: t.clone() for n, t in tensors if isinstance(t, Tensor)}, file)
    else:
        file.write_bytes(pt_file.read_bytes())
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=f"cut{suffix}"):
        load(file, config=pt_file.with_suffix(".yml"))


def test_a_missing_piece_is_named(tmp_path: Path) -> None:
    (tmp_path / "evo2_40b.pt.part0").write_bytes(b"x")
    (tmp_path / "evo2_40b.pt.part2").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="part1: this part is missing"):
        load(tmp_path / "evo2_40b.pt.part0")


def test_an_unknown_name_lists_the_known() -> None:
    with pytest.raises(CheckpointError, match=r"no model 'evo2_9b'.*evo2_7b"):
        load("evo2_9b")


def test_an_unknown_shape_asks_for_the_config(pt_file: Path) -> None:
    assert load(pt_file) is not None  # by the yml beside it
    pt_file.with_suffix(".yml").unlink()
    with pytest.raises(CheckpointError, match="give a config: "):
        load(pt_file)


def test_a_folder_in_use_is_not_overwritten(tiny_model: StripedHyena2, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="exists and is not a checkpoint"):
        save(tiny_model, tmp_path, {})
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes.txt"]


def test_extra_state_is_kept_aside(pt_file: Path, tmp_path: Path) -> None:
    checkpoint = read_checkpoint(pt_file, config=pt_file.with_suffix(".yml"))
    assert checkpoint.extra_state == {"blocks.0.projections._extra_state": b"scales, never opened"}
    native.write(checkpoint, tmp_path / "native")
    assert list(load_file(tmp_path / "native" / native.EXTRA_STATE)) == list(checkpoint.extra_state)
    assert isinstance(checkpoint, Checkpoint)


def test_a_path_that_safetensors_cannot_take_is_named(tmp_path):
    """A checkpoint is written under any name; renamed, it is read."""
    folder = tmp_path / "x\udcff"
    save(load("nano"), folder, {})
    with pytest.raises(CheckpointError, match="needs a path in UTF-8; rename file or folder"):
        load(folder)
    folder.rename(tmp_path / "x")
    load(tmp_path / "x")
