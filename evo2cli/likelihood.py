"""Log-likelihoods of DNA in nats: a sequence runs through the model piece by piece.

No token stands before the first base, so n bases have n - 1 predictions. Log-softmax runs in fp32
or better over the whole vocabulary, sums in fp64. One sequence at a time: a score has no batch
mates. L tokens, V vocabulary.
"""

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from evo2cli import console
from evo2cli.errors import UntrustedNumericsError, UserError
from stripedhyena2 import Cache, ModelConfig, StripedHyena2
from stripedhyena2.diagnosis import first_nonfinite_layer
from stripedhyena2.memory import is_out_of_memory
from stripedhyena2.streaming import Streaming, fitting, stream

T = TypeVar("T")

PIECE = 8192  # bases in one forward pass; bounds its memory, and is fixed so that sums never vary


@dataclass(frozen=True)
class Progression:
    """How far a sequence has come; `proceed` returns the next, so any may be continued twice.

    Attributes:
        cache: The model's memory of the bases so far.
        total: Sum of their log-probabilities in nats, the first base left out.
        following_V: Log-probabilities of the next token; None before the first base.
    """

    cache: Cache
    total: float
    following_V: Tensor | None


def begin(model: StripedHyena2) -> Progression:
    """A sequence before its first base."""
    return Progression(model.new_cache(1), 0.0, None)


@torch.inference_mode()
def proceed(
    model: StripedHyena2,
    so_far: Progression,
    bases: bytes,
    advance: Callable[[int], None] = lambda _: None,
) -> Progression:
    """Continue with `bases`, upper-case letters; `advance` hears how many are done, as they are."""
    cache, total, following_V = so_far.cache.clone(), so_far.total, so_far.following_V
    for start in range(0, len(bases), PIECE):
        ids_L = token_ids(model, bases[start : start + PIECE])
        logprobs_LV = model(ids_L[None], cache=cache)[0].log_softmax(dim=-1)
        if following_V is not None:
            total += following_V[ids_L[0]].item()
        predicted_L = logprobs_LV[:-1].gather(1, ids_L[1:, None])
        total += predicted_L.sum(dtype=torch.float64).item()
        following_V = logprobs_LV[-1].clone()
        advance(len(ids_L))
    return Progression(cache, total, following_V)


@torch.inference_mode()
def predict(
    model: StripedHyena2, so_far: Progression, bases: bytes
) -> tuple[Progression, Tensor, Tensor]:
    """Continue with `bases` in one forward pass, and tell how each of them was foreseen.

    Returns:
        How far the sequence has come; the token ids [L] of `bases`; and log-probabilities [L, V] in
        nats, each row given what stands before its base. Before the first base of a sequence there
        is nothing: then the first base has no row in either.
    """
    ids_L = token_ids(model, bases)
    cache = so_far.cache.clone()
    logprobs_LV = model(ids_L[None], cache=cache)[0].log_softmax(dim=-1)
    following_V, seen_LV = logprobs_LV[-1].clone(), logprobs_LV[:-1]
    if so_far.following_V is None:
        ids_L = ids_L[1:]
    else:
        seen_LV = torch.cat([so_far.following_V[None], seen_LV])
    total = so_far.total + of_tokens(seen_LV, ids_L).sum().item()
    return Progression(cache, total, following_V), ids_L, seen_LV


def of_tokens(logprobs_LV: Tensor, ids_L: Tensor) -> Tensor:
    """The log-probability [L] of each token, in fp64."""
    return logprobs_LV.gather(1, ids_L[:, None])[:, 0].double()


def token_ids(model: StripedHyena2, bases: bytes) -> Tensor:
    """Token ids [L] of `bases`, where the model is."""
    values = torch.frombuffer(bytearray(bases), dtype=torch.uint8)
    return values.to(model.embedding.weight.device, torch.int64)


