"""`--dtype` on models with FP8 scales and without, and the models inside the package."""

import shutil
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from evo2cli.app import app
from evo2cli.errors import UserError
from evo2cli.models import open_model, pick_device
from evo2cli.options import ModelOptions
from stripedhyena2 import ModelConfig, StripedHyena2, load, save
from stripedhyena2.checkpoint import Checkpoint, built_in, precision
from stripedhyena2.checkpoint.layouts import native
from stripedhyena2.errors import InputError
from stripedhyena2.float8.inference import PRODUCTS, PROJECTIONS, float8_parts
from stripedhyena2.parametrization import folded_state
from tests.stripedhyena2.float8.test_inference import record

SHAPE = ModelConfig(
    stripes="SA",
    width=32,
    num_heads=2,
    mlp_width=48,
    num_short_filter_groups=4,
    num_medium_filter_groups=4,
    context=64,
)


@pytest.fixture
def folder(tmp_path: Path) -> str:
    """A checkpoint as `evo2 convert` leaves one of a released file."""
    weights = folded_state(StripedHyena2.from_seed(SHAPE, seed=0))
    records = {"blocks.0.projections._extra_state": record(40.5, 100.25)}
    native.write(Checkpoint(SHAPE, weights, records, {"layout": "released"}), tmp_path / "model")
    return str(tmp_path / "model")


@pytest.mark.parametrize("needed", [precision.Precision.BF16, precision.Precision.FP8], ids=str)
@pytest.mark.parametrize(
    ("word", "dtype"),
    [
        ("auto", torch.float32),
        ("fp8", torch.float32),
        ("bf16", torch.bfloat16),
        ("fp32", torch.float32),
        ("fp64", torch.float64),
    ],
)
def test_fp8_is_for_those_that_need_it_or_are_asked(
    folder: str,
    monkeypatch: pytest.MonkeyPatch,
    word: str,
    dtype: torch.dtype,
    needed: precision.Precision,
) -> None:
    monkeypatch.setattr(precision, "needed_precision", lambda _: needed)
    model = open_model(ModelOptions(model=folder, device="cpu", dtype=word))
    assert model.embedding.weight.dtype == dtype
    needs = needed is precision.Precision.FP8
    expected = {"fp8": PRODUCTS, "auto": PROJECTIONS if needs else None}
    assert float8_parts(model) == expected.get(word)
    assert torch.isfinite(model(torch.arange(65, 95)[None])).all()


def test_a_word_that_is_none_is_named(folder: str) -> None:
    with pytest.raises(UserError, match="--dtype int4: must be one of auto, fp8, bf16, fp32, fp64"):
        ModelOptions(model=folder, device="cpu", dtype="int4")


def test_any_model_computes_in_fp8_on_a_cpu() -> None:
    assert float8_parts(open_model(ModelOptions(device="cpu", dtype="fp8"))) == PRODUCTS
    assert float8_parts(open_model(ModelOptions(device="cpu"))) is None  # auto never chooses it


def test_a_folder_of_the_package_is_a_built_in_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_model: StripedHyena2
) -> None:
    monkeypatch.setattr(built_in, "BUILT_IN", tmp_path / "builtin")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "builtin" / "not-a-model").mkdir(parents=True)
    save(tiny_model, tmp_path / "builtin" / "pico", {})
    assert built_in.built_in_models() == ["pico"]
    assert load("pico").config == tiny_model.config
    with pytest.raises(InputError, match=r"no model 'nano': .*not one of pico, evo2_1b_base"):
        load("nano")
    (tmp_path / "pico").mkdir()  # a path wins
    assert built_in.find_built_in("pico") is None
    assert built_in.find_built_in("../builtin/pico") is None


@pytest.mark.parametrize(
    "command",
    [
        ["score", "x.fa"],
        ["score", "x:2:C:T", "-R", "x.fa", "--window", "16"],
        ["generate", "--prompt", "ACGT", "--tokens", "2"],
    ],
    ids=["sequences", "variants", "generate"],
)
def test_a_built_in_model_is_called_a_demonstration_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.fa").write_text(">x\n" + "ACGT" * 10 + "\n")
    result = CliRunner().invoke(app, [*command, "--device", "cpu"])
    assert result.exit_code == 0, result.output
    assert result.stderr.count("evo2: nano is a small demonstration model: ") == 1
    assert "demonstration" not in result.stdout
    shutil.copytree(built_in.BUILT_IN / "nano", tmp_path / "mine")
    result = CliRunner().invoke(app, [*command, "--device", "cpu", "--model", "mine"])
    assert result.exit_code == 0, result.output
    assert "demonstration" not in result.stderr


@pytest.mark.parametrize("name", ["meta", "hpu", "abacus"])
def test_a_device_that_cannot_compute_here_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"^--device {name}: not available here"):
        pick_device(name)
