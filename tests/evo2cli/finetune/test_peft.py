"""Adapters go to `peft` on our class for Hugging Face, and come back."""

from pathlib import Path

import peft
import pytest
import torch
from torch import nn

from evo2cli.hf import TARGET_MODULES, Evo2ForCausalLM
from evo2cli.models import open_model
from evo2cli.options import ModelOptions
from tests.evo2cli.finetune.conftest import Run, small_table

# PEFT 0.21 asks transformers 5.24 by names that it has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.*_gradient_checkpointing. is deprecated")

IDS = torch.tensor([list(b"ACGTTGCAACGGTTACCAGT")])


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
def test_peft_computes_with_what_was_trained(
    tune: Run, base: str, tmp_path: Path, dora: bool
) -> None:
    tune(small_table(tmp_path / "x.tsv", "classify"), method="lora", lr=1e-2, dora=dora)
    ours = open_model(ModelOptions(model=base, adapter=tmp_path / "run", device="cpu"))
    theirs = Evo2ForCausalLM.from_pretrained(base).eval()
    before = theirs(IDS).logits
    adapted = peft.PeftModel.from_pretrained(theirs, tmp_path / "run" / "final" / "adapter")
    found = adapted(IDS).logits
    assert (found - before).abs().max() > 1e-3
    torch.testing.assert_close(found, ours(IDS), rtol=0, atol=1e-4)


def test_what_peft_trained_serves_as_an_adapter(base: str, tmp_path: Path) -> None:
    config = peft.LoraConfig(r=2, lora_alpha=8, target_modules=list(TARGET_MODULES))
    theirs = peft.get_peft_model(Evo2ForCausalLM.from_pretrained(base), config).eval()
    for name, parameter in theirs.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.1)
    theirs.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    ours = open_model(ModelOptions(model=base, adapter=tmp_path / "adapter", device="cpu"))
    torch.testing.assert_close(ours(IDS), theirs(IDS).logits, rtol=0, atol=1e-4)
