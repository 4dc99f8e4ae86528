"""Log-likelihoods of DNA, in nats.

The log-likelihood of bases x_1 ... x_n is the sum over t = 2 ... n of log P(x_t | x_1 ... x_(t-1)).
The first base has no prediction, as no token precedes it, so n bases have n - 1 predictions.
Log-softmax is computed in fp32 or better over the whole vocabulary, sums in fp64. Sequences are
read one at a time, so no score depends on what else is scored.

`ScoringState` reads a sequence chunk by chunk and can be continued any number of times, so that
windows can share a prefix. `sequence_logprob` streams one sequence of any length through the model
layer by layer, within the available memory. `score_sequences` implements `StripedHyena2.score`.

L tokens, V vocabulary.
"""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import mean
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from stripedhyena2.cache import Cache
from stripedhyena2.diagnosis import first_nonfinite_layer
from stripedhyena2.dna import as_read, check_sequences, strand_of, strands_of
from stripedhyena2.errors import (
    InputError,
    InsufficientMemoryError,
    NonFiniteError,
    check_choice,
    check_positive,
)
from stripedhyena2.host import available_bytes
from stripedhyena2.memory import free_bytes, is_out_of_memory
from stripedhyena2.progress import Progress, ignore_progress
from stripedhyena2.streaming import Streaming, fastest_streaming, stream

if TYPE_CHECKING:
    from stripedhyena2.model import StripedHyena2

T = TypeVar("T")

_LOG = logging.getLogger(__name__)

CHUNK = 8192  # bases per forward pass: bounds memory; fixed, so that sums are always the same
REDUCTIONS = ("mean", "sum", "none")


@dataclass(frozen=True)
class ScoringState:
    """A prefix of a sequence. `extend` returns a new state and leaves this one unchanged.

    Attributes:
        model: The model that reads the sequence.
        cache: Its cache after the bases read so far.
        logprob: Log-likelihood of the bases read so far, in nats.
        next_V: Log-probabilities of the next token [V]; None before the first base.
    """

    model: "StripedHyena2"
    cache: Cache
    logprob: float
    next_V: Tensor | None

    @classmethod
    def start(cls, model: "StripedHyena2") -> "ScoringState":
        """The state before the first base."""
        return cls(model, model.new_cache(1), 0.0, None)

    def extend(
        self, bases: bytes, progress: Callable[[int], None] = ignore_progress
    ) -> "ScoringState":
        """Read more bases, upper-case letters."""
        state = self
        for start in range(0, len(bases), CHUNK):
            chunk = bases[start : start + CHUNK]
            state, _, _ = state.predict(chunk)
            progress(len(chunk))
        return state

    @torch.inference_mode()
    def predict(self, bases: bytes) -> tuple["ScoringState", Tensor, Tensor]:
        """Read more bases in one forward pass, and return their predictions.

        Returns:
            The state after them, token ids [L], and log-probabilities [L, V] in nats, where each
            row is the prediction of its token from all bases before it. The first base of a
            sequence has no row in either.
        """
        ids_L = token_ids(self.model, bases)
        cache = self.cache.clone()
        logprobs_LV = self.model(ids_L[None], cache=cache)[0].log_softmax(dim=-1)
        next_V, predictions_LV = logprobs_LV[-1].clone(), logprobs_LV[:-1]
        if self.next_V is None:
            ids_L = ids_L[1:]
        else:
            predictions_LV = torch.cat([self.next_V[None], predictions_LV])
        logprob = self.logprob + token_logprobs(predictions_LV, ids_L).sum().item()
        return ScoringState(self.model, cache, logprob, next_V), ids_L, predictions_LV


def token_logprobs(logprobs_LV: Tensor, ids_L: Tensor) -> Tensor:
    """The log-probability [L] of each token, in fp64 and nats."""
    return logprobs_LV.gather(1, ids_L[:, None])[:, 0].double()


def token_ids(model: "StripedHyena2", bases: bytes) -> Tensor:
    """Token ids [L] of `bases`, on the device of the model."""
    values = torch.frombuffer(bytearray(bases), dtype=torch.uint8)
    return values.to(model.embedding.weight.device, torch.int64)


