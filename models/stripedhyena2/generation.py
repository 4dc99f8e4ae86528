"""Generation with continuous batching: many sequences grow together, each as if it were alone.

Prompts are prefilled one after the other, chunk by chunk; then each sequence is decoded in a row of
a `Decoder`. When a sequence ends, the next one takes its row. `generate_sequences` implements
`StripedHyena2.generate`; `generate` is the same for any tokens, constraints and random numbers;
`Rows` lets sequences join and leave at any time.

B rows, L prompt length, V vocabulary.
"""

import logging
from collections import deque
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
from stripedhyena2.errors import InputError, NonFiniteError, check_choice, check_count, check_whole
from stripedhyena2.ids import check_range
from stripedhyena2.memory import is_out_of_memory
from stripedhyena2.progress import Progress, ignore_progress
from stripedhyena2.sampling import Sampler, Uniforms, draw

if TYPE_CHECKING:
    from stripedhyena2.model import StripedHyena2

_LOG = logging.getLogger(__name__)

PREFILL_CHUNK = 8192  # prompt tokens per forward pass: bounds memory, changes no result
ALPHABETS = ("dna", "any")
KV_CACHES = ("auto", "fp8")


class Guide(Protocol):
    """Constrains the generation of one sequence."""

    def allowed(self) -> tuple[int, ...]:
        """Token ids that may come next, at least one."""

    def advance(self, token: int) -> str | None:
        """Append the drawn token; returns the stop reason if the sequence ends here, else None."""


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
        prompt_L: int64 token ids, at least one. If consecutive requests share the tensor, it is
            prefilled once.
        num_tokens: The maximum number of generated tokens, at least one; the stop reason is then
            "length".
        uniforms: Its random numbers, one per token.
        guide: Which tokens may be drawn, and when the sequence ends earlier; None allows any token.
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
        logits: The logits [V] that each was drawn from, if they are kept.
        stop_reason: "length", or the reason from the guide; empty while the sequence grows.
        problem: Why the sequence cannot continue: its logits are NaN or infinite. Else empty.
    """

    index: int
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    drawn_logprobs: list[float] = field(default_factory=list)
    logits: list[Tensor] = field(default_factory=list)
    stop_reason: str = ""
    problem: str = ""

    @property
    def has_ended(self) -> bool:
        """Whether the sequence is complete, or has failed."""
        return bool(self.stop_reason or self.problem)


@dataclass(frozen=True)
class GeneratedSequence:
    """A sequence that `StripedHyena2.generate` returns.

    Attributes:
        prompt: The prompt as the model read it.
        number: The number of the sample of this prompt, from 1.
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
    ids: tuple[int, ...] = field(repr=False)
    logprobs: tuple[float, ...] = field(repr=False)
    drawn_logprobs: tuple[float, ...] = field(repr=False)

    @property
    def mean_logprob(self) -> float:
        """Mean of `logprobs`, in nats per base."""
        return fmean(self.logprobs)


