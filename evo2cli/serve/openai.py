"""The paths of OpenAI's API: completions, which also score, and embeddings.

V vocabulary.
"""

import base64
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
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
from evo2cli.serve.engine import Engine, Generation, SampledToken, Served, Task
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
TopLogprobs = dict[str, float]  # log-probabilities of the likeliest tokens

VALUES_PER_TOP = 16  # numbers that take as much memory as an entry of `TopLogprobs`


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
        None, description="Return log-probabilities, and those of this many likeliest tokens."
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
    """A request for embeddings of sequences."""

    model: str
    input: Texts
    encoding_format: Literal["float", "base64"] | None = "float"
    dimensions: int | None = None
    layer: str | None = Field(None, description="By default the block at 26/32 of the depth.")
    pool: Literal["mean", "last", "max"] = "mean"
    strand: Literal["fwd", "rc", "both"] = "fwd"


@dataclass
class _Tokens:
    """Text of a completion, and its log-probabilities by token."""

    text: str
    logprobs: list[float | None]
    tops: list[TopLogprobs | None]

    def to_json(self, first: int = 0) -> dict[str, Any]:
        """The object `logprobs`; offsets count from `first`."""
        return {
            "tokens": list(self.text),
            "token_logprobs": self.logprobs,
            "top_logprobs": self.tops if any(self.tops) else None,
            "text_offset": list(range(first, first + len(self.text))),
        }


