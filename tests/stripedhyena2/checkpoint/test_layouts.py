"""One model in every layout is one model; what cannot be read is named for what it is."""

import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

from stripedhyena2 import CheckpointError, ModelConfig, load
from stripedhyena2.assembly import assemble
from stripedhyena2.checkpoint import Checkpoint, precision, read_checkpoint, shards
from stripedhyena2.checkpoint.layouts import hf, native, savanna, vortex
from stripedhyena2.checkpoint.published import Precision
from stripedhyena2.config import to_released
from tests.stripedhyena2.checkpoint import foreign

CONFIG = ModelConfig(
    stripes="SMLASML",
    width=24,
    num_heads=2,
    mlp_width=40,
    num_short_filter_groups=6,
    num_medium_filter_groups=4,
    context=256,
    base_context=64,
    rotary_scale=4,
)
IDS = torch.arange(65, 95)[None]
PARTS = foreign.parts_of(CONFIG)


def logits(path: Path, config: Path | None = None) -> Tensor:
    with torch.no_grad():
        return load(path, config=config)(IDS)[0]


def assert_equal(found: Tensor, expected: Tensor) -> None:
    """In fp32: poles are exponentials of what some layouts store."""
    assert float((found - expected).abs().max()) <= 1e-6 * float(expected.abs().max())


@pytest.fixture
def yml(tmp_path: Path) -> Path:
    path = tmp_path / "shape.yml"
    path.write_text(yaml.safe_dump(to_released(CONFIG)))
    return path


@pytest.fixture
def expected(tmp_path: Path, yml: Path) -> Tensor:
    """The logits of the released file."""
    torch.save(foreign.vortex(CONFIG, PARTS), tmp_path / "released.pt")
    return logits(tmp_path / "released.pt", yml)


def flat_savanna(folder: Path, norm: str) -> Path:
    torch.save(foreign.savanna(CONFIG, PARTS, norm=norm), folder / "flat.pt")
    return folder / "flat.pt"


