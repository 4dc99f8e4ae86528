"""The classes of transformers have our model's numbers: padded, cached, generated, saved."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from evo2cli.errors import UserError
from evo2cli.hf import (
    Evo2Cache,
    Evo2Config,
    Evo2ForCausalLM,
    Evo2ForSequenceClassification,
    Evo2ForTokenClassification,
    Evo2Model,
    Evo2Tokenizer,
    modeling,
)
from stripedhyena2 import ModelConfig, StripedHyena2, load

SEQUENCES = [
    "ACGTTGCATTACGGATTTGACCA" * 7,
    "T",
    "GATTACA" * 12,
    "ACGTTGCATTACGGATTTGACCA" * 7,
    "CG",
]
SIDES = ["left", "right"]


def close(found: Tensor, right: Tensor) -> None:
    torch.testing.assert_close(found, right, rtol=1e-9, atol=1e-9)


def ids_of(sequence: str) -> Tensor:
    return torch.tensor([list(sequence.encode())])


def padded(tokenizer: Evo2Tokenizer, side: str) -> dict[str, Tensor]:
    found = tokenizer(SEQUENCES, return_tensors="pt", padding=True, padding_side=side)
    return {name: found[name] for name in ("input_ids", "attention_mask")}


def head(kind: type, tiny_config: ModelConfig, tiny_model: StripedHyena2, **values: object):
    torch.manual_seed(0)
    return kind(Evo2Config.from_shape(tiny_config, **values), tiny_model).double().eval()


@torch.no_grad()
def test_logits_are_ours_to_the_bit(causal: Evo2ForCausalLM) -> None:
    ids = ids_of(SEQUENCES[0])
    assert torch.equal(causal(ids).logits, causal.model(ids))
    assert torch.equal(causal(inputs_embeds=causal.model.embedding(ids)).logits, causal.model(ids))
    kept = causal(ids, logits_to_keep=3).logits
    close(kept, causal.model(ids)[:, -3:])


@pytest.mark.parametrize("side", SIDES)
@torch.no_grad()
def test_padding_changes_nothing(
    causal: Evo2ForCausalLM, tokenizer: Evo2Tokenizer, side: str
) -> None:
    batch = padded(tokenizer, side)
    for cache in (None, Evo2Cache(), Evo2Cache(capacity=500)):
        found = causal(**batch, cache=cache, output_hidden_states=True)
        for row, sequence in enumerate(SEQUENCES):
            alone = causal(ids_of(sequence), output_hidden_states=True)
            real = batch["attention_mask"][row].bool()
            close(found.logits[row, real], alone.logits[0])
            for state, right in zip(found.hidden_states, alone.hidden_states, strict=True):
                close(state[row, real], right[0])


@torch.no_grad()
def test_padding_may_stand_anywhere(causal: Evo2ForCausalLM) -> None:
    mask = torch.tensor([[0, 1, 0, 0, 1, 1, 0, 1, 0]])
    ids = torch.where(mask == 1, torch.arange(65, 74), 1)
    close(
        causal(ids, attention_mask=mask).logits[mask == 1], causal(ids[mask == 1][None]).logits[0]
    )


@torch.no_grad()
def test_hidden_states_are_embeddings_blocks_and_the_final_norm(causal: Evo2ForCausalLM) -> None:
    sequence = SEQUENCES[2]
    states = causal(ids_of(sequence), output_hidden_states=True).hidden_states
    assert len(states) == causal.config.num_hidden_layers + 1
    right = causal.model.embed([sequence], layers="all", pool="none")
    names = ["embedding", *(f"blocks.{index}" for index in range(len(states) - 2)), "norm"]
    for state, name in zip(states, names, strict=True):
        close(state[0], right[name][0])
    base = Evo2Model(causal.config, causal.model)
    assert torch.equal(base(ids_of(sequence)).last_hidden_state, states[-1])


@pytest.mark.parametrize("capacity", [None, 200, 60])
@pytest.mark.parametrize("side", SIDES)
@torch.no_grad()
def test_in_pieces_is_whole(
    causal: Evo2ForCausalLM, tokenizer: Evo2Tokenizer, side: str, capacity: int | None
) -> None:
    """A prompt, single tokens, several at once, single ones again; rows of different lengths."""
    prompts = ["ACGTTGCATTACGGATTTGACCA" * 2, "T", "GATTACA"]
    new = torch.randint(65, 85, (3, 20), generator=torch.Generator().manual_seed(0))
    batch = tokenizer(prompts, return_tensors="pt", padding=True, padding_side=side)
    cache, mask = Evo2Cache(capacity), batch["attention_mask"]
    found = [causal(**batch, cache=cache, logits_to_keep=1).logits]
    start = 0
    for size in (1, 1, 1, 5, 1, 8, 1, 1):
        mask = torch.cat([mask, mask.new_ones(3, size)], dim=1)
        piece = new[:, start : start + size]
        found.append(causal(piece, attention_mask=mask, past_key_values=cache).logits)
        start += size
        assert cache.get_seq_length() == mask.shape[1]
    found_BNV = torch.cat(found, dim=1)
    for row, prompt in enumerate(prompts):
        whole = torch.cat([ids_of(prompt), new[row : row + 1, :start]], dim=1)
        close(found_BNV[row], causal(whole).logits[0, len(prompt) - 1 :])


@torch.no_grad()
def test_rows_of_a_cache_can_be_chosen(causal: Evo2ForCausalLM) -> None:
    prompts = torch.randint(65, 85, (3, 12))
    for capacity in (None, 30):
        cache = Evo2Cache(capacity)
        causal(prompts, cache=cache, logits_to_keep=1)
        cache.batch_select_indices(torch.tensor([2, 0, 2, 1]))
        new = torch.randint(65, 85, (4, 1))
        whole = torch.cat([prompts[[2, 0, 2, 1]], new], dim=1)
        close(causal(new, cache=cache).logits[:, 0], causal(whole).logits[:, -1])
        cache.batch_repeat_interleave(2)
        again = causal(new.repeat_interleave(2, 0), cache=cache).logits
        whole = torch.cat([whole, new], dim=1).repeat_interleave(2, 0)
        close(again[:, 0], causal(whole).logits[:, -1])


@pytest.mark.filterwarnings("ignore:.*right-padding was detected")
@pytest.mark.parametrize("side", SIDES)
def test_greedy_is_our_greedy(causal: Evo2ForCausalLM, tokenizer: Evo2Tokenizer, side: str) -> None:
    batch = padded(tokenizer, side)
    length = batch["input_ids"].shape[1]
    options = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None}
    ours = causal.model.generate(SEQUENCES, num_tokens=12, top_k=1, alphabet="any")
    found = causal.generate(**batch, **options)
    for row, sample in enumerate(ours):
        assert tuple(found[row, length:].tolist()) == sample.ids
    if side == "left":
        for other in ({"use_cache": False}, {"prefill_chunk_size": 50}):
            assert torch.equal(found, causal.generate(**batch, **options, **other))


def test_generate_samples_returns_and_beams(causal: Evo2ForCausalLM) -> None:
    ids = ids_of("ACGTTGCA").repeat(2, 1)
    torch.manual_seed(1)
    options = {"max_new_tokens": 8, "eos_token_id": None}
    sampled = causal.generate(ids, do_sample=True, top_k=4, num_return_sequences=2, **options)
    assert sampled.shape == (4, 16)
    assert len({tuple(row.tolist()) for row in sampled}) > 1
    full = causal.generate(
        ids, do_sample=False, return_dict_in_generate=True, output_scores=True,
        output_hidden_states=True, **options,
    )  # fmt: skip
    with torch.no_grad():
        right = causal(full.sequences).logits[:, 7:-1]
    found = torch.stack(full.scores, dim=1)  # transformers keeps fp32
    torch.testing.assert_close(found, right.float(), rtol=1e-5, atol=1e-5)
    assert len(full.hidden_states) == 8
    assert full.cache.get_seq_length() == 15
    more = causal.generate(full.sequences, cache=full.cache, **options)
    once = causal.generate(ids, do_sample=False, max_new_tokens=16, eos_token_id=None)
    assert torch.equal(more, once)
    beams = [
        causal.generate(ids, num_beams=3, do_sample=False, use_cache=use_cache, **options)
        for use_cache in (True, False)
    ]
    assert torch.equal(*beams)


def test_a_hook_is_heard_in_generation(causal: Evo2ForCausalLM) -> None:
    ids = ids_of("ACGTTGCA")
    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
    plain = causal.generate(ids, **options)
    hook = causal.model.blocks[2].register_forward_hook(lambda _m, _i, out: (-3 * out[0], out[1]))
    with hook:
        steered = causal.generate(ids, **options)
        assert torch.equal(steered, causal.generate(ids, **options, use_cache=False))
    assert not torch.equal(steered, plain)


def test_the_loss_is_the_mean_over_predicted_tokens(
    causal: Evo2ForCausalLM, tokenizer: Evo2Tokenizer
) -> None:
    sequences = [sequence for sequence in SEQUENCES if len(sequence) > 1]
    terms = torch.cat(causal.model.score(sequences, reduce="none"))
    for side in SIDES:
        batch = tokenizer(sequences, return_tensors="pt", padding=True, padding_side=side)
        loss = causal(**batch, labels=batch["input_ids"]).loss
        torch.testing.assert_close(loss.double(), -terms.mean(), rtol=1e-6, atol=1e-6)
    ids = ids_of("ACGTACGTAC")
    labels = ids.masked_fill(torch.arange(10) % 2 == 0, -100)
    first = causal.model.score(["ACGTACGTAC"], reduce="none")[0]
    loss = causal(ids, labels=labels).loss
    torch.testing.assert_close(loss.double(), -first[::2].mean(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("num_labels", "labels"),
    [
        (1, torch.tensor([0.5, -1.0, 2.0, 0.0, 1.0])),
        (3, torch.tensor([0, 2, 1, 1, 0])),
        (3, torch.eye(5, 3)),
    ],
    ids=["regression", "single_label_classification", "multi_label_classification"],
)
def test_a_sequence_is_classified_by_its_last_token(
    tiny_config: ModelConfig,
    tiny_model: StripedHyena2,
    tokenizer: Evo2Tokenizer,
    num_labels: int,
    labels: Tensor,
    request: pytest.FixtureRequest,
) -> None:
    kind = Evo2ForSequenceClassification
    model = head(kind, tiny_config, tiny_model, num_labels=num_labels)
    last = model.model.embed(SEQUENCES, layers="norm", pool="last")["norm"]
    right = model.score(last)
    for side in SIDES:
        batch = padded(tokenizer, side)
        found = model(**batch, labels=labels)
        close(found.logits, right)
        close(model(batch["input_ids"]).logits, right)
        assert model.config.problem_type == request.node.callspec.id
        assert torch.isfinite(found.loss)


def test_tokens_are_classified(
    tiny_config: ModelConfig, tiny_model: StripedHyena2, tokenizer: Evo2Tokenizer
) -> None:
    model = head(Evo2ForTokenClassification, tiny_config, tiny_model, num_labels=3)
    losses = []
    for side in SIDES:
        batch = padded(tokenizer, side)
        found = model(**batch, labels=batch["input_ids"] % 3)
        for row, sequence in enumerate(SEQUENCES):
            real = batch["attention_mask"][row].bool()
            close(found.logits[row, real], model(ids_of(sequence)).logits[0])
        losses.append(found.loss)
    torch.testing.assert_close(*losses)  # which transformers computes in fp32


@pytest.mark.parametrize("recomputed", [False, True])
def test_every_parameter_has_the_gradient_of_our_model(
    tiny_config: ModelConfig, tiny_model: StripedHyena2, recomputed: bool
) -> None:
    causal = Evo2ForCausalLM(Evo2Config.from_shape(tiny_config)).double().train()
    causal.model.load_state_dict(tiny_model.state_dict())
    ids = ids_of(SEQUENCES[2])
    logits = causal.model(ids)[0, :-1].float()
    torch.nn.functional.cross_entropy(logits, ids[0, 1:]).backward()
    right = {name: parameter.grad for name, parameter in causal.named_parameters()}
    causal.zero_grad()
    if recomputed:
        causal.activation_checkpointing_enable()
    causal(ids, labels=ids).loss.backward()
    assert causal.model.activation_checkpointing == int(recomputed)
    assert causal.is_activation_checkpointing == recomputed
    for name, parameter in causal.named_parameters():
        close(parameter.grad, right[name])


def test_saved_and_loaded_is_the_same_to_the_bit(
    model: StripedHyena2, tiny_config: ModelConfig, tmp_path: Path
) -> None:
    causal = Evo2ForCausalLM(Evo2Config.from_shape(tiny_config), model)
    causal.save_pretrained(tmp_path / "hf")
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    assert isinstance(found, Evo2ForCausalLM)
    assert not found.training
    assert found.config.shape == tiny_config
    for loaded in (found.model, load(tmp_path / "hf")):
        for name, tensor in model.state_dict().items():
            assert torch.equal(loaded.state_dict()[name], tensor), name
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert tokenizer("ACGTacgtN")["input_ids"] == list(b"ACGTacgtN")
    assert AutoConfig.from_pretrained(tmp_path / "hf").num_hidden_layers == tiny_config.depth
    assert (tmp_path / "hf" / "README.md").read_text().startswith("---\nlibrary_name")

    causal.save_pretrained(tmp_path / "again", state_dict=found.state_dict(), max_shard_size="20KB")
    assert len(list((tmp_path / "again").glob("*.safetensors"))) > 1
    sharded = Evo2ForCausalLM.from_pretrained(tmp_path / "again")
    for name, tensor in found.state_dict().items():
        assert torch.equal(sharded.state_dict()[name], tensor), name


def test_the_tensors_of_a_folder_load_as_a_state(
    model: StripedHyena2, tiny_config: ModelConfig, tmp_path: Path
) -> None:
    """`Trainer` resumes so, and would not notice names that nothing takes."""
    config = Evo2Config.from_shape(tiny_config, num_labels=3)
    kind = Evo2ForSequenceClassification
    saved, fresh = kind(config, model), kind(config)
    saved.save_pretrained(tmp_path)
    keys = fresh.load_state_dict(load_file(tmp_path / "model.safetensors"), strict=False)
    assert not keys.missing_keys
    assert not keys.unexpected_keys
    for name, tensor in saved.state_dict().items():
        assert torch.equal(fresh.state_dict()[name], tensor), name


def test_a_head_is_saved_and_loaded(
    model: StripedHyena2, tiny_config: ModelConfig, tmp_path: Path, caplog
) -> None:
    config = Evo2Config.from_shape(tiny_config, num_labels=3)
    saved = Evo2ForTokenClassification(config, model)
    saved.save_pretrained(tmp_path)
    found = Evo2ForTokenClassification.from_pretrained(tmp_path)
    ids = ids_of("ACGT")
    assert torch.equal(found(ids).logits, saved.eval()(ids).logits)
    assert not caplog.records
    with pytest.raises(UserError, match=r"score\.weight has shape \[3, 24\].*needs \[5, 24\]"):
        Evo2ForTokenClassification.from_pretrained(tmp_path, num_labels=5)
    _, missing = Evo2ForTokenClassification.from_pretrained(
        tmp_path, num_labels=5, ignore_mismatched_sizes=True, output_loading_info=True
    )
    assert missing["missing_keys"] == {"score.weight", "score.bias"}
    assert Evo2ForCausalLM.from_pretrained(tmp_path).config.shape == tiny_config
    assert "newly initialized" in caplog.text


def test_any_checkpoint_is_loaded(checkpoint: str) -> None:
    ours = load(checkpoint)
    ids = ids_of("ACGTTGCA")
    for device_map in (None, "auto", "cpu", {"": "cpu"}):
        found = Evo2ForCausalLM.from_pretrained(checkpoint, device_map=device_map)
        assert torch.equal(found(ids).logits, ours(ids))
    narrow = Evo2ForCausalLM.from_pretrained(checkpoint, dtype=torch.bfloat16)
    assert narrow.dtype == torch.bfloat16
    assert narrow.config.dtype == torch.bfloat16
    assert narrow.model.mixers[2].operator.log_poles_DS.dtype == torch.float32
    head = Evo2ForSequenceClassification.from_pretrained(checkpoint, num_labels=4, dtype="bfloat16")
    assert head(ids).logits.shape == (1, 4)
    assert head.score.weight.dtype == torch.bfloat16


def test_poles_stay_wide_when_a_model_is_narrowed(checkpoint: str) -> None:
    ids = ids_of("ACGTTGCA" * 9)
    right = load(checkpoint, dtype=torch.bfloat16)(ids)
    for narrow in (
        Evo2ForCausalLM.from_pretrained(checkpoint).to(torch.bfloat16),
        Evo2ForCausalLM.from_pretrained(checkpoint).bfloat16(),
    ):
        assert torch.equal(narrow(ids).logits, right)
    made = AutoModelForCausalLM.from_config(narrow.config, dtype=torch.bfloat16)
    assert made.dtype == torch.bfloat16
    assert made.model.mixers[2].operator.log_poles_DS.dtype == torch.float32


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"device_map": {"model": 0, "": 1}}, "device_map = .*give one device, or auto"),
        ({"dtype": "int8"}, "dtype = 'int8': give float32"),
        ({"dtype": torch.float16}, "float16 cannot hold the activations"),
        ({"quantization_config": {}}, "quantization_config is not supported for Evo 2"),
        ({"num_heds": 3}, "from_pretrained has no argument 'num_heds'"),
        ({"config": Evo2Config()}, "the given config and the checkpoint differ in shape"),
    ],
)
def test_an_impossible_loading_is_refused(
    checkpoint: str, values: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        Evo2ForCausalLM.from_pretrained(checkpoint, **values)


def test_a_repository_that_is_nowhere_is_one_line() -> None:
    with pytest.raises(
        UserError, match=r"^nobody/nothing: no such file or folder, and not available"
    ):
        Evo2ForCausalLM.from_pretrained("nobody/nothing", local_files_only=True)


def test_what_would_change_results_is_refused(causal: Evo2ForCausalLM) -> None:
    ids = ids_of("ACGT")
    for values, message in (
        ({"position_ids": ids}, "position_ids cannot be given"),
        ({"output_attentions": True}, "output_attentions is not supported"),
        (
            {"attention_mask": torch.ones(1, 1, 4, 4)},
            r"attention_mask has the shape \[1, 1, 4, 4\]",
        ),
        ({"cache": ((ids, ids),)}, "the cache is a tuple"),
    ):
        with pytest.raises(UserError, match=message):
            causal(ids, **values)
    with pytest.raises(UserError, match="512 tokens, not 600"):
        causal.resize_token_embeddings(600)
    assert causal.resize_token_embeddings(512) is causal.get_input_embeddings()
    assert causal.get_output_embeddings().weight is causal.get_input_embeddings().weight
    with pytest.raises(UserError, match="cache_implementation = 'static'"):
        causal.generate(ids, max_new_tokens=2, cache_implementation="static")
    mask = torch.tensor([[1] * 4, [0] * 4])
    with pytest.raises(ValueError, match="row 1 has only padding"):
        causal.generate(ids.repeat(2, 1), attention_mask=mask, max_new_tokens=2)
    with pytest.raises(ValueError, match="assisted generation is not supported"):
        causal.generate(ids, assistant_model=causal, max_new_tokens=2)


@pytest.mark.parametrize("kind", [Evo2ForCausalLM, Evo2ForTokenClassification, Evo2Model])
def test_ids_outside_the_vocabulary_are_one_line(
    kind: type, tiny_config: ModelConfig, tiny_model: StripedHyena2
) -> None:
    model = head(kind, tiny_config, tiny_model)
    for value in (-1, 512, 10**12):
        ids = ids_of("ACGTACGT").repeat(2, 1)
        ids[1, 5] = value
        message = rf"^token id {value} at \[1, 5\]: must be from 0 to 511$"
        for values in ({}, {"attention_mask": torch.ones_like(ids)}):
            with pytest.raises(ValueError, match=message):
                model(ids, **values)
    with pytest.raises(ValueError, match=r"ids are torch.int64 of the shape \(8,\)"):
        model(ids[0])


def test_labels_out_of_range_are_one_line(
    causal: Evo2ForCausalLM, tiny_config: ModelConfig, tiny_model: StripedHyena2
) -> None:
    ids = ids_of("ACGT")
    labels = torch.tensor([[-100, 67, 512, 84]])
    with pytest.raises(ValueError, match=r"label 512 at \[0, 2\]: must be from 0 to 511, or -100"):
        causal(ids, labels=labels)
    tokens = head(Evo2ForTokenClassification, tiny_config, tiny_model, num_labels=3)
    with pytest.raises(ValueError, match=r"label 3 at \[0, 1\]: must be from 0 to 2, or -100"):
        tokens(ids, labels=torch.tensor([[-100, 3, 0, 1]]))
    whole = head(Evo2ForSequenceClassification, tiny_config, tiny_model, num_labels=3)
    with pytest.raises(ValueError, match=r"label -1 at \[0\]: must be from 0 to 2, or -100"):
        whole(ids, labels=torch.tensor([-1]))
    assert torch.isfinite(whole(ids, labels=torch.tensor([2])).loss)


def test_a_step_of_training_does_not_wait_for_the_gpu(
    causal: Evo2ForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ids on a GPU are read back in evaluation, or where a mask is read in any case."""
    read: list[bool] = []
    monkeypatch.setattr(modeling, "check_range", lambda *_, **__: read.append(True))
    on_gpu = SimpleNamespace(is_cuda=True)
    for training, mask, is_read in ((True, None, 0), (False, None, 1), (True, ids_of("A"), 1)):
        read.clear()
        causal.train(training)._check(on_gpu, 512, "token id", mask)
        assert len(read) == is_read
