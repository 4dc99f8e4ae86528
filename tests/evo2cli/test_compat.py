"""The interface of the reference package gives the reference's numbers, without its defects."""

import json
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from evo2cli.compat import Evo2
from stripedhyena2 import InputError, load

MODELS = ["tiny-7b-1m", "tiny-1b-base", "tiny-40b-1m"]
TOLERANCE = 1e-4


@cache
def opened(folder: Path, copies: Path) -> tuple[Evo2, dict[str, Any], dict[str, Tensor]]:
    shutil.copy(folder / "weights.safetensors", copies / "weights.safetensors")
    shutil.copy(folder / "config.yml", copies / "weights.yml")
    model = Evo2("golden", str(copies / "weights.safetensors"))
    fp32 = load(copies / "weights.safetensors").to(model.device)  # on a GPU it is bf16
    model.model = fp32.requires_grad_(False)
    facts = json.loads((folder / "golden.json").read_text())
    return model, facts, load_file(folder / "golden.safetensors")


@pytest.fixture(scope="module", params=MODELS)
def golden(
    request: pytest.FixtureRequest, shared: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Evo2, dict[str, Any], dict[str, Tensor]]:
    return opened(shared / "goldens" / request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def nano() -> Evo2:
    return Evo2("nano")


def assert_near(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found.cpu().float(), expected, rtol=0, atol=TOLERANCE)


def test_logits_and_embeddings(golden: Any) -> None:
    model, facts, tensors = golden
    prompt = facts["embeddings"]["prompt"]
    layers = [key.split("/")[2] for key in tensors if key.startswith(f"emb/{prompt}/")]
    assert {"norm", "blocks.0.projections", "blocks.1.mlp.l3"} <= set(layers)
    text = facts["prompts"][prompt]
    ids = torch.tensor(model.tokenizer.tokenize(text), dtype=torch.int)[None]
    assert torch.equal(ids[0], tensors[f"ids/{prompt}"])
    outputs, embeddings = model(ids, return_embeddings=True, layer_names=[*layers, "unembed"])
    assert list(embeddings) == [*layers, "unembed"]
    assert_near(outputs[0][0], tensors[f"logits/{prompt}"])
    assert torch.equal(embeddings["unembed"], outputs[0])
    rows = tensors[f"emb_rows/{prompt}"].long()
    for layer in layers:
        assert_near(embeddings[layer][0, rows], tensors[f"emb/{prompt}/{layer}"])
    outputs, embeddings = model(ids)
    assert_near(outputs[0][0], tensors[f"logits/{prompt}"])
    assert embeddings is None


@pytest.mark.parametrize("reduce", ["mean", "sum"])
def test_scores_whatever_the_batch_size(golden: Any, reduce: str) -> None:
    model, facts, _ = golden
    scoring = facts["scoring"]
    cases = {
        (False, False): scoring["single"][reduce],
        (True, False): scoring["single"][f"{reduce}_bos"],
        (False, True): scoring["rc_average_single"][reduce],
    }
    for (prepend_bos, average_reverse_complement), expected in cases.items():
        found = model.score_sequences(
            scoring["sequences"],
            batch_size=4,
            prepend_bos=prepend_bos,
            reduce_method=reduce,
            average_reverse_complement=average_reverse_complement,
        )
        assert found == pytest.approx(expected, abs=1e-4 if reduce == "mean" else 2e-3)


def test_greedy_generation(golden: Any) -> None:
    model, facts, tensors = golden
    run = facts["generation"]
    found = model.generate([run["prompt"]], n_tokens=run["n_tokens"], temperature=1.0, top_k=1)
    assert found.sequences == [run["text"]]
    assert found.logprobs_mean == pytest.approx([run["logprobs_mean"]], abs=TOLERANCE)
    (logits,) = found.logits
    assert logits.shape == (1, *tensors["gen/logits"].shape)
    assert_near(logits[0], tensors["gen/logits"])


def test_generation_follows_the_global_seed_and_shapes_the_batches(nano: Evo2) -> None:
    prompts = ["ACGT", "GGCC", "TTAA"]
    torch.manual_seed(1)
    first = nano.generate(prompts, n_tokens=12, verbose=0)
    torch.manual_seed(1)
    again = nano.generate(prompts, n_tokens=12, verbose=0)
    other = nano.generate(prompts, n_tokens=12, verbose=0)
    assert first.sequences == again.sequences != other.sequences
    assert [logits.shape for logits in first.logits] == [(3, 12, 512)]
    for prompt_seqs, batched in ((prompts, False), (["ACG", "T"], True)):
        found = nano.generate(prompt_seqs, n_tokens=3, batched=batched)
        assert [logits.shape for logits in found.logits] == [(1, 3, 512)] * len(prompt_seqs)
    greedy = nano.generate(["ACGT"], n_tokens=3, top_k=1).sequences
    for more in ({"temperature": 0.0}, {"temperature": 0.0, "top_p": 0.0}):
        assert nano.generate(["ACGT"], n_tokens=3, **more).sequences == greedy


def test_the_tokenizer_is_bytes(nano: Evo2) -> None:
    assert nano.tokenizer.tokenize("ACGTN|a") == [65, 67, 71, 84, 78, 124, 97]
    assert nano.tokenizer.detokenize([65, 0, 31, 32, 300]) == "A   Ĭ"
    assert nano.tokenizer.detokenize(torch.tensor([67, 71])) == "CG"
    tokenizer = nano.tokenizer
    assert (tokenizer.vocab_size, tokenizer.eod, tokenizer.eos, tokenizer.pad) == (512, 0, 0, 1)


def test_case_matters_as_in_the_reference(nano: Evo2) -> None:
    upper, lower = nano.score_sequences(["ACGTACGT", "acgtacgt"])
    assert upper == nano.model.score(["acgtacgt"])[0] != lower


def test_a_native_folder_brings_its_own_shape(checkpoint: str, nano: Evo2) -> None:
    model = Evo2("evo2_7b", local_path=checkpoint)
    assert model.model.config != nano.model.config


def test_what_cannot_be_is_refused(nano: Evo2) -> None:
    with pytest.raises(InputError, match="sequence 1 has only 1 base"):
        nano.score_sequences(["ACGT", "A"])
    assert len(nano.score_sequences(["A"], prepend_bos=True)) == 1
    with pytest.raises(InputError, match="reduce_method='max': must be one of mean, sum"):
        nano.score_sequences(["ACGT"], reduce_method="max")
    with pytest.raises(InputError, match="n_tokens=0: must be at least 1"):
        nano.generate(["ACGT"], n_tokens=0)
    with pytest.raises(InputError, match=r"token id 512 at \[0, 1\]: must be from 0 to 511"):
        nano(torch.tensor([[65, 512]], dtype=torch.int16))
    ids = torch.tensor([[65]])
    with pytest.raises(InputError, match="needs layer_names"):
        nano(ids, return_embeddings=True)
    for layer in ("blocks.0.inner_mha_cls", "blocks.3.projections", "all", "3"):
        with pytest.raises(InputError, match="no such layer"):
            nano(ids, return_embeddings=True, layer_names=[layer])
