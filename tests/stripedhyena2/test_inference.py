"""Scores, embeddings and sequences are what a forward pass says, whatever stands beside them."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from stripedhyena2 import InputError, NonFiniteError, StripedHyena2
from stripedhyena2.dna import reverse_complement


class Seq:
    """A sequence of another library, which is neither text nor bytes."""


SEQUENCES = ["ACGTTGCA" * 20, "acguNRTTGAC", "TG", b"GATTACA" * 9]
AS_READ = [b"ACGTTGCA" * 20, b"ACGTNRTTGAC", b"TG", b"GATTACA" * 9]


@pytest.fixture(scope="module")
def model32(tiny_model: StripedHyena2) -> StripedHyena2:
    """In fp32, where the order of a sum shows."""
    model = StripedHyena2(tiny_model.config).eval()
    model.load_state_dict(tiny_model.state_dict())
    return model


@torch.no_grad()
def logprobs(model: StripedHyena2, bases: bytes) -> Tensor:
    """Log-probability of each base but the first, by one forward pass."""
    ids = torch.tensor(list(bases))
    return model(ids[None])[0, :-1].log_softmax(-1).gather(1, ids[1:, None])[:, 0]


@torch.no_grad()
def outputs(model: StripedHyena2, bases: bytes, layers: list[str]) -> dict[str, Tensor]:
    """The output of each layer at all positions, by one forward pass."""
    found: dict[str, Tensor] = {}

    def hook(name: str, _module: nn.Module, _inputs: object, output: Any) -> None:
        found[name] = (output[0] if isinstance(output, tuple) else output)[0]

    hooks = [
        model.get_submodule(name).register_forward_hook(partial(hook, name)) for name in layers
    ]
    model(torch.tensor([list(bases)]))
    for each in hooks:
        each.remove()
    return found


def test_a_score_is_the_sum_of_log_probabilities(tiny_model: StripedHyena2) -> None:
    totals = tiny_model.score(SEQUENCES, reduce="sum")
    means = tiny_model.score(SEQUENCES)
    terms = tiny_model.score(SEQUENCES, reduce="none")
    for bases, total, mean, each in zip(AS_READ, totals, means, terms, strict=True):
        expected = logprobs(tiny_model, bases)
        assert total == pytest.approx(float(expected.sum()), abs=1e-9)
        assert mean == pytest.approx(float(expected.mean()), abs=1e-9)
        assert (each.dtype, each.device.type) == (torch.float64, "cpu")
        torch.testing.assert_close(each, expected, rtol=0, atol=1e-9)


def test_strands_of_scores(tiny_model: StripedHyena2) -> None:
    turned = [reverse_complement(bases) for bases in AS_READ]
    for reduce in ("mean", "sum"):
        forward = tiny_model.score(SEQUENCES, reduce=reduce)
        reverse = tiny_model.score(SEQUENCES, reduce=reduce, strand="rc")
        both = tiny_model.score(SEQUENCES, reduce=reduce, strand="both")
        assert reverse == tiny_model.score(turned, reduce=reduce)
        assert both == pytest.approx([(f + r) / 2 for f, r in zip(forward, reverse, strict=True)])
    for found, expected in zip(
        tiny_model.score(SEQUENCES, reduce="none", strand="rc"),
        tiny_model.score(turned, reduce="none"),
        strict=True,
    ):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("strand", ["fwd", "both"])
def test_results_depend_neither_on_mates_nor_on_order(model32: StripedHyena2, strand: Any) -> None:
    whole = model32.score(SEQUENCES, strand=strand)
    assert model32.score(SEQUENCES[::-1], strand=strand) == whole[::-1]
    assert model32.score(SEQUENCES[1:2], strand=strand) == whole[1:2]
    vectors = model32.embed(SEQUENCES, layers="all", strand=strand)
    backwards = model32.embed(SEQUENCES[::-1], layers="all", strand=strand)
    alone = model32.embed(SEQUENCES[1:2], layers="all", strand=strand)
    for layer, vectors_ND in vectors.items():
        assert torch.equal(backwards[layer].flip(0), vectors_ND)
        assert torch.equal(alone[layer], vectors_ND[1:2])


def test_threads_can_share_a_model(model32: StripedHyena2) -> None:
    mine, theirs = SEQUENCES[:1], SEQUENCES[3:]
    layers = ["embedding", "blocks.2", "norm"]
    expected = [model32.embed(each, layers=layers, pool="none") for each in (mine, theirs)]
    found = []

    def meanwhile(_: float) -> None:
        with ThreadPoolExecutor(1) as other:
            submitted = other.submit(model32.embed, theirs, layers=layers, pool="none")
            found.append(submitted.result())

    found.insert(0, model32.embed(mine, layers=layers, pool="none", progress=meanwhile))
    assert len(found) > 2
    for index, vectors in enumerate(found):
        for layer in layers:
            assert torch.equal(vectors[layer][0], expected[index > 0][layer][0])


POOLS: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda x: x.mean(0),
    "max": lambda x: x.amax(0),
    "last": lambda x: x[-1],
}
LAYERS = ["embedding", "blocks.3", "blocks.2.mlp.down", "blocks.3.mixer", "norm"]


@pytest.mark.parametrize("pool", POOLS)
def test_embeddings_are_pooled_outputs(tiny_model: StripedHyena2, pool: Any) -> None:
    found = tiny_model.embed(SEQUENCES, layers=LAYERS, pool=pool)
    reverse = tiny_model.embed(SEQUENCES, layers=LAYERS, pool=pool, strand="rc")
    both = tiny_model.embed(SEQUENCES, layers=LAYERS, pool=pool, strand="both")
    assert list(found) == LAYERS
    for index, bases in enumerate(AS_READ):
        for strand, result in ((bases, found), (reverse_complement(bases), reverse)):
            for layer, x_LD in outputs(tiny_model, strand, LAYERS).items():
                expected = POOLS[pool](x_LD)
                torch.testing.assert_close(result[layer][index], expected, rtol=0, atol=1e-9)
    for layer in LAYERS:
        torch.testing.assert_close(both[layer], (found[layer] + reverse[layer]) / 2)


def test_positions_are_those_of_the_forward_strand(tiny_model: StripedHyena2) -> None:
    for strand in ("fwd", "rc", "both"):
        found = tiny_model.embed(SEQUENCES, layers=LAYERS, pool="none", strand=strand)
        for index, bases in enumerate(AS_READ):
            forward = outputs(tiny_model, bases, LAYERS)
            reverse = outputs(tiny_model, reverse_complement(bases), LAYERS)
            for layer in LAYERS:
                readings = forward[layer], reverse[layer].flip(0)
                expected = {"fwd": readings[0], "rc": readings[1], "both": sum(readings) / 2}
                torch.testing.assert_close(found[layer][index], expected[strand], rtol=0, atol=1e-9)


def test_layers_by_released_names_and_numbers(tiny_model: StripedHyena2) -> None:
    found = tiny_model.embed(["ACGT"], layers=["blocks.5.mlp.l3", "-1"])
    assert list(found) == ["blocks.5.mlp.down", "blocks.6"]
    assert list(tiny_model.embed(["ACGT"])) == ["blocks.5"]
    assert len(tiny_model.embed(["ACGT"], layers="all")) == tiny_model.config.depth + 2


def test_vectors_are_no_narrower_than_fp32(model32: StripedHyena2) -> None:
    model16 = StripedHyena2(model32.config).eval()
    model16.load_state_dict(model32.state_dict())
    model16.bfloat16()
    for model in (model32, model16):
        (vectors_ND,) = model.embed(["ACGT"]).values()
        ((x_LD,),) = model.embed(["ACGT"], pool="none").values()
        assert vectors_ND.dtype == x_LD.dtype == torch.float32


def test_no_sequence_is_no_result(tiny_model: StripedHyena2) -> None:
    assert tiny_model.score([]) == tiny_model.score([], reduce="none") == []
    assert tiny_model.embed([])["blocks.5"].shape == (0, tiny_model.config.width)
    assert tiny_model.embed([], pool="none") == {"blocks.5": []}
    assert tiny_model.generate([]) == []


def test_generated_sequences(tiny_model: StripedHyena2) -> None:
    found = tiny_model.generate(["acgu", "GG"], num_tokens=7, num_samples=2, temperature=2.0)
    assert [(one.prompt, one.number) for one in found] == [
        ("ACGT", 1),
        ("ACGT", 2),
        ("GG", 1),
        ("GG", 2),
    ]
    assert repr(found[0]) == (
        f"GeneratedSequence(prompt='ACGT', number=1, sequence={found[0].sequence!r})"
    )
    for one in found:
        assert len(one.sequence) == len(one.ids) == len(one.logprobs) == 7
        assert set(one.sequence) <= set("ACGT")
        whole = (one.prompt + one.sequence).encode()
        expected = logprobs(tiny_model, whole)[-7:].tolist()
        assert one.logprobs == pytest.approx(expected, abs=1e-9)
        assert one.mean_logprob == pytest.approx(sum(expected) / 7, abs=1e-9)
    assert tiny_model.generate("GG", num_tokens=7, temperature=2.0)[0].ids == found[2].ids
    again = tiny_model.generate("GG", num_tokens=7, temperature=2.0, seed=1)
    assert again[0].ids != found[2].ids
    seed: Any = np.int64(1)
    assert tiny_model.generate("GG", num_tokens=7, temperature=2.0, seed=seed) == again
    (free,) = tiny_model.generate("GG", num_tokens=30, alphabet="any", top_k=0, temperature=9)
    assert not set(free.ids) <= set(b"ACGT")
    assert free.sequence.isascii()
    assert len(free.sequence) == 30


def test_progress_counts_every_base(tiny_model: StripedHyena2) -> None:
    total = sum(map(len, SEQUENCES))
    for strand in ("fwd", "both"):
        done: list[float] = []
        tiny_model.score(SEQUENCES, strand=strand, progress=done.append)
        assert sum(done) == pytest.approx(total)
        done.clear()
        tiny_model.embed(SEQUENCES, strand=strand, progress=done.append)
        assert sum(done) == pytest.approx(total)
    done.clear()
    tiny_model.generate(["A", "C"], num_tokens=5, progress=done.append)
    assert sum(done) == 10


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.score(["ACG", "T"]), "sequence 1 has only 1 base; give at least 2"),
        (lambda m: m.score(["ACG", ""]), "sequence 1 is empty"),
        (lambda m: m.score(["Aé"]), "sequence 0: 'é' is not ASCII"),
        (lambda m: m.score("ACGT"), r"expected a list of sequences"),
        (lambda m: m.score(["AC"], reduce="max"), "reduce='max': must be one of mean, sum, none"),
        (lambda m: m.score(["AC"], strand="x"), "strand='x': must be one of fwd, rc, both"),
        (lambda m: m.score(["AC"], reduce="none", strand="both"), "score 'fwd' and 'rc'"),
        (lambda m: m.score(["AC"], max_memory=1), "2 tokens need"),
        (lambda m: m.score(["AC"], max_memory=-1), "max_memory=-1: must be a number above 0"),
        (lambda m: m.score(["AC"], max_memory="24G"), "max_memory='24G': must be a number above"),
        (lambda m: m.embed([""]), "sequence 0 is empty"),
        (lambda m: m.embed(["A"], pool="min"), "pool='min': must be one of mean, last, max, none"),
        (lambda m: m.embed(["A"], layers=["blocks.9"]), "no such layer"),
        (lambda m: m.generate(["A", ""]), "prompt 1 is empty"),
        (lambda m: m.score([None]), "sequence 0: is NoneType, neither text nor bytes"),
        (lambda m: m.score(["AC", Seq()]), r"sequence 1: is Seq, .* e.g. str\(seq\)"),
        (lambda m: m.score(None), "expected a list of sequences and got NoneType"),
        (lambda m: m.embed([65]), "sequence 0: is int"),
        (lambda m: m.score(["|D__X|AC"], strand="both"), "sequence 0: a lineage tag"),
        (lambda m: m.embed(["|D__X|AC"], strand="rc"), "sequence 0: a lineage tag"),
        (lambda m: m.embed(["A"], layers=[]), "name at least one layer"),
        (lambda m: m.embed(["A"], layers=5), r"layers=5: give names or numbers in a list"),
        (lambda m: m("ACGT"), "ids are str: must be a torch.int64 tensor"),
        (lambda m: m.generate("A", seed=None), "seed=None: must be a whole number"),
        (lambda m: m.generate("A", temperature="1"), "temperature = '1' must be 0 or more"),
        (lambda m: m.generate("A", top_p="1"), "top_p = '1' must be above 0"),
        (lambda m: m.embed(["A"], layers=""), "layer '': the model has no such layer"),
        (lambda m: m.generate(None), "expected a list of prompts"),
        (lambda m: m.generate(["A", None]), "prompt 1: is NoneType"),
        (lambda m: m.generate("A", num_tokens=0), "num_tokens=0: must be at least 1"),
        (lambda m: m.generate("A", num_tokens=1.5), "num_tokens=1.5: must be a whole number"),
        (lambda m: m.generate("A", batch_size=None), "batch_size=None: must be a whole number"),
        (lambda m: m.generate("A", num_samples="2"), "num_samples='2': must be a whole number"),
        (lambda m: m.generate("A", top_k=1.5), "top_k=1.5: must be a whole number"),
        (lambda m: m(torch.tensor([65, 67])), r"ids\[None\] makes a batch"),
        (lambda m: m.generate("A", top_p=0.0), "top_p = 0.0 must be above 0"),
        (lambda m: m.generate("A", alphabet="rna"), "alphabet='rna': must be one of dna, any"),
        (lambda m: m.generate("A", kv_cache="fp4"), "kv_cache='fp4': must be one of auto, fp8"),
    ],
)
def test_arguments_that_cannot_be_are_refused(
    tiny_model: StripedHyena2, call: Callable[[StripedHyena2], object], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        call(tiny_model)


def test_nan_names_its_layer(model32: StripedHyena2) -> None:
    broken = StripedHyena2(model32.config).eval()
    broken.load_state_dict(model32.state_dict())
    with torch.no_grad():
        broken.blocks[2].mlp.down.weight[3, 3] = torch.nan
    layer = r"first in layer blocks\.2\.mlp\.down"
    calls: list[Callable[[], object]] = [
        lambda: broken.score(["ACGT"]),
        lambda: broken.score(["ACGT"], reduce="none"),
        lambda: broken.embed(["ACGT"]),
        lambda: broken.embed(["ACGT"], pool="none"),
    ]
    for call in calls:
        with pytest.raises(NonFiniteError, match=f"sequence 0: .*{layer}"):
            call()
    with pytest.raises(NonFiniteError, match=f"prompt 0, sample 1: .*token 1 .*{layer}"):
        broken.generate("ACGT")