class NonFiniteLogitsError(NonFiniteError):
    """The logits of a sequence are NaN or infinite.

    Attributes:
        index: Index of the request.
        problem: The message, without the index of the request.
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
    """Implements `StripedHyena2.generate`, with the same arguments, result and errors."""
    check_choice("alphabet", alphabet, ALPHABETS)
    check_choice("kv_cache", kv_cache, KV_CACHES)
    numbers = {"num_tokens": num_tokens, "num_samples": num_samples, "batch_size": batch_size}
    for name, value in numbers.items():
        check_count(name, value)
    check_whole("seed", seed)
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
    generated = generate(
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
            for (prompt, number), sample in zip(samples, generated, strict=True)
        ]
    except NonFiniteLogitsError as error:
        prompt_index, sample_index = divmod(error.index, num_samples)
        raise NonFiniteError(
            f"prompt {prompt_index}, sample {sample_index + 1}: {error.problem}"
        ) from None


def token_text(ids: Sequence[int]) -> str:
    """Tokens as text for FASTA files; tokens that are not printable letters become "?"."""
    letters = map(chr, ids)
    return "".join(c if c.isascii() and c.isprintable() and c not in "> " else "?" for c in letters)


@torch.no_grad()
def prefill(model: "StripedHyena2", ids_BL: Tensor, cache: Cache) -> Tensor:
    """Prefill a cache with prompts of equal length; returns the next-token logits, [B, V]."""
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

    A sequence depends on its own request alone, except that the last bits of the logits can differ
    with the number and order of rows.

    Args:
        model: The model, on any device; tokens are drawn on the CPU, in fp64.
        requests: What to generate.
        sampler: The distribution that tokens are drawn from.
        batch_size: Sequences per decoding step; halved until they fit the memory.
        float8: Store keys and values in FP8, which halves their memory and changes the numbers.
        keep_logits: Keep the logits of every token in the samples.
        progress: Called with the number of tokens drawn since the last call.

    Yields:
        A sample for each request, in order, as soon as it and all before it are complete.

    Raises:
        InputError: A prompt is empty, or its number of tokens is below 1; or a token of a prompt or
            of a guide is not in the vocabulary.
        NonFiniteLogitsError: The logits of a sequence are NaN or infinite.
    """
    for index, request in enumerate(requests):
        if len(request.prompt_L) == 0:
            raise InputError(f"prompt {index} is empty; give at least one token")
        check_count(f"prompt {index}: num_tokens", request.num_tokens)
        check_range(request.prompt_L, model.config.vocabulary, f"prompt {index}: token id")
    if not requests:
        return
    capacity = max(len(request.prompt_L) + request.num_tokens for request in requests)
    rows = Rows.within_memory(
        model,
        min(batch_size, len(requests)),
        capacity,
        float8=float8,
        prompt_L=requests[0].prompt_L,
    )
    waiting = deque(enumerate(requests))
    finished: dict[int, Sample] = {}
    next_index = 0
    while waiting or rows.samples:
        if waiting and rows.has_free_row:
            index, request = waiting.popleft()
            updated = [rows.add(request, sampler, index, keep_logits=keep_logits)]
        else:
            updated = rows.step()
        for sample in updated:
            if sample.problem:
                raise NonFiniteLogitsError(sample.index, sample.problem)
            if sample.stop_reason:
                finished[sample.index] = sample
        progress(len(updated))
        while next_index in finished:
            yield finished.pop(next_index)
            next_index += 1