def routes(engine: Engine, name: str) -> APIRouter:
    """The router of the paths.

    Args:
        engine: Runs the model.
        name: Name of the model.
    """
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
        prompts = _read_texts("prompt", body.prompt)
        num_tokens = 16 if body.max_tokens is None else body.max_tokens
        num_samples = body.n or 1
        check_number("choices", len(prompts) * num_samples, MAX_SEQUENCES)
        letters = {field: b"".join(read_dna(served, field, prompts[field])) for field in prompts}
        if body.logprobs:
            num_logits = num_tokens * len(prompts) * num_samples * served.model.config.vocabulary
            num_bases = sum(map(len, letters.values()))
            check_answer(num_logits + num_bases * body.logprobs * VALUES_PER_TOP)
        envelope = {
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
            starts = [len(prompt) for prompt in letters.values() for _ in range(num_samples)]
            return event_stream(engine, job, partial(_chunk, envelope, body, starts))
        echoed = [_Tokens("", [], [])] * len(letters)
        if body.echo:
            echoed = await _echo(engine, body, letters, request)
        generated = [_Tokens("", [], [])] * (len(letters) * num_samples)
        if job is not None:
            for index, sample in await results(engine, job, request):
                generated[index] = _Tokens(
                    token_text(sample.ids),
                    list(sample.logprobs),
                    _top_logprobs(sample.logits, body.logprobs or 0) or [None] * len(sample.ids),
                )
        choices = []
        lengths = [len(prompt) for prompt in letters.values()]
        for index, after in enumerate(generated):
            before = echoed[index // num_samples]
            both = _Tokens(
                before.text + after.text, before.logprobs + after.logprobs, before.tops + after.tops
            )
            first = 0 if body.echo else lengths[index // num_samples]
            choices.append(
                {
                    "index": index,
                    "text": both.text,
                    "logprobs": None if body.logprobs is None else both.to_json(first),
                    "finish_reason": "length",
                }
            )
        usage = _usage(sum(lengths), sum(len(each.text) for each in generated))
        return Json(envelope | {"choices": choices, "usage": usage})

    @router.post("/embeddings")
    async def embeddings(body: Embeddings, request: Request) -> Response:
        """Embeddings of sequences: the outputs of a layer, pooled over positions."""
        served = engine.require_served()
        _check_model(body.model, name)
        if body.dimensions is not None:
            raise Refusal(422, "dimensions: an embedding has those of its layer; leave it out")
        texts = _read_texts("input", body.input)
        sequences = [b"".join(read_dna(served, field, text)) for field, text in texts.items()]

        def work(served: Served) -> Iterator[Tensor]:
            layers = [default_layer(served.model.config)]
            if body.layer is not None:
                layers = modules_of(served.model, body.layer)
            for letters in sequences:
                embeddings = served.model.embed(
                    [letters], layers=layers, pool=body.pool, strand=body.strand
                )
                yield torch.cat([embeddings[layer][0] for layer in layers]).float()

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
        usage = {key: value for key, value in _usage(sum(map(len, sequences)), 0).items() if value}
        return Json({"object": "list", "data": data, "model": name, "usage": usage})

    return router


def _check_model(model: str, name: str) -> None:
    if model not in (name, *MODELS):
        raise Refusal(404, f"model: this server has {name}; see /v1/models")


def _check_supported(body: Completion) -> None:
    """Refuse fields that would be ignored.

    Raises:
        Refusal: It names them.
    """
    fields = {
        "stop": body.stop,
        "suffix": body.suffix,
        "best_of": body.best_of is not None and body.best_of != (body.n or 1),
        "presence_penalty": body.presence_penalty,
        "frequency_penalty": body.frequency_penalty,
        "logit_bias": body.logit_bias,
    }
    if names := [name for name, value in fields.items() if value]:
        raise Refusal(422, f"{' and '.join(names)}: not supported; leave it out")


def _read_texts(field: str, value: Texts) -> dict[str, str]:
    """Read one or several texts, given as text or as token ids.

    Returns:
        The texts by field: "prompt" for a single one, "prompt[0]", "prompt[1]", ... for a list.

    Raises:
        UserError: There is no text, or a token id is not ASCII.
        Refusal: There are too many.
    """
    is_single = isinstance(value, str) or (len(value) > 0 and isinstance(value[0], int))
    entries: Sequence[Any] = [value] if is_single else value
    texts = {}
    for index, entry in enumerate(entries):
        name = field if is_single else f"{field}[{index}]"
        if not isinstance(entry, str) and not all(0 <= token < 128 for token in entry):
            raise UserError(f"{name}: tokens are the ASCII codes of letters, 0 to 127")
        texts[name] = entry if isinstance(entry, str) else bytes(entry).decode()
    if not texts:
        raise UserError(f"{field}: is empty; give at least one sequence")
    check_number("sequences", len(texts), MAX_SEQUENCES)
    return texts


async def _echo(
    engine: Engine, body: Completion, prompts: Mapping[str, bytes], request: Request
) -> list[_Tokens]:
    """The prompts, with log-probabilities if the request wants them."""
    if body.logprobs is None:
        return [_Tokens(letters.decode(), [], []) for letters in prompts.values()]
    num_tops = body.logprobs

    def work(served: Served) -> Iterator[tuple[int, list[float], list[TopLogprobs | None]]]:
        for index, (field, letters) in enumerate(prompts.items()):
            state = ScoringState.start(served.model)
            for start in range(0, len(letters), CHUNK):
                chunk = letters[start : start + CHUNK]
                state, ids_L, logprobs_LV = state.predict(chunk)
                require_finite(state.logprob, served.model, letters, field)
                tops = _top_logprobs(logprobs_LV, num_tops) or [None] * len(ids_L)
                yield index, token_logprobs(logprobs_LV, ids_L).tolist(), tops

    # The first letter of a prompt has no prediction.
    echoed = [_Tokens(letters.decode(), [None], [None]) for letters in prompts.values()]
    for index, logprobs, tops in await results(engine, Task(work, engine.deadline()), request):
        echoed[index].logprobs += logprobs
        echoed[index].tops += tops
    return echoed


def _top_logprobs(logits: Sequence[Tensor] | Tensor, count: int) -> list[TopLogprobs | None]:
    """The `count` likeliest tokens of each position; empty if `count` is 0."""
    if count == 0:
        return []
    tops: list[TopLogprobs | None] = []
    for logits_V in logits:
        best = logits_V.double().log_softmax(dim=0).topk(min(count, len(logits_V)))
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        tops.append({_token_name(token): logprob for token, logprob in pairs})
    return tops


def _token_name(token: int) -> str:
    """The letter of a token, or its number if it is not printable ASCII."""
    return chr(token) if chr(token).isascii() and chr(token).isprintable() else f"<{token}>"


def _chunk(
    envelope: dict[str, Any], body: Completion, starts: Sequence[int], result: Any
) -> dict[str, Any] | None:
    """The event of a token; None for a finished sequence, which its last token has announced.

    Args:
        envelope: The fields that all events have.
        body: The request.
        starts: Length of the prompt of each sequence.
        result: A result of the job.
    """
    if not isinstance(result, SampledToken):
        return None
    logits = [] if result.logits_V is None else [result.logits_V]
    tops = _top_logprobs(logits, body.logprobs or 0) or [None]
    tokens = _Tokens(token_text([result.token]), [result.logprob], tops)
    choice = {
        "index": result.index,
        "text": tokens.text,
        "logprobs": None
        if body.logprobs is None
        else tokens.to_json(starts[result.index] + result.position),
        "finish_reason": result.stop_reason or None,
    }
    return envelope | {"choices": [choice]}


def _usage(num_prompt: int, num_generated: int) -> dict[str, int]:
    return {
        "prompt_tokens": num_prompt,
        "completion_tokens": num_generated,
        "total_tokens": num_prompt + num_generated,
    }
