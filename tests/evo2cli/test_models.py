"""`--dtype`: what each of its words makes of a model, with FP8 scales and without."""

from pathlib import Path

import pytest
import torch

from evo2cli.errors import UserError
from evo2cli.models import open_model
from evo2cli.options import ModelOptions
from stripedhyena2 import ModelConfig, StripedHyena2
from stripedhyena2.checkpoint import Checkpoint, precision
from stripedhyena2.checkpoint.layouts import native
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
