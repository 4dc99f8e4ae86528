"""Trainer, adapters of PEFT and pipelines work on the classes as on any other."""

import copy
import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    DataCollatorForLanguageModeling,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
    pipeline,
)

from evo2cli.hf import (
    TARGET_MODULES,
    Evo2Config,
    Evo2ForCausalLM,
    Evo2ForSequenceClassification,
    Evo2Model,
    Evo2Tokenizer,
)
from stripedhyena2 import ModelConfig, StripedHyena2

# PEFT 0.21 asks transformers 5.24 by names that it has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.*_gradient_checkpointing. is deprecated")

UNIT = "ACGTTGCATTACGGATTTGACCA"
SEQUENCES = [UNIT * 3, UNIT * 2, UNIT * 4, UNIT]


def arguments(folder: Path, **values: Any) -> TrainingArguments:
    settings = {
        "learning_rate": 1e-2, "per_device_train_batch_size": 2, "report_to": "none",
        "logging_steps": 1, "save_strategy": "no", "use_cpu": True, "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }  # fmt: skip
    return TrainingArguments(str(folder), **{**settings, **values})


def losses(trainer: Trainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.fixture
def fresh(model: StripedHyena2, tiny_config: ModelConfig) -> Evo2ForCausalLM:
    return Evo2ForCausalLM(Evo2Config.from_shape(tiny_config), copy.deepcopy(model))


@pytest.fixture
def folder(fresh: Evo2ForCausalLM, tmp_path: Path) -> str:
    fresh.save_pretrained(tmp_path / "base")
    return str(tmp_path / "base")


def adapted(model: Any, **values: Any) -> Any:
    settings = {"r": 2, "lora_alpha": 8, "target_modules": list(TARGET_MODULES)}
    return peft.get_peft_model(model, peft.LoraConfig(**{**settings, **values}))


def test_the_target_modules_are_all_linear_layers(fresh: Evo2ForCausalLM) -> None:
    linear = {name for name, module in fresh.named_modules() if type(module) is torch.nn.Linear}
    assert {name.rpartition(".")[2] for name in linear} == set(TARGET_MODULES)
    by_name = adapted(copy.deepcopy(fresh), task_type="CAUSAL_LM")
    everything = adapted(fresh, task_type="CAUSAL_LM", target_modules="all-linear")
    assert set(by_name.targeted_module_names) == set(everything.targeted_module_names) == linear


@pytest.mark.parametrize("recomputed", [False, True])
def test_every_adapter_weight_has_a_gradient(fresh: Evo2ForCausalLM, recomputed: bool) -> None:
    if recomputed:
        fresh.activation_checkpointing_enable()
    model = adapted(fresh, task_type="CAUSAL_LM", init_lora_weights=False).train()
    ids = torch.tensor([list(SEQUENCES[0].encode())])
    model(input_ids=ids, labels=ids).loss.backward()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert len(trained) == 2 * 5 * fresh.config.num_hidden_layers
    for name, parameter in trained.items():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.abs().max() > 0), name


def test_an_adapter_is_used_in_generation(fresh: Evo2ForCausalLM, tokenizer: Evo2Tokenizer) -> None:
    torch.manual_seed(0)
    model = adapted(fresh, task_type="CAUSAL_LM", init_lora_weights=False)
    batch = tokenizer(SEQUENCES, return_tensors="pt", padding=True)
    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
    found = model.generate(**batch, **options)
    assert torch.equal(found, model.generate(**batch, **options, use_cache=False))
    with model.disable_adapter():
        assert not torch.equal(found, model.generate(**batch, **options))


def test_trainer_lowers_the_loss_and_resumes(
    fresh: Evo2ForCausalLM, tokenizer: Evo2Tokenizer, tmp_path: Path
) -> None:
    start = copy.deepcopy(fresh)
    data = [tokenizer(sequence) for sequence in SEQUENCES]
    collator = DataCollatorForLanguageModeling(tokenizer, mlm=False)

    def trainer(model: Evo2ForCausalLM, **values: Any) -> Trainer:
        settings = arguments(tmp_path / "run", max_steps=8, **values)
        return Trainer(
            model, settings, train_dataset=data, eval_dataset=data, data_collator=collator,
            processing_class=tokenizer,
        )  # fmt: skip

    whole = trainer(fresh, save_strategy="steps", save_steps=4, activation_checkpointing=True)
    whole.train()
    assert losses(whole)[-1] < losses(whole)[0] - 0.5
    assert whole.evaluate()["eval_loss"] < losses(whole)[0]
    checkpoint = tmp_path / "run" / "checkpoint-4"
    assert "embedding_layer.weight" in load_file(checkpoint / "model.safetensors")
    again = trainer(start)
    again.train(resume_from_checkpoint=str(checkpoint))
    for name, tensor in fresh.state_dict().items():
        torch.testing.assert_close(start.state_dict()[name], tensor, rtol=1e-4, atol=1e-5)


def test_an_adapter_lowers_the_loss_and_is_loaded_again(
    folder: str, tokenizer: Evo2Tokenizer, tmp_path: Path
) -> None:
    model = adapted(AutoModelForCausalLM.from_pretrained(folder), task_type="CAUSAL_LM")
    trainer = Trainer(
        model,
        arguments(tmp_path / "run", max_steps=10, activation_checkpointing=True),
        train_dataset=[tokenizer(sequence) for sequence in SEQUENCES],
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
    )
    trainer.train()
    assert losses(trainer)[-1] < losses(trainer)[0] - 0.2
    model.save_pretrained(tmp_path / "adapter")
    described = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert described["base_model_name_or_path"] == folder
    names = load_file(tmp_path / "adapter" / "adapter_model.safetensors").keys()
    assert "base_model.model.model.blocks.3.mixer.project_in.lora_A.weight" in names

    ids = torch.tensor([list(SEQUENCES[0].encode())])
    base = AutoModelForCausalLM.from_pretrained(folder)
    loaded = peft.PeftModel.from_pretrained(base, tmp_path / "adapter")
    by_path = AutoModelForCausalLM.from_pretrained(tmp_path / "adapter")
    with torch.no_grad():
        right = model.eval()(ids).logits
        assert torch.equal(loaded(ids).logits, right)
        assert torch.equal(by_path(ids).logits, right)
        merged = loaded.merge_and_unload()
        merged.save_pretrained(tmp_path / "merged")
        again = Evo2ForCausalLM.from_pretrained(tmp_path / "merged")
        torch.testing.assert_close(again(ids).logits, right, rtol=1e-4, atol=1e-4)


def test_a_classifier_with_an_adapter_learns_and_is_loaded_again(
    folder: str, tokenizer: Evo2Tokenizer, tmp_path: Path
) -> None:
    base = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2)
    model = adapted(base, task_type="SEQ_CLS")
    assert model.base_model.model.score.weight is not None
    data = [{**tokenizer(UNIT[k:] * 2 + "AC"[k % 2] * 5), "labels": k % 2} for k in range(8)]
    trainer = Trainer(
        model,
        arguments(tmp_path / "run", max_steps=20),
        train_dataset=data,
        data_collator=DataCollatorWithPadding(tokenizer),
    )
    trainer.train()
    assert losses(trainer)[-1] < 0.3 < losses(trainer)[0]
    model.save_pretrained(tmp_path / "adapter")
    again = peft.PeftModel.from_pretrained(
        Evo2ForSequenceClassification.from_pretrained(folder, num_labels=2), tmp_path / "adapter"
    )
    ids = torch.tensor([data[0]["input_ids"]])
    with torch.no_grad():
        assert torch.equal(again(ids).logits, model.eval()(ids).logits)


def test_pipelines(fresh: Evo2ForCausalLM, tokenizer: Evo2Tokenizer) -> None:
    write = pipeline("text-generation", model=fresh, tokenizer=tokenizer, device="cpu")
    options = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None}
    found = write(["ACGTAC", "GAT"], batch_size=2, return_tensors=True, **options)
    for prompt, (sample,) in zip(["ACGTAC", "GAT"], found, strict=True):
        (ours,) = fresh.model.generate(prompt, num_tokens=5, top_k=1, alphabet="any")
        assert tuple(sample["generated_token_ids"][-5:]) == ours.ids
    assert write("ACGTAC", **options)[0]["generated_text"].startswith("ACGTAC")

    base = Evo2Model(fresh.config, fresh.model)
    read = pipeline("feature-extraction", model=base, tokenizer=tokenizer, device="cpu")
    (features,) = read("ACGTAC")
    right = fresh.model.embed(["ACGTAC"], layers="norm", pool="none")["norm"][0]
    torch.testing.assert_close(torch.tensor(features), right, rtol=1e-5, atol=1e-5)