def total(
    model: StripedHyena2,
    bases: bytes,
    advance: Callable[[float], None] = lambda _: None,
    memory: float | None = None,
) -> float:
    """Sum of the log-probabilities of `bases`, the first left out, in nats.

    Args:
        model: What scores.
        bases: Upper-case letters, any number of them: they are streamed.
        advance: Hears how many are done, as they are; a negative number where it starts anew.
        memory: Bytes that model and computation may take on its device; None for what is free.

    Raises:
        UserError: The memory does not suffice, however small the pieces.
    """
    ids_L = token_ids(model, bases)
    return as_memory_allows(
        model, len(bases), partial(_streamed_total, model, ids_L), advance, memory
    )


def as_memory_allows(
    model: StripedHyena2,
    num_bases: int,
    compute: Callable[[Streaming, Callable[[float], None]], T],
    advance: Callable[[float], None] = lambda _: None,
    memory: float | None = None,
) -> T:
    """What `compute` returns of a sequence, streamed the fastest way that the memory allows.

    Args:
        model: What reads the sequence.
        num_bases: Its length.
        compute: Called with a way, and with what hears how many bases are done; called again with a
            way that needs less where memory does not suffice.
        advance: Hears it too; a negative number where it starts anew.
        memory: Bytes that model and computation may take on its device; None for what is free.

    Raises:
        UserError: The memory does not suffice, however small the pieces.
    """
    way: Streaming | None = way_for(model, num_bases, memory)
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
                console.warn(f"out of memory: again, {way.piece:,} bases at a time{where}")
    raise UserError(
        f"{num_bases:,} bases do not fit the memory of {model.embedding.weight.device}, even a "
        "piece at a time; free some of it, or cut the sequence"
    )


def way_for(model: StripedHyena2, num_bases: int, memory: float | None) -> Streaming:
    """How to stream so many bases within `memory` bytes, weights included; None for what is free.

    Raises:
        UserError: It is not enough.
    """
    weight = model.embedding.weight
    here = (tensor for tensor in model.state_dict().values() if tensor.device == weight.device)
    weights = sum(tensor.nbytes for tensor in here)
    more = "give more with --max-memory" if memory is not None else "free some"
    if memory is None:
        if not weight.is_cuda:
            return Streaming()
        cached = torch.cuda.memory_reserved(weight.device) - torch.cuda.memory_allocated(
            weight.device
        )
        memory = torch.cuda.mem_get_info(weight.device)[0] + cached + weights
    try:
        return fitting(model.config, num_bases, weight.element_size(), weights, memory)
    except MemoryError as error:
        raise UserError(f"{error}; {more}, or cut the sequence") from error


@torch.inference_mode()
def _streamed_total(
    model: StripedHyena2, ids_L: Tensor, way: Streaming, advance: Callable[[float], None]
) -> float:
    total, following_V, done = 0.0, None, 0
    for count, logits in stream(model, ids_L[None], way):
        advance(count / (model.config.depth + 1))
        if logits is None:
            continue
        logprobs_LV = logits[0].log_softmax(dim=-1)
        own_L = ids_L[done : done + count]
        done += count
        if following_V is not None:
            total += following_V[own_L[0]].item()
        total += of_tokens(logprobs_LV[:-1], own_L[1:]).sum().item()
        following_V = logprobs_LV[-1].clone()
    return total


def require_finite(total: float, model: StripedHyena2, bases: bytes, name: str) -> None:
    """Refuse a log-likelihood that is no number.

    Raises:
        UntrustedNumericsError: It is NaN or infinite; the message names the layer it came from.
    """
    if math.isfinite(total):
        return
    layer = first_nonfinite_layer(model, token_ids(model, bases[:PIECE])[None])
    origin = f", first in layer {layer}" if layer else ""
    raise UntrustedNumericsError(
        f"{name}: the log-likelihood is {total}{origin}; try --dtype fp32, or other weights"
    )


def fingerprint(config: ModelConfig, tensors: Mapping[str, Tensor]) -> str:
    """Twelve hexadecimal digits that tell models apart: shape, dtypes, a sample of each tensor."""
    digest = hashlib.sha256(repr(config).encode())
    for name, tensor in sorted(tensors.items()):
        flat = tensor.detach().reshape(-1)
        sample = flat[:: max(1, len(flat) // 4096)].contiguous().cpu()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(sample.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:12]
