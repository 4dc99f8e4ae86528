"""Generation: many sequences grow together, each as if it were alone.

The model reads one prompt after the other, chunk by chunk; then each sequence grows in a row of a
`Decoder`. When a sequence ends, the next one takes its row. `generate_sequences` is
`StripedHyena2.generate`; `generate` is the same for any tokens, rules and random numbers.

B rows, L prompt length, V vocabulary.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from stripedhyena2.cache import Cache
from stripedhyena2.decoding import Decoder
from stripedhyena2.diagnosis import first_nonfinite_layer
from stripedhyena2.dna import ACGT, as_read, check_sequences
from stripedhyena2.errors import InputError, NonFiniteError, check_choice, check_count
from stripedhyena2.memory import is_out_of_memory
from stripedhyena2.progress import Progress, ignore_progress
from stripedhyena2.sampling import Sampler, Uniforms, draw

if TYPE_CHECKING:
    from stripedhyena2.model import StripedHyena2

_LOG = logging.getLogger(__name__)

PREFILL_CHUNK = 8192  # prompt tokens in one forward pass: bounds memory, changes no result
ALPHABETS = ("dna", "any")
KV_CACHES = ("auto", "fp8")


class Guide(Protocol):
    """The rules of one sequence while it is generated."""

    def allowed(self) -> tuple[int, ...]:
        """Token ids that may come next, at least one."""

    def advance(self, token: int) -> str | None:
        """Append the token that was drawn; returns why the sequence ends here, or None."""


@dataclass(frozen=True)
class Alphabet:
    """A guide that allows the same tokens at every step and never ends a sequence."""

    tokens: tuple[int, ...]

    def allowed(self) -> tuple[int, ...]:
        """Token ids that may come next."""
        return self.tokens

    def advance(self, _token: int) -> str | None:
        """Append a token."""
        return None


@dataclass(frozen=True, eq=False)
class Request:
    """One sequence to generate.

    Attributes:
        prompt_L: int64 token ids, at least one. Consecutive requests that share the tensor have it
            read once.
        num_tokens: The sequence ends after this many tokens, at least one, with the reason
            "length".
        uniforms: Its random numbers, one for each token.
        guide: Which tokens may be drawn, and what ends the sequence earlier; None allows any token.
    """

    prompt_L: Tensor
    num_tokens: int
    uniforms: Uniforms
    guide: Guide | None = None


@dataclass
class Sample:
    """The tokens that were drawn for a request.

    Attributes:
        index: Index of the request.
        ids: The tokens, without the prompt.
        logprobs: Log-probability of each under the model, in nats: over the whole vocabulary, at
            temperature 1.
        drawn_logprobs: Log-probability of each in the distribution it was drawn from, in nats.
        logits: Logits [V] that each was drawn from, if they are kept.
        stop_reason: "length", or what the guide said; empty while the sequence grows.
    """

    index: int
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    drawn_logprobs: list[float] = field(default_factory=list)
    logits: list[Tensor] = field(default_factory=list)
    stop_reason: str = ""


@dataclass(frozen=True)
class GeneratedSequence:
    """A sequence that `StripedHyena2.generate` returns.

    Attributes:
        prompt: The prompt as the model read it.
        number: Number of the sample of this prompt, from 1.
        sequence: The generated part as text; tokens that are not printable letters become "?".
        ids: Its token ids.
        logprobs: Log-probability of each token under the model, in nats: over the whole vocabulary,
            at temperature 1.
        drawn_logprobs: Log-probability of each token in the distribution it was drawn from, i.e.
            after alphabet, top-k, temperature and top-p, in nats.
    """

    prompt: str
    number: int
    sequence: str
    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    drawn_logprobs: tuple[float, ...]

    @property
    def mean_logprob(self) -> float:
        """Mean of `logprobs`, in nats per base."""
        return fmean(self.logprobs)


class NonFiniteLogitsError(NonFiniteError):
    """The logits of a sequence are NaN or infinite.

    Attributes:
        index: Index of the request.
        problem: The message, which does not name the request.
    """

    def __init__(self, index: int, problem: str) -> None:
        super().__init__(f"request {index}: {problem}")
        self.index = index
        self.problem = problem


def generate_sequences(
    model: "StripedHyena2",
    prompts: str | bytes | Sequence[str | bytes],
    *,
    num_tokens: int = 100,
    num_samples: int = 1,
    temperature: float = 1.0,
    top_k: int = 4,
    top_p: float = 1.0,
    seed: int = 0,
    alphabet: str = "dna",
    batch_size: int = 16,
    kv_cache: str = "auto",
    progress: Progress = ignore_progress,
) -> list[GeneratedSequence]:
    """Generate sequences; arguments, result and errors are those of `StripedHyena2.generate`."""
    check_choice("alphabet", alphabet, ALPHABETS)
    check_choice("kv_cache", kv_cache, KV_CACHES)
    numbers = {"num_tokens": num_tokens, "num_samples": num_samples, "batch_size": batch_size}
    for name, value in numbers.items():
        check_count(name, value)
    sampler = Sampler(temperature, top_k, top_p)
    texts = [prompts] if isinstance(prompts, str | bytes) else prompts
    read = [as_read(prompt) for prompt in check_sequences(texts, what="prompt")]
    guide = Alphabet(tuple(ACGT)) if alphabet == "dna" else None
    samples = [(prompt, number) for prompt in read for number in range(1, num_samples + 1)]
    ids = {prompt: torch.tensor(list(prompt)) for prompt in read}
    requests = [
        Request(ids[prompt], num_tokens, Uniforms.of_sample(seed, prompt, number), guide)
        for prompt, number in samples
    ]
    found = generate(
        model,
        requests,
        sampler,
        batch_size=batch_size,
        float8=kv_cache == "fp8",
        progress=progress,
    )
    try:
        return [
            GeneratedSequence(
                prompt.decode(),
                number,
                token_text(sample.ids),
                tuple(sample.ids),
                tuple(sample.logprobs),
                tuple(sample.drawn_logprobs),
            )
            for (prompt, number), sample in zip(samples, found, strict=True)
        ]
    except NonFiniteLogitsError as error:
        prompt_index, sample_index = divmod(error.index, num_samples)
        raise NonFiniteError(
            f"prompt {prompt_index}, sample {sample_index + 1}: {error.problem}"
        ) from None


def token_text(ids: Sequence[int]) -> str:
    """Tokens as text that a FASTA file can hold: others than printable letters become "?"."""
    letters = map(chr, ids)
    return "".join(c if c.isascii() and c.isprintable() and c not in "> " else "?" for c in letters)


@torch.no_grad()
def prefill(model: "StripedHyena2", ids_BL: Tensor, cache: Cache) -> Tensor:
    """Read prompts of equal length into a cache; returns the logits of the next token, [B, V]."""
    for start in range(0, ids_BL.shape[1], PREFILL_CHUNK):
        logits_BV: Tensor = model(ids_BL[:, start : start + PREFILL_CHUNK], cache=cache)[:, -1]
    return logits_BV


def generate(
    model: "StripedHyena2",
    requests: Sequence[Request],
    sampler: Sampler,
    *,
    batch_size: int = 16,
    float8: bool = False,
    keep_logits: bool = False,
    progress: Progress = ignore_progress,
) -> Iterator[Sample]:
    """Generate sequences, up to `batch_size` of them together.

    A sequence depends on its own request only, except that the last bits of the logits can differ
    with the number and order of rows.

    Args:
        model: On any device; random numbers are turned into tokens on the CPU, in fp64.
        requests: What to generate.
        sampler: The distribution that tokens are drawn from.
        batch_size: Sequences that grow together; halved until the memory suffices.
        float8: Store keys and values in FP8, which halves their memory and changes the numbers.
        keep_logits: Keep the logits of every token in the samples.
        progress: Called with the number of tokens drawn since the last call.

    Yields:
        A sample for each request, in their order, as soon as it and all before it are complete.

    Raises:
        InputError: A prompt is empty, or its number of tokens is below 1.
        NonFiniteLogitsError: The logits of a sequence are NaN or infinite.
    """
    for index, request in enumerate(requests):
        if len(request.prompt_L) == 0:
            raise InputError(f"prompt {index} is empty; give at least one token")
        check_count(f"prompt {index}: num_tokens", request.num_tokens)
    if not requests:
        return
    batch_size = min(batch_size, len(requests))
    while True:
        try:
            batch = _Batch(model, requests, sampler, batch_size, float8, keep_logits, progress)
            break
        except RuntimeError as error:
            if batch_size == 1 or not is_out_of_memory(error):
                raise
            batch_size //= 2
            _LOG.warning("out of memory; generating %d sequences at a time instead", batch_size)
    finished: dict[int, Sample] = {}
    next_index = 0
    for sample in batch.run():
        finished[sample.index] = sample
        while next_index in finished:
            yield finished.pop(next_index)
            next_index += 1


class _Batch:
    """The sequences in the rows of a decoder."""

    def __init__(
        self,
        model: "StripedHyena2",
        requests: Sequence[Request],
        sampler: Sampler,
        batch_size: int,
        float8: bool,
        keep_logits: bool,
        progress: Progress,
    ) -> None:
        self._model = model
        self._device = next(model.parameters()).device
        self._requests = requests
        self._sampler = sampler
        self._keep_logits = keep_logits
        self._progress = progress
        self._waiting = iter(range(len(requests)))
        self._rows: list[Sample | None] = [None] * batch_size
        capacity = max(len(request.prompt_L) + request.num_tokens for request in requests)
        self._decoder = Decoder(model, len(self._rows), capacity, float8=float8)
        self._masks: dict[tuple[int, ...] | None, Tensor] = {}
        self._prompt_L: Tensor | None = None  # the prompt read last, with its logits and its cache
        self._logits_1V: Tensor
        self._cache: Cache
        # All memory is allocated here, so that the caller can try again with fewer rows.
        self._decoder.step(torch.zeros(batch_size, dtype=torch.int64, device=self._device))
        self._read(requests[0].prompt_L, row=0)

    def run(self) -> Iterator[Sample]:
        """Samples in the order in which they end."""
        for row in range(len(self._rows)):
            yield from self._fill(row)
        while any(self._rows):
            last = [sample.ids[-1] if sample else 0 for sample in self._rows]
            logits_BV = self._decoder.step(torch.tensor(last, device=self._device)).cpu()
            growing = [(row, sample) for row, sample in enumerate(self._rows) if sample]
            self._draw([sample for _, sample in growing], logits_BV[[row for row, _ in growing]])
            for row, sample in growing:
                if sample.stop_reason:
                    yield sample
                    yield from self._fill(row)

    def _fill(self, row: int) -> Iterator[Sample]:
        """Put the next sequence into a row; yields sequences that end with their first token."""
        self._rows[row] = None
        for index in self._waiting:
            self._read(self._requests[index].prompt_L, row)
            sample = Sample(index)
            self._draw([sample], self._logits_1V)
            if not sample.stop_reason:
                self._decoder.place(row, self._cache)
                self._rows[row] = sample
                return
            yield sample

    def _read(self, prompt_L: Tensor, row: int) -> None:
        """Read a prompt into a row, unless it is the one read last.

        Its keys and values stay in that row. The sequence that grows there only appends to them, so
        other samples of the prompt copy them from there.
        """
        if prompt_L is not self._prompt_L:
            self._cache = self._decoder.new_cache(row)
            ids_1L = prompt_L[None].to(self._device)
            self._logits_1V = prefill(self._model, ids_1L, self._cache).cpu()
            self._prompt_L = prompt_L

    def _draw(self, samples: Sequence[Sample], logits_BV: Tensor) -> None:
        """Draw the next token of every sample from its row of logits."""
        for sample, is_finite in zip(samples, logits_BV.isfinite().all(1).tolist(), strict=True):
            if not is_finite:
                raise self._not_finite(sample)
        if self._keep_logits:
            for sample, logits_V in zip(samples, logits_BV, strict=True):
                sample.logits.append(logits_V.clone())
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
            reason = None if request.guide is None else request.guide.advance(token)
            is_full = len(sample.ids) == request.num_tokens
            sample.stop_reason = reason or ("length" if is_full else "")
        self._progress(len(samples))

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

    def _not_finite(self, sample: Sample) -> NonFiniteLogitsError:
        """The error for logits that are not finite, with the layer where that began."""
        prompt_L = self._requests[sample.index].prompt_L
        ids_1L = torch.cat([prompt_L, torch.tensor(sample.ids, dtype=torch.int64)])[None]
        cache = self._model.new_cache(*ids_1L.shape)
        layer = first_nonfinite_layer(
            self._model,
            ids_1L.to(self._device),
            lambda ids_BL: prefill(self._model, ids_BL, cache),
        )
        origin = f"first in layer {layer}" if layer else "in decoding alone"
        return NonFiniteLogitsError(
            sample.index,
            f"the logits of token {len(sample.ids) + 1} after the prompt are not finite, {origin}; "
            "compute in fp32 (--dtype fp32), or use other weights",
        )


def _picked(values_BV: Tensor, ids_B: Tensor) -> list[float]:
    values: list[float] = values_BV.gather(1, ids_B[:, None])[:, 0].tolist()
    return values