class Rows:
    """Continuous batching: sequences in the rows of a decoder, which join and leave between steps.

    The logits of a sequence do not depend on the sequences in other rows; the number of rows, which
    is fixed, can change their last bits.

    Args:
        model: The model, on any device; tokens are drawn on the CPU, in fp64.
        batch_size: Number of rows.
        capacity: The maximum number of tokens of a sequence, including its prompt.
        float8: Store keys and values in FP8.

    Attributes:
        batch_size: Number of rows.
        capacity: The maximum number of tokens of a sequence, including its prompt.
    """

    def __init__(
        self, model: "StripedHyena2", batch_size: int, capacity: int, *, float8: bool = False
    ) -> None:
        self.batch_size, self.capacity = batch_size, capacity
        self._model = model
        self._device = next(model.parameters()).device
        self._rows: list[_ActiveSequence | None] = [None] * batch_size
        self._decoder = Decoder(model, batch_size, capacity, float8=float8)
        self._masks: dict[tuple[int, ...] | None, Tensor] = {}
        self._prompt_L: Tensor | None = None  # the last prefilled prompt, with its logits and cache
        self._logits_1V: Tensor
        self._cache: Cache
        self._pending_step: _Step | None = None
        self._decoder.step(torch.zeros(batch_size, dtype=torch.int64))

    @classmethod
    def within_memory(
        cls,
        model: "StripedHyena2",
        batch_size: int,
        capacity: int,
        *,
        float8: bool = False,
        prompt_L: Tensor,
    ) -> "Rows":
        """As many rows as fit the memory: `batch_size`, halved until a prefill also fits.

        Raises:
            RuntimeError: Out of memory even for one row.
        """
        while True:
            try:
                rows = cls(model, batch_size, capacity, float8=float8)
                rows._read(prompt_L, row=0)
                return rows
            except RuntimeError as error:
                if batch_size == 1 or not is_out_of_memory(error):
                    raise
                batch_size //= 2
                _LOG.warning("out of memory; generating %d sequences at a time instead", batch_size)

    @property
    def samples(self) -> list[Sample]:
        """The samples in progress."""
        return [active.sample for active in self._rows if active is not None]

    @property
    def has_free_row(self) -> bool:
        """Whether a row is free."""
        return None in self._rows

    def add(
        self, request: Request, sampler: Sampler, index: int = 0, *, keep_logits: bool = False
    ) -> Sample:
        """Prefill a prompt into a free row, and draw the first token after it.

        The prompt is not prefilled again if it is the same tensor as last time.

        Args:
            request: What to generate; prompt and tokens must not exceed the capacity.
            sampler: The distribution that tokens are drawn from.
            index: The index of the sample.
            keep_logits: Keep the logits of every token in the sample.
        """
        row = self._rows.index(None)
        self._read(request.prompt_L, row)
        # Placed even if it ends here: steps write to idle rows too, after their last sequence.
        self._decoder.place(row, self._cache)
        active = _ActiveSequence(Sample(index), request, sampler, keep_logits)
        self._draw([active], self._logits_1V)
        if not active.sample.has_ended:
            self._rows[row] = active
        return active.sample

    def step(self) -> list[Sample]:
        """Draw a token for every sample; those that end, or have a problem, leave their rows.

        The next step of the decoder is then launched at once: a GPU computes it while the caller
        handles these tokens. A sample that is added meanwhile joins the step after it, and results
        for a sample that is removed meanwhile are dropped.
        """
        step = self._pending_step or self._start_step()
        self._pending_step = None
        kept = [(row, active) for row, active in step.active if self._rows[row] is active]
        logits_BV = step.logits_BV.cpu()
        if len(kept) < len(logits_BV):
            logits_BV = logits_BV[[row for row, _ in kept]]
        self._draw([active for _, active in kept], logits_BV)
        for row, active in kept:
            if active.sample.has_ended:
                self._rows[row] = None
        if any(self._rows):
            self._pending_step = self._start_step()
        return [active.sample for _, active in kept]

    def _start_step(self) -> "_Step":
        """Launch a step of the decoder."""
        occupied = [(row, active) for row, active in enumerate(self._rows) if active is not None]
        last_B = [0 if active is None else active.sample.ids[-1] for active in self._rows]
        return _Step(occupied, self._decoder.step(torch.tensor(last_B)))

    def remove(self, sample: Sample) -> None:
        """Free the row of a sample, if it has one."""
        self._rows = [
            None if active is not None and active.sample is sample else active
            for active in self._rows
        ]

    def _read(self, prompt_L: Tensor, row: int) -> None:
        """Prefill a prompt into a row, unless it is the last one.

        Its keys and values stay in that row. The sequence in the row only appends to them, so other
        samples of the prompt copy them from there.
        """
        if prompt_L is not self._prompt_L:
            self._prompt_L = None  # until the prefill is complete
            self._cache = self._decoder.new_cache(row)
            ids_1L = prompt_L[None].to(self._device)
            self._logits_1V = prefill(self._model, ids_1L, self._cache).cpu()
            self._prompt_L = prompt_L

    def _draw(self, group: "Sequence[_ActiveSequence]", logits_BV: Tensor) -> None:
        """Draw the next token of each sample from its row of logits."""
        wide_BV = logits_BV.double()
        if not wide_BV.sum().isfinite():  # a sum of finite fp32 numbers is finite in fp64
            are_finite = logits_BV.isfinite().all(1)
            for active, is_finite in zip(group, are_finite.tolist(), strict=True):
                if not is_finite:
                    active.sample.problem = self._not_finite(active)
            group = [active for active in group if not active.sample.problem]
            logits_BV, wide_BV = logits_BV[are_finite], wide_BV[are_finite]
        if not group:
            return
        for row, active in enumerate(group):
            if active.keep_logits:
                active.sample.logits.append(logits_BV[row].clone())
        allowed_BV = torch.stack([self._mask(active.request.guide) for active in group])
        samplers = [active.sampler for active in group]
        probabilities_BV = _probabilities(samplers, wide_BV, allowed_BV)
        ids_B = draw(probabilities_BV, [active.request.uniforms.draw() for active in group])
        drawn = zip(
            group,
            ids_B.tolist(),
            _picked(torch.log_softmax(wide_BV, 1), ids_B).tolist(),
            _picked(probabilities_BV, ids_B).log().tolist(),
            strict=True,
        )
        for active, token, logprob, drawn_logprob in drawn:
            sample, request = active.sample, active.request
            sample.ids.append(token)
            sample.logprobs.append(logprob)
            sample.drawn_logprobs.append(drawn_logprob)
            reason = None if request.guide is None else request.guide.advance(token)
            is_full = len(sample.ids) == request.num_tokens
            sample.stop_reason = reason or ("length" if is_full else "")

    def _mask(self, guide: Guide | None) -> Tensor:
        """The mask of tokens that may be drawn, [V]."""
        ids = None if guide is None else guide.allowed()
        mask_V = self._masks.get(ids)
        if mask_V is None:
            mask_V = torch.full((self._model.config.vocabulary,), ids is None)
            if ids is not None:
                check_range(torch.tensor(ids), len(mask_V), "a guide allows token id")
                mask_V[list(ids)] = True
            self._masks[ids] = mask_V
        return mask_V

    def _not_finite(self, active: "_ActiveSequence") -> str:
        """The error message for logits that are not finite, with the first layer affected."""
        ids = torch.tensor(active.sample.ids, dtype=torch.int64)
        ids_1L = torch.cat([active.request.prompt_L, ids])[None]
        try:
            cache = self._model.new_cache(*ids_1L.shape)
            layer = first_nonfinite_layer(
                self._model,
                ids_1L.to(self._device),
                lambda ids_BL: prefill(self._model, ids_BL, cache),
            )
            origin = f"first in layer {layer}" if layer else "in decoding alone"
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            origin = "in a layer that cannot be found for lack of memory"
        return (
            f"the logits of token {len(ids) + 1} after the prompt are not finite, {origin}; "
            "compute in fp32, or use other weights"
        )


