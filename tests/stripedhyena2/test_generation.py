"""Laws of generation: many at a time is one by one, and what the model itself says."""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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
    load,
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


SAMPLERS = [SAMPLER, Sampler(0.7, 2), Sampler(temperature=0), Sampler(1.3, 4, 0.6), Sampler()]


def mixed(index: int) -> tuple[Request, Sampler]:
    """A request with a sampler of its own; every third may draw any token."""
    prompt = PROMPTS[index % len(PROMPTS)]
    guide = None if index % 3 == 2 else Until()
    num_tokens = 3 + 7 * index % 23
    ids_L = torch.tensor(list(prompt))
    return Request(ids_L, num_tokens, Uniforms(7, prompt, index), guide), SAMPLERS[index % 5]


def grown_alone(model: StripedHyena2, index: int, num_rows: int) -> Sample:
    """The sample of `mixed(index)` among rows that are idle."""
    rows = Rows(model, num_rows, 180)
    sample = rows.add(*mixed(index), index, keep_logits=True)
    while rows.samples:
        rows.step()
    return sample


def assert_same_bits(found: Sample, expected: Sample) -> None:
    assert (found.ids, found.stop_reason) == (expected.ids, expected.stop_reason)
    assert found.problem == expected.problem
    assert found.logprobs == expected.logprobs
    assert found.drawn_logprobs == expected.drawn_logprobs
    for logits_V, same_V in zip(found.logits, expected.logits, strict=True):
        assert torch.equal(logits_V, same_V)


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=needs_gpu)])
@pytest.mark.parametrize("seed", range(6), ids=lambda seed: f"seed{seed}")
def test_who_joins_and_leaves_during_a_step_leaves_no_trace(
    model: StripedHyena2, seed: int, device: str
) -> None:
    """Sequences that join at any time, with samplers of their own, are those alone in the rows.

    Others leave before they have ended, and the next ones take their rows, while a step that they
    take part in has begun.
    """
    if device == "cuda":  # where a step that has begun is not over
        model = load("nano", device=device, dtype=torch.bfloat16).requires_grad_(False)
    draw = random.Random(seed)  # noqa: S311 - not for cryptography
    rows, waiting = Rows(model, 3, 180), list(range(14))
    found: list[Sample] = []
    gone: dict[int, int] = {}  # how many tokens were drawn until then
    while waiting or rows.samples:
        for _ in range(draw.randrange(3)):
            if waiting and rows.has_free_row:
                index = waiting.pop(0)
                found.append(rows.add(*mixed(index), index, keep_logits=True))
        grown = rows.step()
        assert all(sample.index not in gone for sample in grown)
        if rows.samples and draw.random() < 0.2:
            for sample in draw.sample(rows.samples, draw.randint(1, len(rows.samples))):
                rows.remove(sample)
                gone[sample.index] = len(sample.ids)
    assert gone
    for sample in found:
        alone = grown_alone(model, sample.index, 3)
        if sample.index in gone:  # not drawn on; and right as far as it went
            assert len(sample.ids) == gone[sample.index]
            assert sample.logprobs == alone.logprobs[: len(sample.ids)]
        else:
            assert_same_bits(sample, alone)


def test_many_that_draw_together_draw_as_each_alone(model: StripedHyena2) -> None:
    """Also where some may draw any token, others bases, and their samplers differ."""
    rows = Rows(model, 40, 180)
    found = [rows.add(*mixed(index), index, keep_logits=True) for index in range(40)]
    while rows.samples:
        rows.step()
    for index in (0, 11, 14, 25, 33, 39):
        assert_same_bits(found[index], grown_alone(model, index, 40))


class Script:
    """A guide that allows one token at a time, in this order."""

    def __init__(self, tokens: bytes) -> None:
        self._tokens = list(tokens)

    def allowed(self) -> tuple[int, ...]:
        return (self._tokens[0],)

    def advance(self, _token: int) -> str | None:
        self._tokens.pop(0)
        return None if self._tokens else "end"


@contextmanager
def broken_for(model: StripedHyena2, token: int) -> Iterator[None]:
    """A model whose embedding of a token is NaN."""

    def spoil(_layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        return output.masked_fill((inputs[0] == token)[..., None], torch.nan)

    hook = model.embedding.register_forward_hook(spoil)
    try:
        yield
    finally:
        hook.remove()


def test_nan_names_its_layer_and_ends_one_sequence(model: StripedHyena2) -> None:
    """Not its neighbour, nor the next in its row, beyond which keys and values of NaN are left."""
    expected = [grown_alone(model, index, 2) for index in (5, 2)]
    ids_L = torch.tensor(list(b"GATTACA" * 3))
    with broken_for(model, ord("Z")):
        rows = Rows(model, 2, 180)
        neighbour = rows.add(*mixed(5), 5, keep_logits=True)
        sample = rows.add(Request(ids_L, 50, Uniforms(0), Script(b"ACGZA")), SAMPLER)
        while sample in rows.samples:
            rows.step()
        assert "token 5 after the prompt are not finite, first in layer embedding" in sample.problem
        assert sample.ids == list(b"ACGZ")
        rows.step()  # the row is idle
        assert rows.samples == [neighbour]
        after = rows.add(*mixed(2), 2, keep_logits=True)
        while rows.samples:
            rows.step()
    assert_same_bits(neighbour, expected[0])
    assert_same_bits(after, expected[1])


def test_nan_ends_one_sequence_also_where_memory_is_short(
    model: StripedHyena2, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> str:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(generation, "first_nonfinite_layer", fails)
    with broken_for(model, ord("Z")):
        rows = Rows(model, 2, 180)
        sample = rows.add(Request(torch.tensor([65]), 9, Uniforms(0), Script(b"Z")), SAMPLER)
        assert sample.stop_reason == "end"
        sample = rows.add(Request(torch.tensor([65]), 9, Uniforms(0), Script(b"ZA")), SAMPLER)
        rows.add(*mixed(5), 5)
        assert len(rows.step()) == 2
    assert "not finite, in a layer that cannot be found for lack of memory" in sample.problem
    assert [each.index for each in rows.samples] == [5]
