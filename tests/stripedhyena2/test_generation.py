"""Laws of generation: many at a time is one by one, and what the model itself says."""

from collections.abc import Sequence
from itertools import count

import pytest
import torch
from torch import Tensor, nn

from stripedhyena2 import (
    InputError,
    ModelConfig,
    NonFiniteLogitsError,
    Request,
    Sample,
    Sampler,
    StripedHyena2,
    Uniforms,
    generate,
    generation,
)
from stripedhyena2.decoding import Decoder
from stripedhyena2.generation import Alphabet, Rows

PROMPTS = [b"A", b"ACGTTGCAACGGT" * 11, b"GT", b"CCATG", b"TTTACGA" * 5]
SAMPLER = Sampler(temperature=0.8, top_k=0, top_p=0.95)


class Until:
    """Bases until a T, which is not drawn among the first three."""

    def __init__(self) -> None:
        self._count = 0

    def allowed(self) -> tuple[int, ...]:
        return tuple(b"ACG" if self._count < 3 else b"ACGT")

    def advance(self, token: int) -> str | None:
        self._count += 1
        return "T" if token == ord("T") else None


def requests(prompts: Sequence[bytes], num_samples: int, num_tokens: int = 12) -> list[Request]:
    ids = {prompt: torch.tensor(list(prompt)) for prompt in prompts}
    return [
        Request(ids[prompt], num_tokens, Uniforms(7, prompt, number), Until())
        for prompt in prompts
        for number in range(num_samples)
    ]


def assert_same(found: Sequence[Sample], expected: Sequence[Sample]) -> None:
    """The same tokens; log-probabilities to what fp32 leaves open."""
    for one, other in zip(found, expected, strict=True):
        assert (one.ids, one.stop_reason) == (other.ids, other.stop_reason)
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)


@pytest.fixture(scope="module")
def model(tiny_model: StripedHyena2) -> StripedHyena2:
    """In fp32, where the order of a sum shows."""
    model = StripedHyena2(tiny_model.config)
    model.load_state_dict(tiny_model.state_dict())
    return model


@pytest.fixture(scope="module")
def alone(model: StripedHyena2) -> list[Sample]:
    return [
        sample
        for prompt in PROMPTS
        for sample in generate(model, requests([prompt], 2), SAMPLER, batch_size=1)
    ]


@pytest.mark.parametrize("batch_size", [2, 40])
def test_ragged_is_one_by_one(model: StripedHyena2, alone: list[Sample], batch_size: int) -> None:
    together = list(generate(model, requests(PROMPTS, 2), SAMPLER, batch_size=batch_size))
    assert [sample.index for sample in together] == list(range(10))
    assert len({len(sample.ids) for sample in together}) > 2  # rows change hands at odd times
    assert_same(together, alone)


