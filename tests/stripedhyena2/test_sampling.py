"""Laws of sampling: distributions follow their definition, draws their distribution."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stripedhyena2.sampling import Sampler, Uniforms, draw

DNA = tuple(b"ACGT")
PINNED = [0.5693202536286804, 0.6114109832511946, 0.7629318697590559]


def logits(rows: int = 12) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return 3 * torch.randn(rows, 512, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("allowed", [None, DNA], ids=["any", "dna"])
@pytest.mark.parametrize("top_k", [1, 2, 4, 512, 0], ids=lambda top_k: f"k{top_k}")
@pytest.mark.parametrize("top_p", [1.0, 0.9, 0.3], ids=lambda top_p: f"p{top_p}")
def test_probabilities_follow_the_definition(
    top_k: int, top_p: float, allowed: tuple[int, ...] | None
) -> None:
    """Limit to what is allowed; keep the likeliest; soften; keep the likeliest; share out."""
    mask = torch.full((12, 512), allowed is None)
    mask[:, list(allowed or ())] = True
    actual = Sampler(temperature=0.7, top_k=top_k, top_p=top_p).probabilities(logits(), mask)
    for row, found in zip(logits().tolist(), actual, strict=True):
        kept = sorted(allowed or range(512), key=lambda token: -row[token])[: top_k or 512]
        weights = [math.exp((row[token] - row[kept[0]]) / 0.7) for token in kept]
        weights = [weight / math.fsum(weights) for weight in weights]
        total, nucleus = 0.0, []
        for token, weight in zip(kept, weights, strict=True):
            if top_p == 1 or total < top_p:
                nucleus.append((token, weight))
            total += weight
        expected = torch.zeros(512, dtype=torch.float64)
        for token, weight in nucleus:
            expected[token] = weight / math.fsum(weight for _, weight in nucleus)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("top_k", range(1, 9), ids=lambda top_k: f"k{top_k}")
def test_k_tokens_are_k_and_ties_go_by_id(top_k: int) -> None:
    """Four tokens of one likelihood, and all others of another."""
    tied = torch.zeros(2, 512)
    tied[0, 40:44] = tied[1, 300:304] = 7
    found = Sampler(top_k=top_k).probabilities(tied)
    for first, row in zip((40, 300), found, strict=True):
        expected = [*range(first, first + 4), 0, 1, 2, 3][:top_k]
        assert row.nonzero()[:, 0].tolist() == sorted(expected)


def test_a_nucleus_of_exactly_p_is_complete() -> None:
    """Eighths are exact, so that no rounding decides; equally likely tokens go by id."""
    allowed = torch.zeros(1, 512, dtype=torch.bool)
    allowed[0, 100:108] = True
    logits_1V = torch.zeros(1, 512, dtype=torch.float64)
    for size in range(1, 9):
        exactly, more = (
            Sampler(top_k=0, top_p=top_p).probabilities(logits_1V, allowed)[0].nonzero()[:, 0]
            for top_p in (size / 8, min(size / 8 + 1e-9, 1))
        )
        assert exactly.tolist() == [*range(100, 100 + size)]
        assert more.tolist() == [*range(100, 100 + min(size + 1, 8))]


def test_without_a_nucleus_every_token_stays() -> None:
    """Also those that are too unlikely to change the sum."""
    logits_1V = -100 * torch.arange(8, dtype=torch.float64)[None]
    assert bool((Sampler(top_k=0, top_p=1).probabilities(logits_1V) > 0).all())


def test_next_to_no_nucleus_is_the_likeliest() -> None:
    least = Sampler(top_k=0, top_p=1e-17).probabilities(logits())
    assert torch.equal(least, Sampler(temperature=0, top_k=0).probabilities(logits()))


@pytest.mark.parametrize("temperature", [1e-320, 1e-12])
def test_next_to_no_temperature_is_none(temperature: float) -> None:
    cold = Sampler(temperature=temperature, top_k=0).probabilities(logits())
    assert torch.equal(cold, Sampler(temperature=0, top_k=0).probabilities(logits()))


def test_no_temperature_takes_the_likeliest_that_is_allowed() -> None:
    mask = torch.zeros(12, 512, dtype=torch.bool)
    mask[:, list(DNA)] = True
    found = Sampler(temperature=0, top_k=0).probabilities(logits(), mask)
    likeliest = [max(DNA, key=row.__getitem__) for row in logits().tolist()]
    assert found.argmax(1).tolist() == likeliest
    assert found.sum(1).tolist() == [1.0] * 12


@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=6).filter(any),
    st.floats(0, 1, exclude_max=True),
)
def test_a_draw_is_the_inverse_of_the_distribution(weights: list[int], uniform: float) -> None:
    """By the definition: the first token whose cumulative probability exceeds the uniform."""
    probabilities = torch.tensor([weights], dtype=torch.float64) / sum(weights)
    (token,) = draw(probabilities, [uniform]).tolist()
    assert draw(4 * probabilities, [uniform]).tolist() == [token]  # shares of any total
    cumulative = torch.cumsum(probabilities[0], 0).tolist()
    assert weights[token] > 0
    assert uniform < cumulative[token] or math.isclose(uniform, cumulative[token])
    assert (
        token == 0
        or uniform >= cumulative[token - 1]
        or math.isclose(uniform, cumulative[token - 1])
    )


def test_the_greatest_uniform_draws_a_token() -> None:
    probabilities = torch.tensor([[0.1] * 10 + [0.0]], dtype=torch.float64)
    assert draw(probabilities, [1 - 2**-53]).tolist() == [9]


def test_uniforms_are_a_function_of_their_key() -> None:
    """Written down: the same on every machine, in every version."""
    first = Uniforms(0, b"ACGT", 1)
    assert [first.draw() for _ in range(3)] == PINNED
    again, other = Uniforms(0, b"ACGT", 1), Uniforms(0, b"ACGT", 2)
    assert again.draw() == PINNED[0] != other.draw()


def test_uniforms_fill_the_interval() -> None:
    drawn = sorted(Uniforms(seed, b"A", 0).draw() for seed in range(4000))
    assert drawn[0] >= 0
    assert drawn[-1] < 1
    assert max(abs(value - (rank + 0.5) / 4000) for rank, value in enumerate(drawn)) < 0.03


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -1.0},
        {"temperature": math.inf},
        {"temperature": math.nan},
        {"top_k": -1},
        {"top_k": 1.5},
        {"top_p": 0.0},
        {"top_p": 1.5},
    ],
    ids=str,
)
def test_impossible_settings_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=str(next(iter(wrong)))):
        Sampler(**wrong)  # type: ignore[arg-type]