def score_sequences(
    model: "StripedHyena2",
    sequences: Sequence[str | bytes],
    *,
    reduce: str = "mean",
    strand: str = "fwd",
    max_memory: float | None = None,
    progress: Progress = ignore_progress,
) -> list[float] | list[Tensor]:
    """Implements `StripedHyena2.score`, with the same arguments, result and errors."""
    check_choice("reduce", reduce, REDUCTIONS)
    strands = strands_of(strand)
    if reduce == "none" and len(strands) > 1:
        raise InputError(
            "reduce='none' with strand='both': the strands predict different bases; score 'fwd' "
            "and 'rc' one after the other"
        )
    checked = check_sequences(sequences, min_length=2, strands=strands)
    letters = [as_read(sequence) for sequence in checked]
    if reduce == "none":
        logprobs: list[Tensor] = []
        for index, bases in enumerate(letters):
            read = strand_of(bases, *strands)
            logprobs_L = sequence_logprobs(model, read, progress, max_memory)
            require_finite(logprobs_L.sum().item(), model, read, f"sequence {index}")
            logprobs.append(logprobs_L)
        return logprobs
    total = partial(sequence_logprob, model, max_memory=max_memory)
    scores: list[float] = []
    for index, bases in enumerate(letters):
        reads = [strand_of(bases, direction) for direction in strands]
        score = mean_logprob(model, reads, f"sequence {index}", total, progress)
        scores.append(score / (len(bases) - 1 if reduce == "mean" else 1))
    return scores


def mean_logprob(
    model: "StripedHyena2",
    reads: Sequence[bytes],
    name: str,
    total: Callable[[bytes, Progress], float],
    progress: Progress = ignore_progress,
) -> float:
    """The log-likelihood of a sequence, averaged over its strands, in nats.

    Args:
        model: The model that `total` runs, for the error message.
        reads: The bases of each strand.
        name: What the error message calls the sequence.
        total: The log-likelihood of bases, as `sequence_logprob` computes it.
        progress: See `stripedhyena2.progress`; all strands together count each base once.

    Raises:
        NonFiniteError: A log-likelihood is NaN or infinite.
    """
    totals = []
    for read in reads:
        totals.append(total(read, lambda count: progress(count / len(reads))))
        require_finite(totals[-1], model, read, name)
    return mean(totals)


def sequence_logprob(
    model: "StripedHyena2",
    bases: bytes,
    progress: Progress = ignore_progress,
    max_memory: float | None = None,
    context: bytes = b"",
) -> float:
    """Log-likelihood of a sequence of any length, in nats.

    Args:
        model: The model that scores.
        bases: Upper-case letters.
        progress: See `stripedhyena2.progress`.
        max_memory: Bytes that weights and computation may use on the device of the model; None for
            what is free.
        context: Letters that are read before the bases but not scored, e.g. a lineage tag. After
            them, the first base has a prediction, too.

    Raises:
        InsufficientMemoryError: Even the smallest chunks do not fit into memory.
    """
    letters = context + bases

    def compute(streaming: Streaming, progress: Progress) -> float:
        total, num_left_out = 0.0, max(len(context) - 1, 0)
        for logprobs_L in _stream_logprobs(model, letters, streaming, progress):
            total += logprobs_L[num_left_out:].sum().item()
            num_left_out = max(num_left_out - len(logprobs_L), 0)
        return total

    return stream_within_memory(model, len(letters), compute, progress, max_memory)


def sequence_logprobs(
    model: "StripedHyena2",
    bases: bytes,
    progress: Progress = ignore_progress,
    max_memory: float | None = None,
) -> Tensor:
    """The terms of `sequence_logprob`, for each base but the first: [L - 1], fp64, on the CPU."""

    def compute(streaming: Streaming, progress: Progress) -> Tensor:
        chunks = _stream_logprobs(model, bases, streaming, progress)
        return torch.cat([logprobs_L.cpu() for logprobs_L in chunks])

    return stream_within_memory(model, len(bases), compute, progress, max_memory)


