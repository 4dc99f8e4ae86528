"""From prompts to sequences: many at a time, each as if it were alone.

Prompts are read by the model itself, a chunk at a time, one prompt after the other; then each
sequence grows in a row of a `Decoder`. A row whose sequence is over takes the next one at once.

B rows, L prompt length, V vocabulary.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from stripedhyena2.cache import Cache
from stripedhyena2.decoding import Decoder
from stripedhyena2.errors import NonFiniteError
from stripedhyena2.memory import is_out_of_memory
from stripedhyena2.model import StripedHyena2
from stripedhyena2.sampling import Sampler, Uniforms, draw

_LOG = logging.getLogger(__name__)

PREFILL_CHUNK = 8192  # prompt tokens a forward pass: bounds memory, changes no result


class Guide(Protocol):
    """The rules of one sequence in the making."""

    def allowed(self) -> tuple[int, ...]:
        """Token ids that may come next, at least one."""

    def advance(self, token: int) -> str | None:
        """Take in the token that was drawn; returns why the sequence is over, or None."""


@dataclass(frozen=True, eq=False)
class Request:
    """One sequence to generate.

    Attributes:
        prompt_L: int64 token ids, at least one. Neighbours that share the tensor share its reading.
        num_tokens: Where the sequence ends at the latest, "length" being why.
        uniforms: Where its random numbers come from, one a token.
        guide: What may be drawn, and where it ends before; None for any token.
    """

    prompt_L: Tensor
    num_tokens: int
    uniforms: Uniforms
    guide: Guide | None = None


@dataclass
class Sample:
    """What was drawn for a request.

    Attributes:
        index: Of the request.
        ids: The tokens, without the prompt.
        logprobs: Of each under the model, in nats: over the whole vocabulary, at temperature 1.
        drawn_logprobs: Of each in the distribution it was drawn from, in nats.
        ended: Why it ended: "length", or what the guide said; empty while it grows.
    """

    index: int
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    drawn_logprobs: list[float] = field(default_factory=list)
    ended: str = ""


class NonFiniteLogitsError(NonFiniteError):
    """The logits of a sequence are NaN or infinite.

    Attributes:
        index: Of the request.
        ids: Tokens drawn before, after its prompt.
    """

    def __init__(self, index: int, ids: list[int]) -> None:
        super().__init__(f"the logits of token {len(ids) + 1} after the prompt are not finite")
        self.index = index
        self.ids = ids


@torch.no_grad()
def prefill(model: StripedHyena2, ids_BL: Tensor, cache: Cache) -> Tensor:
    """Read prompts of equal length into a cache; returns the next token's logits, [B, V]."""
    for start in range(0, ids_BL.shape[1], PREFILL_CHUNK):
        logits_BV: Tensor = model(ids_BL[:, start : start + PREFILL_CHUNK], cache=cache)[:, -1]
    return logits_BV


def generate(
    model: StripedHyena2,
    requests: Sequence[Request],
    sampler: Sampler,
    *,
    batch_size: int = 16,
    float8: bool = False,
    advance: Callable[[int], None] = lambda _: None,
) -> Iterator[Sample]:
    """Generate sequences, any number of which grow side by side.

    A sequence is decided by its request alone, up to what the order of rows and their number change
    in the last bits of logits.

    Args:
        model: On any device; random numbers are turned into tokens on the CPU, in fp64.
        requests: What to generate.
        sampler: How to draw.
        batch_size: Sequences that grow at the same time; memory is taken for so many, or for half
            as often as needed until it suffices.
        float8: Keep keys and values in FP8: half the memory, and other numbers.
        advance: Hears how many tokens were drawn, as they are.

    Yields:
        A sample for each request, in their order, as soon as it and all before it are there.

    Raises:
        ValueError: A prompt is empty.
        NonFiniteLogitsError: The logits of a sequence are not finite.
    """
    for index, request in enumerate(requests):
        if len(request.prompt_L) == 0:
            raise ValueError(f"prompt {index} is empty; give at least one token")
    if not requests:
        return
    finished: dict[int, Sample] = {}
    following = 0
    rows = _that_fit(
        lambda count: _Rows(model, requests, sampler, count, float8, advance),
        min(batch_size, len(requests)),
    )
    for sample in rows.run():
        finished[sample.index] = sample
        while following in finished:
            yield finished.pop(following)
            following += 1


def _that_fit(make: "Callable[[int], _Rows]", count: int) -> "_Rows":
    """As many rows as asked for, or as the memory has room for."""
    while True:
        try:
            return make(count)
        except RuntimeError as error:
            if count == 1 or not is_out_of_memory(error):
                raise
            count //= 2
            _LOG.warning("out of memory: %d sequences side by side instead", count)