def test_where_memory_is_short_fewer_grow_side_by_side(
    model: StripedHyena2,
    alone: list[Sample],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def small(model: StripedHyena2, batch_size: int, capacity: int, *, float8: bool) -> Decoder:
        if batch_size == 9:
            raise torch.OutOfMemoryError
        if batch_size > 2:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return Decoder(model, batch_size, capacity, float8=float8)

    monkeypatch.setattr(generation, "Decoder", small)
    assert_same(list(generate(model, requests(PROMPTS, 2), SAMPLER, batch_size=9)), alone)
    assert "out of memory; generating 2 sequences at a time instead" in caplog.text


def test_the_order_of_prompts_does_not_matter(model: StripedHyena2, alone: list[Sample]) -> None:
    backwards = list(generate(model, requests(PROMPTS[::-1], 2), SAMPLER, batch_size=3))
    assert_same(backwards, [alone[at + i] for at in (8, 6, 4, 2, 0) for i in (0, 1)])


def test_log_probabilities_are_the_full_models(tiny_model: StripedHyena2) -> None:
    """From every prompt, one base included, decoding says what a forward pass over all says."""
    for sample, request in zip(
        generate(tiny_model, requests(PROMPTS, 1), SAMPLER, batch_size=3),
        requests(PROMPTS, 1),
        strict=True,
    ):
        length = len(request.prompt_L)
        sequence = torch.cat([request.prompt_L, torch.tensor(sample.ids)])
        with torch.no_grad():
            logits = tiny_model(sequence[None])[0, length - 1 : -1]
        assert request.guide is not None
        for step, (token, row) in enumerate(zip(sample.ids, logits, strict=True)):
            mask = torch.zeros(512, dtype=torch.bool)
            mask[list(request.guide.allowed())] = True
            expected = SAMPLER.probabilities(row[None], mask[None])[0, token].log()
            assert sample.drawn_logprobs[step] == pytest.approx(float(expected), abs=1e-9)
            logprob = torch.log_softmax(row, 0)[token]
            assert sample.logprobs[step] == pytest.approx(float(logprob), abs=1e-9)
            request.guide.advance(token)


def test_a_prompt_is_read_once_for_its_samples(tiny_model: StripedHyena2) -> None:
    reads = count()

    def watch(_model: nn.Module, inputs: tuple[Tensor], _output: Tensor) -> None:
        if inputs[0].shape[1] > 1:
            next(reads)

    hook = tiny_model.register_forward_hook(watch)
    try:
        list(generate(tiny_model, requests(PROMPTS[1:], 4, 3), SAMPLER, batch_size=3))
    finally:
        hook.remove()
    assert next(reads) == len(PROMPTS[1:])


def test_samples_come_as_soon_as_their_turn_is(tiny_model: StripedHyena2) -> None:
    drawn: list[int] = []
    samples = generate(
        tiny_model, requests(PROMPTS, 3), SAMPLER, batch_size=2, progress=drawn.append
    )
    first = next(samples)
    assert sum(drawn) <= 3 * len(first.ids) + 2
    total = len(first.ids) + sum(len(sample.ids) for sample in samples)
    assert sum(drawn) == total


def test_no_request_is_no_sample(tiny_model: StripedHyena2) -> None:
    assert list(generate(tiny_model, [], SAMPLER)) == []


def test_an_empty_prompt_is_refused(tiny_model: StripedHyena2) -> None:
    empty = Request(torch.tensor([], dtype=torch.int64), 3, Uniforms(0))
    with pytest.raises(ValueError, match="prompt 0 is empty"):
        next(generate(tiny_model, [empty], SAMPLER))


@pytest.mark.parametrize("num_tokens", [0, -1, 1.5], ids=str)
def test_a_number_of_tokens_that_is_never_reached_is_refused(
    tiny_model: StripedHyena2, num_tokens: int
) -> None:
    wrong = [*requests([b"A"], 1), Request(torch.tensor([65]), num_tokens, Uniforms(0))]
    with pytest.raises(InputError, match=f"prompt 1: num_tokens={num_tokens}: must be"):
        next(generate(tiny_model, wrong, SAMPLER))


@pytest.mark.parametrize("value", [-1, 512])
def test_tokens_outside_the_vocabulary_are_refused(tiny_model: StripedHyena2, value: int) -> None:
    """Those of prompts before anything is read; -1 is not the last token."""
    wrong = Request(torch.tensor([65, 67, value]), 1, Uniforms(0))
    message = rf"^prompt 1: token id {value} at \[2\]: must be from 0 to 511$"
    with pytest.raises(InputError, match=message):
        next(generate(tiny_model, [*requests([b"A"], 1), wrong], SAMPLER))
    guided = Request(torch.tensor([65]), 1, Uniforms(0), Alphabet((65, value)))
    with pytest.raises(InputError, match=rf"^a guide allows token id {value} at \[1\]: must be"):
        next(generate(tiny_model, [guided], SAMPLER))
    with pytest.raises(InputError, match=rf"^token id {value} at \[1\]: must be from 0 to 511$"):
        Decoder(tiny_model, 2, 8).step(torch.tensor([65, value]))


def test_broken_logits_are_not_sampled(tiny_config: ModelConfig) -> None:
    model = StripedHyena2.from_seed(tiny_config, seed=0)
    with torch.no_grad():
        model.embedding.weight[ord("C")] = torch.nan  # the head is tied to it
    with pytest.raises(NonFiniteLogitsError, match="token 1 after the prompt are not finite") as it:
        list(generate(model, requests([b"A"], 1), SAMPLER))
    assert it.value.index == 0


def test_who_joins_and_leaves_in_between_does_not_matter(model: StripedHyena2) -> None:
    """Sequences that join at any time, with samplers of their own, are those alone in the rows."""
    samplers = [SAMPLER, Sampler(0.7, 2), Sampler(temperature=0)]

    def alone(index: int, request: Request) -> Sample:
        rows = Rows(model, 3, 160)
        sample = rows.add(request, samplers[index % 3], index)
        while rows.samples:
            rows.step()
        return sample

    expected = [alone(*pair) for pair in enumerate(requests(PROMPTS, 2))]
    rows, found = Rows(model, 3, 160), []
    for index, request in enumerate(requests(PROMPTS, 2)):
        while not rows.has_room:
            rows.step()
        found.append(rows.add(request, samplers[index % 3], index))
        if rows.has_room:  # somebody who hangs up after a token
            gone = rows.add(requests([b"GATTACA"], 1)[0], SAMPLER)
            rows.step()
            rows.remove(gone)
            assert all(sample is not gone for sample in rows.samples)
    while rows.samples:
        rows.step()
    for sample, same in zip(found, expected, strict=True):
        assert (sample.ids, sample.logprobs) == (same.ids, same.logprobs)
        assert sample.stop_reason == same.stop_reason
