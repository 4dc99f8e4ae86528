"""Our numbers are the reference implementation's, on random models in the released layout.

They run on the GPU where there is one: in fp32 through the kernels.
"""

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from stripedhyena2 import Request, Sampler, StripedHyena2, Uniforms, generate, load

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DNA = [ord(letter) for letter in "ACGTN"]
MODELS = ["tiny-7b-1m", "tiny-1b-base", "tiny-40b-1m"]
FP32_TOLERANCE, FP32_LONG_TOLERANCE, FP64_TOLERANCE = 1e-4, 2e-4, 1e-9
LONG_PROMPT = 300

# Where the reference's module names point in our model.
MODULES = {
    "embedding_layer": "embedding",
    "filter": "mixer.operator",
    "out_filter_dense": "mixer.project_out",
    "projections": "mixer.project_in",
    "inner_mha_cls": "mixer",
    "mlp.l3": "mlp.down",
}


@pytest.fixture(scope="module", params=MODELS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@cache
def open_golden(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    return load_file(folder / "golden.safetensors"), json.loads(
        (folder / "golden.json").read_text()
    )


@cache
def open_golden_model(folder: Path, dtype: torch.dtype) -> StripedHyena2:
    weights = folder / "weights.safetensors"
    model = load(weights, config=folder / "config.yml", dtype=dtype)
    return model.to(DEVICE).requires_grad_(False)


@pytest.fixture
def folder(shared: Path, name: str) -> Path:
    return shared / "goldens" / name


@pytest.fixture
def golden(folder: Path) -> dict[str, Tensor]:
    return open_golden(folder)[0]


@pytest.fixture
def facts(folder: Path) -> dict[str, Any]:
    return open_golden(folder)[1]


@pytest.fixture
def model(folder: Path) -> StripedHyena2:
    return open_golden_model(folder, torch.float32)


@pytest.fixture
def model64(folder: Path) -> StripedHyena2:
    return open_golden_model(folder, torch.float64)


def encode(text: str) -> Tensor:
    return torch.tensor([list(text.encode())], device=DEVICE)


def by_channel(x: Tensor) -> Tensor:
    """Our x2, x1, v side by side on the last dim, in the reference's order: channel by channel."""
    return x.unflatten(-1, (3, -1)).transpose(-1, -2).flatten(-2)


def assert_near(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(actual.cpu(), expected.cpu(), rtol=0, atol=tolerance)


def test_full_logits(
    model: StripedHyena2, golden: dict[str, Tensor], facts: dict[str, Any]
) -> None:
    for prompt, text in facts["prompts"].items():
        logits = model(encode(text))[0]
        tolerance = FP32_TOLERANCE if len(text) <= LONG_PROMPT else FP32_LONG_TOLERANCE
        if f"rows/{prompt}" in golden:
            rows = golden[f"rows/{prompt}"].long()
            assert_near(logits[rows], golden[f"logits_rows/{prompt}"], tolerance)
        else:
            assert_near(logits, golden[f"logits/{prompt}"], tolerance)
        assert_near(logits[:, DNA], golden[f"dna/{prompt}"], tolerance)
        assert_near(logits.logsumexp(1), golden[f"lse/{prompt}"], tolerance)


def test_full_logits_in_fp64(
    model64: StripedHyena2, golden: dict[str, Tensor], facts: dict[str, Any]
) -> None:
    for prompt, text in facts["prompts"].items():
        logits = model64(encode(text))[0]
        assert_near(logits[:, DNA], golden[f"dna64/{prompt}"], FP64_TOLERANCE)
        assert_near(logits.logsumexp(1), golden[f"lse64/{prompt}"], FP64_TOLERANCE)


def test_cached_decode(
    model: StripedHyena2, golden: dict[str, Tensor], facts: dict[str, Any]
) -> None:
    """Step by step from the golden's prompt, and some steps on from a prompt of every length."""
    prefill, upto = facts["decode"]["prefill"], facts["decode"]["upto"]
    ids = encode(facts["prompts"][facts["decode"]["prompt"]])[:, :upto]
    whole = model(ids)[0]
    for length in range(1, prefill + 1):
        end = upto if length == prefill else length + 3
        cache = model.new_cache(1)
        rows = [model(ids[:, :length], cache=cache)[0, -1]]
        rows += [
            model(token[:, None], cache=cache)[0, -1] for token in ids[:, length:end].unbind(1)
        ]
        assert_near(torch.stack(rows), whole[length - 1 : end], FP32_TOLERANCE)
    assert_near(torch.stack(rows), golden["decode/step_logits"], FP32_TOLERANCE)


def test_state_after_prefill(
    model: StripedHyena2, golden: dict[str, Tensor], facts: dict[str, Any]
) -> None:
    cache = model.new_cache(1)
    prompt = facts["prompts"][facts["decode"]["prompt"]]
    model(encode(prompt)[:, : facts["decode"]["prefill"]], cache=cache)
    for key in (key for key in golden if key.startswith("state/")):
        _, layer, state = key.partition("/")[2].split(".")
        past = cache.pasts[int(layer)]
        if state == "key_value_memory_dict":
            ours = torch.stack([past.keys_BHTW, past.values_BHTW])[:, 0].permute(2, 0, 1, 3)
        elif state == "fir_state_dict":
            ours = by_channel(past.featurizer_BPC[0]).T
        elif state == "fir_inner_state_dict":
            ours = past.inner[0].T[:, -golden[key].shape[1] :]
        else:
            ours = past.inner[0]
        assert_near(ours, golden[key].reshape(ours.shape), FP32_TOLERANCE)


def our_module(name: str) -> str:
    for theirs, ours in MODULES.items():
        if name == theirs or name.endswith(f".{theirs}"):
            return name.removesuffix(theirs) + ours
    return name


def test_embeddings(model: StripedHyena2, golden: dict[str, Tensor], facts: dict[str, Any]) -> None:
    prompt, seen = facts["embeddings"]["prompt"], {}

    def keep(layer: str) -> Any:
        def hook(_module: object, _inputs: object, output: Any) -> None:
            seen[layer] = output[0] if isinstance(output, tuple) else output

        return hook

    layers = [key for key in golden if key.startswith(f"emb/{prompt}/")]
    hooks = [
        model.get_submodule(our_module(key.split("/")[2])).register_forward_hook(keep(key))
        for key in layers
    ]
    model(encode(facts["prompts"][prompt]))
    for hook in hooks:
        hook.remove()
    rows = golden[f"emb_rows/{prompt}"].long()
    assert len(layers) >= 10
    for key in layers:
        ours = seen[key][0, rows]
        if key.endswith(".projections"):
            ours = by_channel(ours)
        assert_near(ours, golden[key], FP32_TOLERANCE)


def test_greedy_generation(model: StripedHyena2, facts: dict[str, Any]) -> None:
    run = facts["generation"]
    request = Request(encode(run["prompt"])[0], run["n_tokens"], Uniforms(0))
    (sample,) = generate(model, [request], Sampler(top_k=1))
    assert sample.ids == run["token_ids"]


def test_scores(model: StripedHyena2, facts: dict[str, Any]) -> None:
    scoring = facts["scoring"]
    for text, mean, total in zip(
        scoring["sequences"], scoring["single"]["mean"], scoring["single"]["sum"], strict=True
    ):
        ids = encode(text)
        log_probabilities = torch.log_softmax(model(ids)[0, :-1], dim=1)
        picked = log_probabilities.gather(1, ids[0, 1:, None]).double()
        assert float(picked.sum()) == pytest.approx(total, abs=1e-3)
        assert float(picked.mean()) == pytest.approx(mean, abs=1e-4)


def test_sampling_distributions(golden: dict[str, Tensor], facts: dict[str, Any]) -> None:
    logits = golden[facts["sampler"]["logits_from"]][facts["sampler"]["row"]][None]
    for case in facts["sampler"]["cases"]:
        sampler = Sampler(case["temperature"], case["top_k"], case["top_p"])
        probabilities = sampler.probabilities(logits)[0]
        expected = torch.zeros_like(probabilities)
        expected[case["token_ids"]] = torch.tensor(case["probs"])
        assert_near(probabilities, expected, 1e-5)


def test_the_released_pt_layout(shared: Path) -> None:
    folder = shared / "goldens" / "pt-layout-7b"
    golden, facts = open_golden(folder)
    ids = encode(facts["sequence"])
    for dtype in (torch.float32, torch.float64):
        model = load(folder / "pt-layout-7b.pt", config=folder / "config.yml", dtype=dtype)
        model.to(DEVICE)
        with torch.no_grad():
            logits = model(ids)[0]
        if dtype == torch.float32:
            assert_near(logits, golden["logits"], FP32_TOLERANCE)
        else:
            assert_near(logits[:, DNA], golden["dna64"], FP64_TOLERANCE)
            assert_near(logits.logsumexp(1), golden["lse64"], FP64_TOLERANCE)
