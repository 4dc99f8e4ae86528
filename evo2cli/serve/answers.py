"""From the results of a job to an answer: all at once, or as a stream of events."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from evo2cli.serve.engine import Engine, Job
from evo2cli.serve.refusal import Refusal, refusal_of

CLIENT_CLOSED = 499  # for the log: the client has hung up


class Json(JSONResponse):
    """JSON in ASCII, which holds every text that a request can hold."""

    def render(self, content: Any) -> bytes:
        """The bytes of `content`; NaN and infinity are refused."""
        return to_json(content).encode()


def to_json(content: Any) -> str:
    """JSON in ASCII."""
    return json.dumps(content, allow_nan=False, separators=(",", ":"))


def refused(refusal: Refusal) -> Response:
    """The answer that says why there is no other."""
    return Json(refusal.body(), refusal.status, refusal.headers)


async def collect(engine: Engine, job: Job) -> list[Any]:
    """All results of a job, which is abandoned if this is cancelled.

    Raises:
        Refusal: The job was not accepted, or has failed.
    """
    engine.submit(job)
    try:
        return [result async for result in job]
    finally:
        job.is_abandoned = True


async def results(engine: Engine, job: Job, request: Request) -> list[Any]:
    """All results of a job, unless the client hangs up before.

    Raises:
        Refusal: The job was not accepted, or has failed; or the client has hung up.
    """

    async def hang_up() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    collected = asyncio.ensure_future(collect(engine, job))
    gone = asyncio.ensure_future(hang_up())
    try:
        await asyncio.wait({collected, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not collected.done():
            raise Refusal(CLIENT_CLOSED, "the client has hung up")
        return collected.result()
    finally:
        collected.cancel()
        gone.cancel()


def event_stream(
    engine: Engine, job: Job, event: Callable[[Any], dict[str, Any] | None]
) -> Response:
    """An answer of server-sent events: one for each result, and "[DONE]" at the end.

    Args:
        engine: Runs the job.
        job: The job.
        event: What is sent of a result, or None.

    Raises:
        Refusal: The job was not accepted.
    """
    engine.submit(job)

    async def lines() -> AsyncIterator[str]:
        try:
            async for found in job.batches():
                sent = [each for each in map(event, found) if each is not None]
                if sent:
                    yield "".join(f"data: {to_json(each)}\n\n" for each in sent)
        except Refusal as error:
            yield f"data: {to_json(refusal_of(error).body())}\n\n"
        else:
            yield "data: [DONE]\n\n"

    return _Events(job, lines())


class _Events(StreamingResponse):
    """Events of a job, which is abandoned when the client hangs up, also before the first."""

    def __init__(self, job: Job, lines: AsyncIterator[str]) -> None:
        headers = {"Cache-Control": "no-store"}
        super().__init__(lines, media_type="text/event-stream", headers=headers)
        self._job = job

    async def __call__(self, *where: Any) -> None:
        """Send them, as ASGI calls it."""
        try:
            await super().__call__(*where)
        finally:
            self._job.is_abandoned = True
