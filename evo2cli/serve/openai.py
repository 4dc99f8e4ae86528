"""The paths of OpenAI: completions, which also score, and embeddings.

V vocabulary.
"""

import base64
import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal

import torch
from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import BaseModel, Field
from torch import Tensor

from evo2cli.errors import UserError
from evo2cli.serve.answers import Json, event_stream, results
from evo2cli.serve.engine import Drawn, Engine, Generation, Served, Task
from evo2cli.serve.nim import MODELS, modules_of
from evo2cli.serve.reading import (
    MAX_SEQUENCES,
    check_answer,
    check_number,
    read_dna,
    sample_requests,
)
from evo2cli.serve.refusal import Refusal
from stripedhyena2 import Sampler
from stripedhyena2.generation import token_text
from stripedhyena2.layers import default_layer
from stripedhyena2.scoring import CHUNK, ScoringState, require_finite, token_logprobs

Texts = str | list[str] | list[int] | list[list[int]]
Top = dict[str, float]  # the likeliest tokens and their log-probabilities

VALUES_OF_TOP = 16  # an entry of it takes the memory of as many numbers


class Completion(BaseModel):
    """A request to continue prompts, to score them, or both."""

    model: str
    prompt: Texts
    max_tokens: Annotated[int, Field(ge=0)] | None = Field(
        16, description="0 with echo and logprobs scores the prompt."
    )
    temperature: float | None = 1.0
    top_p: float | None = 1.0
    top_k: int | None = Field(4, description="0 samples from all tokens, 1 takes the likeliest.")
    n: Annotated[int, Field(ge=1)] | None = 1
    seed: int | None = None
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = Field(
        None, description="With log-probabilities, and those of as many likeliest tokens."
    )
    echo: bool | None = False
    stream: bool | None = False
    stop: str | list[str] | None = None
    suffix: str | None = None
    best_of: int | None = None
    presence_penalty: float | None = 0.0
    frequency_penalty: float | None = 0.0
    logit_bias: dict[str, float] | None = None


class Embeddings(BaseModel):
    """A request for the embeddings of sequences."""

    model: str
    input: Texts
    encoding_format: Literal["float", "base64"] | None = "float"
    dimensions: int | None = None
    layer: str | None = Field(None, description="By default the block at 26/32 of the depth.")
    pool: Literal["mean", "last", "max"] = "mean"
    strand: Literal["fwd", "rc", "both"] = "fwd"


@dataclass
class _Tokens:
    """Text with its log-probabilities, as a choice of a completion has them."""

    text: str
    logprobs: list[float | None]
    tops: list[Top | None]

    def described(self, first: int = 0) -> dict[str, Any]:
        """The object `logprobs`; offsets count from `first`."""
        return {
            "tokens": list(self.text),
            "token_logprobs": self.logprobs,
            "top_logprobs": self.tops if any(self.tops) else None,
            "text_offset": list(range(first, first + len(self.text))),
        }


