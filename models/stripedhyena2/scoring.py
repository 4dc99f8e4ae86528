"""Log-likelihoods of DNA, in nats.

The log-likelihood of bases x_1 ... x_n is the sum over t = 2 ... n of log P(x_t | x_1 ... x_(t-1)).
No token stands before the first base, so it has no prediction and n bases have n - 1 of them.
Log-softmax runs in fp32 or better over the whole vocabulary, sums run in fp64. Sequences are read
one at a time, so that no score depends on what else is scored.

`ScoringState` reads a sequence chunk by chunk and can be continued any number of times, which is
how windows share their common beginning. `sequence_logprob` streams one sequence of any length
through the model layer by layer, within the memory there is.

L tokens, V vocabulary.
"""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from stripedhyena2.cache import Cache
from stripedhyena2.diagnosis import first_nonfinite_layer
from stripedhyena2.errors import InputError, NonFiniteError
from stripedhyena2.memory import is_out_of_memory
from stripedhyena2.model import StripedHyena2
from stripedhyena2.streaming import Streaming, fitting, stream

T = TypeVar("T")

_LOG = logging.getLogger(__name__)

CHUNK = 8192  # bases in one forward pass: bounds its memory; fixed, so that sums never vary


def ignore_progress(_: float) -> None:
    """The callback of a caller who does not follow the progress."""


@dataclass(frozen=True)
class ScoringState:
    """A sequence that was read so far. `extend` returns a new state and leaves this one as it is.

    Attributes:
        model: What reads the sequence.
        cache: The model's state after the bases so far.
        logprob: Log-likelihood of the bases so far, in nats.
        next_V: Log-probabilities of the next token [V]; None before the first base.
    """

    model: StripedHyena2
    cache: Cache
    logprob: float
    next_V: Tensor | None

    @classmethod
    def start(cls, model: StripedHyena2) -> "ScoringState":
        """A sequence before its first base."""
        return cls(model, model.new_cache(1), 0.0, None)

    def extend(
        self, bases: bytes, advance: Callable[[int], None] = ignore_progress
    ) -> "ScoringState":
        """Read further bases.

        Args:
            bases: Upper-case letters.
            advance: Called with the number of bases each time that a chunk has been read.
        """
        state = self
        for start in range(0, len(bases), CHUNK):
            chunk = bases[start : start + CHUNK]
            state, _, _ = state.predict(chunk)
            advance(len(chunk))
        return state

    @torch.inference_mode()
    def predict(self, bases: bytes) -> tuple["ScoringState", Tensor, Tensor]:
        """Read further bases in one forward pass, and return how each of them was predicted.

        Returns:
            The state after them; token ids [L]; and log-probabilities [L, V] in nats, each row
            given all bases before its token. The first base of a sequence has no row in either.
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


def token_ids(model: StripedHyena2, bases: bytes) -> Tensor:
    """Token ids [L] of `bases`, on the device of the model."""
    values = torch.frombuffer(bytearray(bases), dtype=torch.uint8)
    return values.to(model.embedding.weight.device, torch.int64)


def sequence_logprob(
    model: StripedHyena2,
    bases: bytes,
    advance: Callable[[float], None] = ignore_progress,
    max_memory: float | None = None,
) -> float:
    """Log-likelihood of a sequence of any length, in nats.

    Args:
        model: What scores.
        bases: Upper-case letters.
        advance: Called with the number of bases done, in fractions as layers are passed; a negative
            number takes back what has to be computed again.
        max_memory: Bytes that weights and computation may take on the device of the model; None for
            what is free.

    Raises:
        InputError: The memory does not suffice, however small the pieces.
    """
    ids_L = token_ids(model, bases)
    return stream_within_memory(
        model, len(bases), partial(_streamed_logprob, model, ids_L), advance, max_memory
    )


@torch.inference_mode()
def _streamed_logprob(
    model: StripedHyena2, ids_L: Tensor, way: Streaming, advance: Callable[[float], None]
) -> float:
    logprob, next_V, done = 0.0, None, 0
    for count, logits in stream(model, ids_L[None], way):
        advance(count / (model.config.depth + 1))
        if logits is None:
            continue
        logprobs_LV = logits[0].log_softmax(dim=-1)
        chunk_L = ids_L[done : done + count]
        done += count
        if next_V is not None:
            logprob += next_V[chunk_L[0]].item()
        logprob += token_logprobs(logprobs_LV[:-1], chunk_L[1:]).sum().item()
        next_V = logprobs_LV[-1].clone()
    return logprob


def stream_within_memory(
    model: StripedHyena2,
    num_bases: int,
    compute: Callable[[Streaming, Callable[[float], None]], T],
    advance: Callable[[float], None] = ignore_progress,
    max_memory: float | None = None,
) -> T:
    """The result of `compute`, which streams a sequence the fastest way that the memory allows.

    Args:
        model: What reads the sequence.
        num_bases: Its length.
        compute: Called with how to stream, and with a callback for its progress; called again with
            smaller pieces where the memory did not suffice.
        advance: As in `sequence_logprob`.
        max_memory: As in `sequence_logprob`.

    Raises:
        InputError: The memory does not suffice, however small the pieces.
    """
    way: Streaming | None = choose_streaming(model, num_bases, max_memory)
    while way is not None:
        done = 0.0

        def count(share: float) -> None:
            nonlocal done
            done += share
            advance(share)

        try:
            return compute(way, count)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            advance(-done)
            way = way.smaller
            if way is not None:
                where = " with the host's memory" if way.offload else ""
                _LOG.warning("out of memory; retrying with pieces of %d bases%s", way.piece, where)
    raise InputError(
        f"{num_bases:,} bases do not fit the memory of {model.embedding.weight.device}, even in "
        "small pieces; free some of it, or cut the sequence"
    )


def choose_streaming(model: StripedHyena2, num_bases: int, max_memory: float | None) -> Streaming:
    """The fastest way to stream so many bases within `max_memory` bytes, weights included.

    Args:
        model: What reads them; only weights on the device of its embedding count.
        num_bases: Length of the sequence.
        max_memory: None for what is free on a GPU, and for no bound on a CPU.

    Raises:
        InputError: No way fits.
    """
    weight = model.embedding.weight
    tensors = model.state_dict().values()
    weights = sum(tensor.nbytes for tensor in tensors if tensor.device == weight.device)
    advice = "free some" if max_memory is None else "raise --max-memory"
    if max_memory is None:
        if not weight.is_cuda:
            return Streaming()
        reserved = torch.cuda.memory_reserved(weight.device)
        unused = reserved - torch.cuda.memory_allocated(weight.device)
        max_memory = torch.cuda.mem_get_info(weight.device)[0] + unused + weights
    try:
        return fitting(model.config, num_bases, weight.element_size(), weights, max_memory)
    except MemoryError as error:
        raise InputError(f"{error}; {advice}, or cut the sequence") from error


def require_finite(logprob: float, model: StripedHyena2, bases: bytes, name: str) -> None:
    """Refuse a log-likelihood that is not a finite number.

    Raises:
        NonFiniteError: It is NaN or infinite; the message names the layer in which that began.
    """
    if math.isfinite(logprob):
        return
    layer = first_nonfinite_layer(model, token_ids(model, bases[:CHUNK])[None])
    origin = f", first in layer {layer}" if layer else ""
    raise NonFiniteError(
        f"{name}: the log-likelihood is {logprob}{origin}; try --dtype fp32, or other weights"
    )