LAYOUTS: dict[str, Callable[[Path], Path]] = {
    "savanna": lambda at: foreign.write_savanna(CONFIG, PARTS, at / "s"),
    "savanna of 2 ranks": lambda at: foreign.write_savanna(CONFIG, PARTS, at / "s", ranks=2),
    "flat savanna": lambda at: flat_savanna(at, "sequential.10.norm.weight"),
    "savanna 20B": lambda at: flat_savanna(at, "sequential.9.norm.weight"),
    "bridge": lambda at: foreign.write_bridge(CONFIG, PARTS, at / "b"),
    "nemo": lambda at: foreign.write_bridge(CONFIG, PARTS, at / "n", nemo=True),
    "hf port": lambda at: foreign.write_hf(CONFIG, PARTS, at / "h", "port"),
    "hf bionemo": lambda at: foreign.write_hf(CONFIG, PARTS, at / "h", "bionemo"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_is_the_released_model(
    tmp_path: Path, yml: Path, expected: Tensor, layout: str
) -> None:
    path = LAYOUTS[layout](tmp_path)
    config = yml if "savanna" in layout else None
    assert_equal(logits(path, config), expected)
    checkpoint = read_checkpoint(path, config=config)
    assert replace(checkpoint.config, base_context=64) == CONFIG
    # Through every layout that is written, and back.
    native.write(checkpoint, tmp_path / "native")
    hf.write(native.read(tmp_path / "native"), tmp_path / "hf")
    vortex.write(read_checkpoint(tmp_path / "hf"), tmp_path / "vortex.pt")
    savanna.write(read_checkpoint(tmp_path / "vortex.pt"), tmp_path / "savanna")
    for name in ("native", "hf", "vortex.pt"):
        again = read_checkpoint(tmp_path / name)
        assert again.config == checkpoint.config, name
        for tensor, value in checkpoint.tensors.items():
            assert value.dtype == again.tensors[tensor].dtype, (name, tensor)
            assert torch.equal(value, again.tensors[tensor]), (name, tensor)
    again = read_checkpoint(tmp_path / "savanna")
    assert again.config == checkpoint.config
    assert_equal(logits(tmp_path / "savanna"), expected)


def test_the_dialect_of_transformers_is_the_released_model(tmp_path: Path) -> None:
    config = foreign.without_interpolation(
        replace(CONFIG, num_medium_filter_groups=CONFIG.num_short_filter_groups)
    )
    config = replace(config, stripes="SMLA" * 2)
    parts = foreign.parts_of(config)
    (tmp_path / "released.yml").write_text(yaml.safe_dump(to_released(config)))
    torch.save(foreign.vortex(config, parts), tmp_path / "released.pt")
    folder = foreign.write_hf(config, parts, tmp_path / "h", "transformers")
    assert_equal(logits(folder), logits(tmp_path / "released.pt"))


def test_savanna_keeps_the_form_that_it_trains_in(tmp_path: Path, yml: Path) -> None:
    checkpoint = read_checkpoint(foreign.write_savanna(CONFIG, PARTS, tmp_path / "s"), config=yml)
    native.write(checkpoint, tmp_path / "native")
    form = native.read(tmp_path / "native").training_form
    for index, block in enumerate(PARTS["blocks"]):
        if block["letter"] == "L":
            name = f"blocks.{index}.mixer.operator.log_poles_DS"
            assert torch.equal(form[f"{name}.p"], block["p"])
            assert torch.equal(form[f"{name}.gamma"], block["gamma"])
    weights = {**checkpoint.tensors, **form}
    model = assemble(CONFIG, weights=weights, published=True, adopt=lambda part: part)
    for index, block in enumerate(PARTS["blocks"]):
        if block["letter"] == "L":
            factors = model.blocks[index].mixer.operator.parametrizations.log_poles_DS
            assert torch.equal(factors.original0, block["p"])
            assert torch.equal(factors.original1, block["gamma"])
    assert {name.split(".")[1] for name in checkpoint.extra_state} == set("012456")
    hf.write(checkpoint, tmp_path / "hf")
    stored = load_file(tmp_path / "hf" / "model.safetensors")
    assert stored["blocks.0.projections.input_scale"] == 8
    assert stored["blocks.6.projections.weight_scale"] == 64
    assert read_checkpoint(tmp_path / "hf").extra_state == checkpoint.extra_state


WRAPPERS: dict[str, Callable[[dict[str, Tensor]], object]] = {
    "module": lambda tensors: {"module": tensors},
    "model": lambda tensors: {"model": tensors, "optimizer": {}, "step": 5},
    "state_dict and model": lambda tensors: {
        "state_dict": {f"model.{name}": tensor for name, tensor in tensors.items()},
        "epoch": 1,
    },
    "module (prefix)": lambda tensors: {f"module.{n}": tensor for n, tensor in tensors.items()},
    "_orig_mod": lambda tensors: {f"_orig_mod.{n}": tensor for n, tensor in tensors.items()},
    "two": lambda tensors: {"state_dict": {"module": tensors}},
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrappers_are_taken_off(tmp_path: Path, yml: Path, expected: Tensor, wrapper: str) -> None:
    torch.save(WRAPPERS[wrapper](foreign.vortex(CONFIG, PARTS)), tmp_path / "wrapped.ckpt")
    assert torch.equal(logits(tmp_path / "wrapped.ckpt", yml), expected)
    assert read_checkpoint(tmp_path / "wrapped.ckpt", config=yml).provenance["unwrapped"]


def test_a_file_is_found_by_the_name_of_its_parts_or_of_its_folder(
    tmp_path: Path, yml: Path, expected: Tensor
) -> None:
    whole = (tmp_path / "released.pt").read_bytes()
    folder = tmp_path / "parts"
    folder.mkdir()
    for number in range(2):
        half = len(whole) // 2
        part = whole[number * half : (number + 1) * half if number == 0 else None]
        (folder / f"model.pt.part{number}").write_bytes(part)
    assert torch.equal(logits(folder / "model.pt", yml), expected)
    assert torch.equal(logits(folder, yml), expected)


def test_shards_are_one_model(
    tmp_path: Path, yml: Path, expected: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "MAX_SHARD", 20_000)
    hf.write(read_checkpoint(tmp_path / "released.pt", config=yml), tmp_path / "hf")
    assert len(list((tmp_path / "hf").glob("model-*.safetensors"))) > 2
    assert torch.equal(logits(tmp_path / "hf"), expected)
    (tmp_path / "hf" / "config.json").unlink()
    assert torch.equal(logits(tmp_path / "hf" / shards.INDEX, yml), expected)


@pytest.mark.usefixtures("expected")
def test_reading_one_tensor_reads_no_other(tmp_path: Path, yml: Path) -> None:
    """A checkpoint whose other tensors are damaged still gives this one."""
    file = tmp_path / "released.pt"
    data = bytearray(file.read_bytes())
    damaged = PARTS["blocks"][6]["w3"].numpy().tobytes()
    data[data.find(damaged)] ^= 1
    file.write_bytes(data)
    tensors = read_checkpoint(file, config=yml).tensors
    assert torch.equal(tensors["norm.scale"], PARTS["norm"])
    with pytest.raises(CheckpointError, match="the checksum of its entry"):
        tensors["blocks.6.mlp.down.weight"]


def touch(path: Path, text: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def two_files(at: Path) -> Path:
    touch(at / "t" / "a.pt")
    return touch(at / "t" / "b.pt").parent


REFUSED: dict[str, tuple[Callable[[Path], Path], str]] = {
    "zero 3": (
        lambda at: touch(at / "zero_pp_rank_0_mp_rank_00_model_states.pt"),
        r"shards of a ZeRO-3 run .* zero_to_fp32\.py",
    ),
    "zero 3 folder": (
        lambda at: touch(at / "d" / "zero_pp_rank_0_mp_rank_00_model_states.pt").parent,
        r"shards of a ZeRO-3 run",
    ),
    "optimizer": (
        lambda at: touch(at / "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt"),
        "states of an optimizer",
    ),
    "adapter": (lambda at: touch(at / "a" / "adapter_config.json").parent, "is an adapter"),
    "missing rank": (
        lambda at: touch(at / "m" / "mp_rank_01_model_states.pt").parent,
        r"mp_rank_00_model_states\.pt is missing",
    ),
    "missing step": (
        lambda at: touch(at / "l" / "latest", "global_step9").parent,
        "names the folder global_step9, which is not there",
    ),
    "two": (two_files, r"a\.pt, b\.pt"),
    "shard": (
        lambda at: touch(
            at / "x" / shards.INDEX, json.dumps({"weight_map": {"a": "no.safetensors"}})
        ),
        r"no\.safetensors: cannot be read",
    ),
    "metadata": (lambda at: touch(at / "c" / ".metadata", "x").parent, "not a readable checkpoint"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_read_is_named(tmp_path: Path, what: str) -> None:
    make, message = REFUSED[what]
    with pytest.raises(CheckpointError, match=message) as caught:
        read_checkpoint(make(tmp_path))
    assert "\n" not in str(caught.value)


def test_metadata_of_a_distributed_checkpoint_run_nothing(tmp_path: Path) -> None:
    trace = tmp_path / "trace"

    class Payload:
        def __reduce__(self) -> tuple[object, tuple[object, ...]]:
            return Path.touch, (trace,)

    touch(tmp_path / "c" / ".metadata").write_bytes(pickle.dumps(Payload()))
    with pytest.raises(CheckpointError, match="not a readable checkpoint"):
        read_checkpoint(tmp_path / "c")
    assert not trace.exists()


def test_a_shape_that_fits_is_named(tmp_path: Path) -> None:
    torch.save({"embedding_layer.weight": torch.zeros(4, 4)}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=r"unknown shape of a vortex checkpoint.*evo2_7b"):
        read_checkpoint(tmp_path / "x.pt")


@pytest.mark.parametrize(
    ("layout", "told"),
    [
        ("savanna", "was trained with FP8 input projections"),
        ("bridge", "has no FP8 scales, like all checkpoints of Megatron-Bridge; if"),
    ],
)
def test_missing_scales_are_said(monkeypatch: pytest.MonkeyPatch, layout: str, told: str) -> None:
    monkeypatch.setattr(precision, "needed_precision", lambda _: Precision.FP8)
    source = Checkpoint(CONFIG, {}, provenance={"layout": layout})
    for checkpoint in (source, replace(source, provenance={"before": source.provenance})):
        line = precision.precision_warning(checkpoint, "x", torch.device("cpu"), float8=False)
        assert line is not None
        assert told in line
    trained = replace(source, provenance={"trained_by": "us", "before": source.provenance})
    assert precision.precision_warning(trained, "x", torch.device("cpu"), float8=False) is None


@pytest.mark.parametrize("name", ["tiny-7b-1m", "tiny-1b-base", "tiny-40b-1m"])
def test_a_golden_comes_back_bit_for_bit(shared: Path, tmp_path: Path, name: str) -> None:
    """The released layout through the native one, Hugging Face's, and the native one again."""
    golden = shared / "goldens" / name
    source = read_checkpoint(golden / "weights.safetensors", config=golden / "config.yml")
    native.write(source, tmp_path / "native")
    hf.write(read_checkpoint(tmp_path / "native"), tmp_path / "hf")
    native.write(read_checkpoint(tmp_path / "hf"), tmp_path / "again")
    vortex.write(read_checkpoint(tmp_path / "again"), tmp_path / "back.safetensors")
    before, after = (
        load_file(golden / "weights.safetensors"),
        load_file(tmp_path / "back.safetensors"),
    )
    for tensor, value in before.items():
        assert value.dtype == after[tensor].dtype
        assert torch.equal(value, after[tensor]), tensor


def test_where_weights_come_from_travels(tmp_path: Path, yml: Path, expected: Tensor) -> None:
    del expected  # its fixture writes the file
    checkpoint = read_checkpoint(tmp_path / "released.pt", config=yml)
    trained = replace(checkpoint, provenance={"trained_by": "us", "license": "MIT"})
    hf.write(trained, tmp_path / "hf")
    found = read_checkpoint(tmp_path / "hf")
    assert found.provenance["before"] == trained.provenance
    assert not precision.is_released(found)
    assert "MIT" in (tmp_path / "hf" / hf.CARD).read_text()