def routes(engine: Engine, name: str) -> APIRouter:
    """The paths; `name` is the model's."""
    router = APIRouter(prefix="/v1", tags=["OpenAI"])

    @router.get("/models")
    async def models() -> Response:
        """The model that is served."""
        model = {"id": name, "object": "model", "created": 0, "owned_by": "evo2"}
        return Json({"object": "list", "data": [model]})

    @router.post("/completions")
    async def completions(body: Completion, request: Request) -> Response:
        """Continue prompts; with echo and logprobs, score them."""
        served = engine.require_served()
        _check_model(body.model, name)
        _check_supported(body)
        prompts = _texts("prompt", body.prompt)
        num_tokens = 16 if body.max_tokens is None else body.max_tokens
        num_samples = body.n or 1
        check_number("choices", len(prompts) * num_samples, MAX_SEQUENCES)
        read = [b"".join(read_dna(served, f"prompt {i}", text)) for i, text in enumerate(prompts)]
        if body.logprobs:
            num_logits = num_tokens * len(prompts) * num_samples * served.model.config.vocabulary
            check_answer(num_logits + sum(map(len, read)) * body.logprobs * VALUES_OF_TOP)
        whole = {
            "id": f"cmpl-{secrets.token_hex(12)}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": name,
        }
        job = None
        if num_tokens:
            job = Generation(
                sample_requests(served, prompts, num_samples, num_tokens, body.seed),
                Sampler(
                    1.0 if body.temperature is None else body.temperature,
                    4 if body.top_k is None else body.top_k,
                    body.top_p or 1.0,
                ),
                engine.deadline(),
                keep_logits=bool(body.logprobs),
                each_token=bool(body.stream),
            )
        if body.stream:
            if job is None or body.echo:
                raise Refusal(422, "stream: needs max_tokens above 0, and no echo")
            starts = [len(prompt) for prompt in read for _ in range(num_samples)]
            return event_stream(engine, job, partial(_chunk, whole, body, starts))
        echoed = [_Tokens("", [], [])] * len(read)
        if body.echo:
            echoed = await _echo(engine, body, read, request)
        drawn = [_Tokens("", [], [])] * (len(read) * num_samples)
        if job is not None:
            for index, sample in await results(engine, job, request):
                drawn[index] = _Tokens(
                    token_text(sample.ids),
                    list(sample.logprobs),
                    _tops(sample.logits, body.logprobs or 0) or [None] * len(sample.ids),
                )
        choices = []
        for index, grown in enumerate(drawn):
            before, prompt = echoed[index // num_samples], read[index // num_samples]
            both = _Tokens(
                before.text + grown.text, before.logprobs + grown.logprobs, before.tops + grown.tops
            )
            first = 0 if body.echo else len(prompt)
            choices.append(
                {
                    "index": index,
                    "text": both.text,
                    "logprobs": None if body.logprobs is None else both.described(first),
                    "finish_reason": "length",
                }
            )
        counts = sum(map(len, read)), sum(len(grown.text) for grown in drawn)
        return Json(whole | {"choices": choices, "usage": _usage(*counts)})

    @router.post("/embeddings")
    async def embeddings(body: Embeddings, request: Request) -> Response:
        """Embeddings of sequences: the outputs of a layer, pooled over positions."""
        served = engine.require_served()
        _check_model(body.model, name)
        if body.dimensions is not None:
            raise Refusal(422, "dimensions: an embedding has those of its layer; leave it out")
        texts = _texts("input", body.input)
        read = [b"".join(read_dna(served, f"input {i}", text)) for i, text in enumerate(texts)]

        def work(served: Served) -> Iterator[Tensor]:
            layers = [default_layer(served.model.config)]
            if body.layer is not None:
                layers = modules_of(served.model, body.layer)
            for letters in read:
                found = served.model.embed(
                    [letters], layers=layers, pool=body.pool, strand=body.strand
                )
                yield torch.cat([found[layer][0] for layer in layers]).float()

        vectors = await results(engine, Task(work, engine.deadline()), request)
        data = [
            {
                "object": "embedding",
                "index": index,
                "embedding": base64.b64encode(vector.numpy().astype("<f4").tobytes()).decode()
                if body.encoding_format == "base64"
                else vector.tolist(),
            }
            for index, vector in enumerate(vectors)
        ]
        usage = {key: value for key, value in _usage(sum(map(len, read)), 0).items() if value}
        return Json({"object": "list", "data": data, "model": name, "usage": usage})

    return router


def _check_model(model: str, name: str) -> None:
    if model not in (name, *MODELS):
        raise Refusal(404, f"model: this server has {name}; see /v1/models")


def _check_supported(body: Completion) -> None:
    """Refuse what would be ignored."""
    used = {
        "stop": body.stop,
        "suffix": body.suffix,
        "best_of": body.best_of is not None and body.best_of != (body.n or 1),
        "presence_penalty": body.presence_penalty,
        "frequency_penalty": body.frequency_penalty,
        "logit_bias": body.logit_bias,
    }
    if names := [name for name, value in used.items() if value]:
        raise Refusal(422, f"{' and '.join(names)}: not supported; leave it out")


def _texts(what: str, given: Texts) -> list[str]:
    """One text or several, as text or as the tokens of it."""
    entries: Sequence[str | int | list[int]] = [given] if isinstance(given, str) else given
    if entries and isinstance(entries[0], int):
        entries = [[entry for entry in entries if isinstance(entry, int)]]
    found = []
    for index, entry in enumerate(entries):
        if isinstance(entry, list):
            if not all(0 <= token < 128 for token in entry):
                raise UserError(f"{what} {index}: tokens are the ASCII codes of letters, 0 to 127")
            entry = bytes(entry).decode()
        found.append(str(entry))
    if not found:
        raise UserError(f"{what}: is empty; give at least one sequence")
    check_number("sequences", len(found), MAX_SEQUENCES)
    return found


async def _echo(
    engine: Engine, body: Completion, read: Sequence[bytes], request: Request
) -> list[_Tokens]:
    """The prompts, with log-probabilities if they are asked for."""
    if body.logprobs is None:
        return [_Tokens(letters.decode(), [], []) for letters in read]
    num_tops = body.logprobs

    def work(served: Served) -> Iterator[tuple[int, list[float], list[Top | None]]]:
        for index, letters in enumerate(read):
            state = ScoringState.start(served.model)
            for start in range(0, len(letters), CHUNK):
                chunk = letters[start : start + CHUNK]
                state, ids_L, logprobs_LV = state.predict(chunk)
                require_finite(state.logprob, served.model, letters, f"prompt {index}")
                tops = _tops(logprobs_LV, num_tops) or [None] * len(ids_L)
                yield index, token_logprobs(logprobs_LV, ids_L).tolist(), tops

    found = [_Tokens(letters.decode(), [None], [None]) for letters in read]
    for index, logprobs, tops in await results(engine, Task(work, engine.deadline()), request):
        found[index].logprobs += logprobs
        found[index].tops += tops
    return found


def _tops(logits: Sequence[Tensor] | Tensor, count: int) -> list[Top | None]:
    """The likeliest tokens of each position; nothing if none are asked for."""
    if count == 0:
        return []
    found: list[Top | None] = []
    for logits_V in logits:
        best = logits_V.double().log_softmax(dim=0).topk(min(count, len(logits_V)))
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        found.append({_token_name(token): logprob for token, logprob in pairs})
    return found


def _token_name(token: int) -> str:
    """The letter of a token; a number for those that are none."""
    return chr(token) if chr(token).isascii() and chr(token).isprintable() else f"<{token}>"


def _chunk(
    whole: dict[str, Any], body: Completion, starts: Sequence[int], found: Any
) -> dict[str, Any] | None:
    """What a stream says of a token; to the last one, the end of a sequence adds nothing.

    Args:
        whole: The same in all events.
        body: The request.
        starts: Length of the prompt of each sequence.
        found: A result of the job.
    """
    if not isinstance(found, Drawn):
        return None
    tops = _tops([] if found.logits_V is None else [found.logits_V], body.logprobs or 0) or [None]
    tokens = _Tokens(token_text([found.token]), [found.logprob], tops)
    choice = {
        "index": found.index,
        "text": tokens.text,
        "logprobs": None
        if body.logprobs is None
        else tokens.described(starts[found.index] + found.position),
        "finish_reason": found.stop_reason or None,
    }
    return whole | {"choices": [choice]}


def _usage(num_prompt: int, num_drawn: int) -> dict[str, int]:
    return {
        "prompt_tokens": num_prompt,
        "completion_tokens": num_drawn,
        "total_tokens": num_prompt + num_drawn,
    }
