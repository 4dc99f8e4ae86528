"""Laws of sampling: seeds repeat, limits hold, nothing is drawn from broken logits."""

import pytest
import torch

from stripedhyena2 import Sampler, StripedHyena2, generate

DNA = tuple(b"ACGT")


def logits(rows: int = 64) -> torch.Tensor:
    return 3 * torch.randn(rows, 512, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("top_k", [1, 2, 4, 512, 0], ids=lambda top_k: f"k{top_k}")
@pytest.mark.parametrize("top_p", [1.0, 0.9, 0.3], ids=lambda top_p: f"p{top_p}")
def test_probabilities_follow_the_definition(top_k: int, top_p: float) -> None:
    actual = Sampler(temperature=0.7, top_k=top_k, top_p=top_p).probabilities(logits())
    for row, found in zip(logits().tolist(), actual.double(), strict=True):
        kept = sorted(range(512), key=lambda token: -row[token])[: top_k or 512]
        weights = torch.softmax(torch.tensor([row[t] for t in kept]).double() / 0.7, 0).tolist()
        total, nucleus = 0.0, []
        for token, weight in zip(kept, weights, strict=True):
            if total < top_p - 1e-9:
                nucleus.append((token, weight))
            total += weight
        if top_k == 1:
            nucleus = [(kept[0], 1.0)]
        expected = torch.zeros(512, dtype=torch.float64)
        for token, weight in nucleus:
            expected[token] = weight / sum(weight for _, weight in nucleus)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_only_the_alphabet_is_drawn() -> None:
    sampler = Sampler(top_k=0, alphabet=DNA)
    drawn = sampler.draw(logits(2000), torch.Generator().manual_seed(1))
    assert set(drawn.tolist()) == set(DNA)


def test_frequencies_are_the_probabilities() -> None:
    row = logits(1)
    sampler = Sampler(top_k=4, temperature=0.8)
    drawn = sampler.draw(row.expand(20_000, -1), torch.Generator().manual_seed(1))
    frequency = torch.bincount(drawn, minlength=512) / len(drawn)
    torch.testing.assert_close(frequency, sampler.probabilities(row)[0], rtol=0, atol=0.015)


@pytest.mark.parametrize(
    "wrong", [{"temperature": -1.0}, {"top_k": -1}, {"top_p": 0.0}, {"top_p": 1.5}], ids=str
)
def test_impossible_settings_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=str(next(iter(wrong)))):
        Sampler(**wrong)  # type: ignore[arg-type]


def test_a_seed_repeats_and_another_differs(tiny_model: StripedHyena2) -> None:
    def run(seed: int) -> list[int]:
        prompt = torch.tensor([list(b"ACG")])
        return [int(ids) for ids, _ in generate(tiny_model, prompt, 30, Sampler(top_k=0), seed)]

    assert run(1) == run(1)
    assert run(1) != run(2)


def test_log_probabilities_are_the_full_models(tiny_model: StripedHyena2) -> None:
    prompt = torch.tensor([list(b"ACGTTGCA")])
    steps = list(generate(tiny_model, prompt, 20, Sampler(top_k=4), seed=3))
    sequence = torch.cat([prompt, torch.stack([ids for ids, _ in steps], dim=1)], dim=1)
    with torch.no_grad():
        log_probabilities = torch.log_softmax(tiny_model(sequence)[0, 7:-1], dim=1)
    expected = log_probabilities.gather(1, sequence[0, 8:, None])[:, 0]
    torch.testing.assert_close(torch.cat([logp for _, logp in steps]), expected)


def test_broken_logits_are_not_sampled(tiny_config: object) -> None:
    model = StripedHyena2.from_seed(tiny_config, seed=0)  # type: ignore[arg-type]
    with torch.no_grad():
        model.norm.scale[0] = torch.nan
    with pytest.raises(FloatingPointError, match="not finite"):
        list(generate(model, torch.tensor([[65]]), 3, Sampler(), seed=0))