@torch.inference_mode()
def _stream_logprobs(
    model: "StripedHyena2", bases: bytes, streaming: Streaming, progress: Progress
) -> Iterator[Tensor]:
    """Log-probabilities of all bases but the first, in order, as one or two tensors per chunk."""
    ids_L = token_ids(model, bases)
    next_V, done = None, 0
    for count, logits in stream(model, ids_L[None], streaming):
        progress(count / (model.config.depth + 1))
        if logits is None:
            continue
        logprobs_LV = logits[0].log_softmax(dim=-1)
        chunk_L = ids_L[done : done + count]
        done += count
        if next_V is not None:
            yield token_logprobs(next_V[None], chunk_L[:1])
        yield token_logprobs(logprobs_LV[:-1], chunk_L[1:])
        next_V = logprobs_LV[-1].clone()


def stream_within_memory(
    model: "StripedHyena2",
    num_bases: int,
    compute: Callable[[Streaming, Progress], T],
    progress: Progress = ignore_progress,
    max_memory: float | None = None,
) -> T:
    """Run `compute`, which streams a sequence, with the fastest plan that fits into memory.

    Args:
        model: The model that reads the sequence.
        num_bases: Length of the sequence.
        compute: Called with the streaming plan and a progress callback; called again with the next
            smaller plan after an out-of-memory error.
        progress: See `stripedhyena2.progress`.
        max_memory: As for `sequence_logprob`.

    Raises:
        InsufficientMemoryError: Even the smallest chunks do not fit into memory.
    """
    streaming: Streaming | None = choose_streaming(model, num_bases, max_memory)
    while streaming is not None:
        done = 0.0

        def count_and_report(count: float) -> None:
            nonlocal done
            done += count
            progress(count)

        try:
            return compute(streaming, count_and_report)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            progress(-done)
            streaming = streaming.fallback
            if streaming is not None:
                where = " in host memory" if streaming.offload else ""
                _LOG.warning(
                    "out of memory; retrying with chunks of %d bases%s", streaming.chunk, where
                )
    raise InsufficientMemoryError(
        f"{num_bases:,} bases do not fit into the memory of {model.embedding.weight.device}, even "
        "in small chunks; free some of it, or cut the sequence"
    )


def choose_streaming(model: "StripedHyena2", num_bases: int, max_memory: float | None) -> Streaming:
    """The fastest streaming plan that needs at most `max_memory` bytes, including the weights.

    Args:
        model: The model; only weights on the device of its embedding count.
        num_bases: Length of the sequence.
        max_memory: None for the free memory of the device.

    Raises:
        InsufficientMemoryError: Every plan needs more memory.
        InputError: `max_memory` is not a number above 0.
    """
    if max_memory is not None:
        check_positive("max_memory", max_memory)
    weight = model.embedding.weight
    tensors = model.state_dict().values()
    weights = sum(tensor.nbytes for tensor in tensors if tensor.device == weight.device)
    advice = "free some" if max_memory is None else "raise max_memory"
    if max_memory is None and not weight.is_cuda:
        available = available_bytes()
        needed = Streaming().peak_memory(model.config, num_bases, weight.element_size())
        if available is not None and needed > available:
            raise InsufficientMemoryError(
                f"{num_bases:,} tokens need {needed / 2**20:,.0f} MiB beside the weights, and "
                f"{available / 2**20:,.0f} are free; free some, or cut the sequence"
            )
        return Streaming()
    if max_memory is None:
        max_memory = free_bytes(weight.device) + weights
    try:
        return fastest_streaming(
            model.config, num_bases, weight.element_size(), weights, max_memory
        )
    except MemoryError as error:
        raise InsufficientMemoryError(f"{error}; {advice}, or cut the sequence") from error


def require_finite(logprob: float, model: "StripedHyena2", bases: bytes, name: str) -> None:
    """Refuse a log-likelihood that is NaN or infinite.

    Raises:
        NonFiniteError: The message names the first layer affected.
    """
    if not math.isfinite(logprob):
        raise nonfinite_error(f"{name}: the log-likelihood is {logprob}", model, bases)


def nonfinite_error(problem: str, model: "StripedHyena2", bases: bytes) -> NonFiniteError:
    """An error for a problem, with the first layer affected if reading `bases` reproduces it."""
    layer = first_nonfinite_layer(model, token_ids(model, bases[:CHUNK])[None])
    origin = f", first in layer {layer}" if layer else ""
    return NonFiniteError(f"{problem}{origin}; compute in fp32, or use other weights")