class _Rows:
    """Sequences in the rows of a decoder."""

    def __init__(
        self,
        model: StripedHyena2,
        requests: Sequence[Request],
        sampler: Sampler,
        batch_size: int,
        float8: bool,
        advance: Callable[[int], None],
    ) -> None:
        self._model = model
        self._device = next(model.parameters()).device
        self._requests = requests
        self._sampler = sampler
        self._advance = advance
        self._waiting = iter(range(len(requests)))
        self._rows: list[Sample | None] = [None] * batch_size
        capacity = max(len(request.prompt_L) + request.num_tokens for request in requests)
        self._decoder = Decoder(model, len(self._rows), capacity, float8=float8)
        self._masks: dict[tuple[int, ...] | None, Tensor] = {}
        self._prompt_L: Tensor | None = None  # the one read last, what follows it, and its state
        self._logits_1V: Tensor
        self._cache: Cache
        # What takes memory happens once, so that it can be done with fewer rows.
        self._decoder.step(torch.zeros(batch_size, dtype=torch.int64, device=self._device))
        self._read(requests[0].prompt_L, row=0)

    def run(self) -> Iterator[Sample]:
        """Samples in the order they end in."""
        for row in range(len(self._rows)):
            yield from self._fill(row)
        while any(self._rows):
            last = [sample.ids[-1] if sample else 0 for sample in self._rows]
            logits_BV = self._decoder.step(torch.tensor(last, device=self._device)).cpu()
            growing = [(row, sample) for row, sample in enumerate(self._rows) if sample]
            self._draw([sample for _, sample in growing], logits_BV[[row for row, _ in growing]])
            for row, sample in growing:
                if sample.ended:
                    yield sample
                    yield from self._fill(row)

    def _fill(self, row: int) -> Iterator[Sample]:
        """Put the next sequence into a row; yields those that are over at their first token."""
        self._rows[row] = None
        for index in self._waiting:
            self._read(self._requests[index].prompt_L, row)
            sample = Sample(index)
            self._draw([sample], self._logits_1V)
            if not sample.ended:
                self._decoder.place(row, self._cache)
                self._rows[row] = sample
                return
            yield sample

    def _read(self, prompt_L: Tensor, row: int) -> None:
        """Read a prompt, unless it was the last; its keys and values stay where they are read.

        A sequence only adds behind its prompt, so others take theirs from that row while it grows.
        """
        if prompt_L is not self._prompt_L:
            self._cache = self._decoder.new_cache(row)
            ids_1L = prompt_L[None].to(self._device)
            self._logits_1V = prefill(self._model, ids_1L, self._cache).cpu()
            self._prompt_L = prompt_L

    def _draw(self, samples: Sequence[Sample], logits_BV: Tensor) -> None:
        """Give every sample its next token, of the row of logits beside it."""
        for sample, is_finite in zip(samples, logits_BV.isfinite().all(1).tolist(), strict=True):
            if not is_finite:
                raise NonFiniteLogitsError(sample.index, sample.ids)
        logits_BV = logits_BV.double()
        requests = [self._requests[sample.index] for sample in samples]
        allowed_BV = torch.stack([self._mask(request.guide) for request in requests])
        probabilities_BV = self._sampler.probabilities(logits_BV, allowed_BV)
        ids_B = draw(probabilities_BV, [request.uniforms.draw() for request in requests])
        drawn = zip(
            samples,
            requests,
            ids_B.tolist(),
            _picked(torch.log_softmax(logits_BV, 1), ids_B),
            _picked(probabilities_BV.log(), ids_B),
            strict=True,
        )
        for sample, request, token, logprob, drawn_logprob in drawn:
            sample.ids.append(token)
            sample.logprobs.append(logprob)
            sample.drawn_logprobs.append(drawn_logprob)
            ended = None if request.guide is None else request.guide.advance(token)
            sample.ended = ended or ("length" if len(sample.ids) == request.num_tokens else "")
        self._advance(len(samples))

    def _mask(self, guide: Guide | None) -> Tensor:
        """Tokens that may be drawn, [V]."""
        ids = None if guide is None else guide.allowed()
        mask_V = self._masks.get(ids)
        if mask_V is None:
            mask_V = torch.full((self._model.config.vocabulary,), ids is None)
            if ids is not None:
                mask_V[list(ids)] = True
            self._masks[ids] = mask_V
        return mask_V


def _picked(values_BV: Tensor, ids_B: Tensor) -> list[float]:
    values: list[float] = values_BV.gather(1, ids_B[:, None])[:, 0].tolist()
    return values
