"""The path /v1/generate: `evo2 generate` with its constraints, at once or as a stream."""

import asyncio
import secrets
from collections.abc import Callable
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import Field

from evo2cli.generate.constraints.build import guides
from evo2cli.generate.options import GenerateOptions
from evo2cli.generate.output import describe
from evo2cli.generate.prompts import Prompt
from evo2cli.generate.run import requests_of
from evo2cli.serve.answers import Json, event_stream, results
from evo2cli.serve.engine import Engine, Generation, SampledToken
from evo2cli.serve.reading import MAX_SAMPLES, Fields, check_number, read_dna
from stripedhyena2 import Sampler

MAX_PATTERNS, MAX_PATTERN = 100, 1_000  # patterns of a kind in a request; characters of a pattern
NAME = "prompt1"  # the name that the command gives the first prompt

Patterns = Annotated[
    list[Annotated[str, Field(max_length=MAX_PATTERN)]], Field(max_length=MAX_PATTERNS)
]


class Generate(Fields):
    """A request to continue a prompt; the fields are the options of `evo2 generate`."""

    prompt: str = Field(min_length=1, description="DNA; it may begin with a lineage tag.")
    tokens: int = Field(100, ge=1, description="Bases to generate, at most.")
    num_samples: int = Field(1, ge=1)
    seed: int | None = Field(None, description="None for a random one.")
    temperature: float = Field(1.0, ge=0)
    top_k: int = Field(4, ge=0)
    top_p: float = Field(1.0, ge=0, le=1)
    min_length: int = Field(1, ge=1)
    stop_codon: Literal["prompt", "generated"] | None = None
    stop_motif: Patterns = Field([])
    forbid: Patterns = Field([])
    both_strands: bool = False
    max_homopolymer: int | None = Field(None, ge=1)
    fix: Patterns = Field([])
    gc: str | None = None
    gc_window: int | None = Field(None, ge=1)
    stream: bool = Field(False, description="An event for every base, and one for every sequence.")


def routes(engine: Engine) -> APIRouter:
    """The router of the path."""
    router = APIRouter(prefix="/v1", tags=["evo2"])
    one_at_a_time = asyncio.Lock()  # the tables of constraints may need a GiB

    @router.post("/generate")
    async def generate(body: Generate, request: Request) -> Response:
        """Continue a prompt under constraints; sequences are those of `evo2 generate --json`."""
        served = engine.require_served()
        check_number("sequences", body.num_samples, MAX_SAMPLES)
        tag, bases = read_dna(served, "prompt", body.prompt, body.tokens)
        prompt = Prompt(NAME, tag.decode(), bases)
        fields = body.model_dump(exclude={"prompt", "stream"})
        seed = secrets.randbits(63) if body.seed is None else body.seed
        options = GenerateOptions(**fields | {"seed": seed, "json": True})
        async with one_at_a_time:
            make_guide = await asyncio.to_thread(guides, options, [prompt])
        jobs = [(prompt, number) for number in range(1, options.num_samples + 1)]
        job = Generation(
            requests_of(options, jobs, make_guide, served.model.config.vocabulary),
            Sampler(options.temperature, options.top_k, options.top_p),
            engine.deadline(),
            each_token=body.stream,
        )
        if body.stream:
            return event_stream(engine, job, _event(options, prompt))
        samples = sorted(await results(engine, job, request), key=lambda pair: pair[0])
        rows = [describe(options, prompt, index + 1, sample) for index, sample in samples]
        return Json({"sequences": rows})

    return router


def _event(options: GenerateOptions, prompt: Prompt) -> Callable[[Any], dict[str, Any]]:
    """A function that makes the event of a base, or of a finished sequence."""

    def event(result: Any) -> dict[str, Any]:
        if isinstance(result, SampledToken):
            base = chr(result.token)
            return {"sample": result.index + 1, "base": base, "logprob": result.logprob}
        index, sample = result
        return {"sequence": describe(options, prompt, index + 1, sample)}

    return event
