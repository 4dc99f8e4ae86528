"""`evo2 convert --verify`: equal models pass, and the known faults of conversion are named."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from evo2cli.app import app
from evo2cli.convert import verify as verification
from evo2cli.convert.run import convert_checkpoint
from evo2cli.convert.verify import gamma_is_missing, lost_interpolation, verify
from evo2cli.errors import UserError
from stripedhyena2 import StripedHyena2
from stripedhyena2.checkpoint import read_checkpoint
from stripedhyena2.checkpoint.contents import Checkpoint
from stripedhyena2.checkpoint.layouts import native
from stripedhyena2.checkpoint.published import published_config
from stripedhyena2.checkpoint.tensors import Tensors
from stripedhyena2.layout import by_owner, by_part
from stripedhyena2.parametrization import DecayWindow

NANO = read_checkpoint("nano")


def changed(name_end: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Checkpoint:
    """The built-in model with some tensors changed."""
    tensors = {
        name: change(tensor) if name.endswith(name_end) else tensor
        for name, tensor in NANO.tensors.items()
    }
    return replace(NANO, tensors=Tensors.of(tensors))


@pytest.mark.parametrize("layout", ["native", "hf", "vortex"])
def test_the_built_in_model_passes_in_every_layout(tmp_path: Path, layout: str) -> None:
    destination = tmp_path / ("nano.pt" if layout == "vortex" else "nano")
    summary = convert_checkpoint("nano", destination, to=layout, verified=True)
    found = summary["verification"]
    assert found["largest_difference"] == 0
    assert found["source_loss"] == found["target_loss"] < 1.38
    assert not found["suspicions"]
    if layout != "vortex":
        assert json.loads((destination / "provenance.json").read_text())["verification"] == found


def test_another_model_does_not_pass(tmp_path: Path) -> None:
    native.write(changed("mlp.up.weight", lambda w: w * 1.1), tmp_path / "other")
    with pytest.raises(UserError, match="its logits differ from those of nano by up to"):
        verify("nano", tmp_path / "other")


@pytest.mark.parametrize("order", [by_part, by_owner], ids=["thirds", "regrouped"])
def test_rows_of_attention_in_the_wrong_order_are_named(
    tmp_path: Path,
    order: Callable[[torch.Tensor, int], torch.Tensor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(verification, "BETTER", 0.0005)  # the built-in model hardly attends
    attention = f"blocks.{NANO.config.stripes.index('A')}.mixer.project_in.weight"
    native.write(
        changed(attention, lambda rows: order(rows, NANO.config.num_heads)), tmp_path / "wrong"
    )
    found = verify(str(tmp_path / "wrong"), tmp_path / "wrong")
    assert any("thirds" in suspicion for suspicion in found["suspicions"])


def test_filters_without_their_decay_are_named(tmp_path: Path) -> None:
    config = NANO.config
    window_GK = DecayWindow(
        config.num_medium_filter_groups, config.num_medium_taps, config.original_context
    ).window_GK
    medium = f"blocks.{config.stripes.index('M')}.mixer.operator.taps_GK"
    native.write(changed(medium, lambda taps: taps / window_GK), tmp_path / "wrong")
    suspicions = verify(str(tmp_path / "wrong"), tmp_path / "wrong")["suspicions"]
    assert any("lack their decay" in suspicion for suspicion in suspicions)


def test_poles_without_gamma_are_named() -> None:
    model = StripedHyena2.from_seed(replace(NANO.config, width=128), seed=0)
    assert not gamma_is_missing(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("log_poles_DS"):
                parameter.fill_(-1).sub_(torch.rand_like(parameter) * 0.01).div_(2.718)
    assert gamma_is_missing(model)


def test_lost_interpolation_is_named() -> None:
    shape = published_config("evo2_7b")
    assert not lost_interpolation(shape)
    assert lost_interpolation(replace(shape, rotary_scale=1, base_context=None))
    assert not lost_interpolation(published_config("evo2_7b_base"))
    assert not lost_interpolation(NANO.config)


def test_rounded_frequencies_are_named(tmp_path: Path) -> None:
    wrong = changed("inverse_frequency", lambda radians: radians.bfloat16().float())
    native.write(wrong, tmp_path / "wrong")
    suspicions = verify(str(tmp_path / "wrong"), tmp_path / "wrong")["suspicions"]
    assert suspicions == [
        "its rotary frequencies are rounded to bf16, as in the released 1B and 7B models"
    ]


def test_the_line_says_what_was_compared(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["convert", "nano", str(tmp_path / "out"), "--verify"])
    assert result.exit_code == 0, result.stderr
    assert "evo2: verified: loss 1." in result.stderr
    assert "logits differ by at most 0.0e+00" in result.stderr
    assert verification.WINDOWS.is_file()