@dataclass(frozen=True, eq=False)
class _ActiveSequence:
    """A sequence that occupies a row."""

    sample: Sample
    request: Request
    sampler: Sampler
    keep_logits: bool


@dataclass(frozen=True)
class _Step:
    """A step of the decoder that has been launched.

    Attributes:
        active: The sequences that take part, each with its row.
        logits_BV: Next-token logits of every row, idle ones included.
    """

    active: list[tuple[int, _ActiveSequence]]
    logits_BV: Tensor


def _probabilities(samplers: Sequence[Sampler], logits_BV: Tensor, allowed_BV: Tensor) -> Tensor:
    """The distributions of rows, each by its sampler, [B, V]; rows are batched by sampler."""
    rows_of: dict[Sampler, list[int]] = {}
    for row, sampler in enumerate(samplers):
        rows_of.setdefault(sampler, []).append(row)
    if len(rows_of) == 1:
        return samplers[0].probabilities(logits_BV, allowed_BV)
    probabilities_BV = torch.empty_like(logits_BV)
    for sampler, rows in rows_of.items():
        probabilities_BV[rows] = sampler.probabilities(logits_BV[rows], allowed_BV[rows])
    return probabilities_BV


def _picked(values_BV: Tensor, ids_B: Tensor) -> Tensor:
    return values_BV.gather(1, ids_B[:, None])[:, 0]
