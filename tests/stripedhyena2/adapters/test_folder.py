"""Folders of adapters: ours are those of the package `peft`, in both directions."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from stripedhyena2 import CheckpointError, ModelConfig, StripedHyena2
from stripedhyena2.adapters import (
    Adapter,
    LoRA,
    adapter_tensors,
    add_adapters,
    is_adapter,
    read_adapter,
    write_adapter,
)
from stripedhyena2.adapters.lora import target_names
from stripedhyena2.fingerprint import fingerprint
from tests.stripedhyena2.adapters.test_lora import IDS, randomize

KINDS = [LoRA(rank=3), LoRA(rank=3, alpha=5, rslora=True), LoRA(rank=3, dora=True)]


class Holder(nn.Module):
    """Holds the model where our class for Hugging Face does."""

    def __init__(self, model: StripedHyena2) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids_BL: Tensor) -> Tensor:
        logits: Tensor = self.model(ids_BL)
        return logits


def make_base(config: ModelConfig) -> StripedHyena2:
    return StripedHyena2.from_seed(config, 3).eval()


@pytest.fixture(params=KINDS, ids=["lora", "rslora", "dora"])
def trained(request: pytest.FixtureRequest, tiny_config: ModelConfig) -> tuple[Adapter, Tensor]:
    """An adapter on some modules, and the outputs of the model that has it."""
    model = make_base(tiny_config)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    names = target_names(tiny_config, ".*project_(in|out)|.*down")
    add_adapters(model, request.param, names)
    randomize(model)
    adapter = Adapter(request.param, adapter_tensors(model), "x", fingerprint(tiny_config, weights))
    return adapter, model(IDS)


def test_a_round_trip_is_exact(
    trained: tuple[Adapter, Tensor], tiny_config: ModelConfig, tmp_path: Path
) -> None:
    adapter, outputs = trained
    write_adapter(adapter, tmp_path)
    assert is_adapter(tmp_path)
    config, weights = sorted(tmp_path.iterdir())
    assert weights.stat().st_mode == config.stat().st_mode  # whoever may read one may read both
    found = read_adapter(tmp_path)
    assert (found.base, found.base_fingerprint) == ("x", adapter.base_fingerprint)
    torch.testing.assert_close(found.tensors, adapter.tensors, rtol=0, atol=0)
    model = make_base(tiny_config)
    found.check_base(tiny_config, model.state_dict(), "it")
    found.put_on(model)
    torch.testing.assert_close(model(IDS), outputs)


def test_peft_computes_the_same(
    trained: tuple[Adapter, Tensor], tiny_config: ModelConfig, tmp_path: Path
) -> None:
    peft = pytest.importorskip("peft")
    adapter, outputs = trained
    write_adapter(adapter, tmp_path)
    loaded = peft.PeftModel.from_pretrained(Holder(make_base(tiny_config)), tmp_path)
    torch.testing.assert_close(loaded(IDS), outputs, rtol=1e-4, atol=1e-4)
    merged = loaded.merge_and_unload()
    torch.testing.assert_close(merged(IDS), outputs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("lora", KINDS, ids=["lora", "rslora", "dora"])
def test_what_peft_writes_is_read(lora: LoRA, tiny_config: ModelConfig, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        use_rslora=lora.rslora,
        use_dora=lora.dora,
        target_modules=["project_in", "up"],
    )
    theirs = peft.get_peft_model(Holder(make_base(tiny_config)), config).eval()
    for name, parameter in theirs.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.2)
    theirs.save_pretrained(tmp_path)
    adapter = read_adapter(tmp_path)
    model = make_base(tiny_config)
    adapter.check_base(tiny_config, model.state_dict(), "it")
    adapter.put_on(model)
    torch.testing.assert_close(model(IDS), theirs(IDS), rtol=1e-4, atol=1e-4)


def test_another_base_is_refused(trained: tuple[Adapter, Tensor], tiny_config: ModelConfig) -> None:
    adapter, _ = trained
    other = StripedHyena2.from_seed(tiny_config, 4)
    with pytest.raises(CheckpointError, match=r"it: belongs to the model x .*use it with x"):
        adapter.check_base(tiny_config, other.state_dict(), "it")


def test_damaged_folders_are_refused_in_one_line(
    trained: tuple[Adapter, Tensor], tmp_path: Path
) -> None:
    adapter, _ = trained
    with pytest.raises(CheckpointError, match="not a complete adapter"):
        read_adapter(tmp_path)
    write_adapter(adapter, tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    for change, message in (
        ({"peft_type": "IA3"}, "is IA3"),
        ({"rank_pattern": {"up": 8}}, "rank_pattern"),
    ):
        (tmp_path / "adapter_config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(CheckpointError, match=message):
            read_adapter(tmp_path)
