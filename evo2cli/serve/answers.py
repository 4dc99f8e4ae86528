"""Responses from the results of a job: all at once, or as a stream of server-sent events."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from evo2cli.serve.engine import Engine, Job
from evo2cli.serve.refusal import Refusal, refusal_of

CLIENT_CLOSED = 499  # for the log: the client has disconnected


class Json(JSONResponse):
    """JSON in ASCII, which can hold any text of a request, also lone surrogates."""

    def render(self, content: Any) -> bytes:
        """Encode `content`; NaN and infinity raise ValueError."""
        return to_json(content).encode()


def to_json(content: Any) -> str:
    """Encode as JSON in ASCII, without NaN and infinity."""
    return json.dumps(content, allow_nan=False, separators=(",", ":"))


def refusal_response(refusal: Refusal) -> Response:
    """The response of a refused request."""
    return Json(refusal.body(), refusal.status, refusal.headers)


async def collect(engine: Engine, job: Job) -> list[Any]:
    """Submit a job and wait for all its results; if this is cancelled, the job is abandoned.

    Raises:
        Refusal: The job was not accepted, or failed.
    """
    engine.submit(job)
    try:
        return [result async for result in job]
    finally:
        job.is_abandoned = True


async def results(engine: Engine, job: Job, request: Request) -> list[Any]:
    """As `collect`, but abandon the job when the client disconnects.

    Raises:
        Refusal: The job was not accepted or failed, or the client has disconnected.
    """

    async def disconnected() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    collected = asyncio.ensure_future(collect(engine, job))
    disconnect = asyncio.ensure_future(disconnected())
    try:
        await asyncio.wait({collected, disconnect}, return_when=asyncio.FIRST_COMPLETED)
        if not collected.done():
            raise Refusal(CLIENT_CLOSED, "the client has disconnected")
        return collected.result()
    finally:
        collected.cancel()
        disconnect.cancel()


def event_stream(
    engine: Engine, job: Job, event: Callable[[Any], dict[str, Any] | None]
) -> Response:
    """Submit a job and stream its results as server-sent events, with "[DONE]" at the end.

    Args:
        engine: Runs the job.
        job: The job.
        event: Converts a result to the JSON of its event; None for no event.

    Raises:
        Refusal: The job was not accepted.
    """
    engine.submit(job)

    async def lines() -> AsyncIterator[str]:
        try:
            async for batch in job.batches():
                events = [each for each in map(event, batch) if each is not None]
                if events:
                    yield "".join(f"data: {to_json(each)}\n\n" for each in events)
        except Refusal as error:
            yield f"data: {to_json(refusal_of(error).body())}\n\n"
        else:
            yield "data: [DONE]\n\n"

    return _Events(job, lines())


class _Events(StreamingResponse):
    """Events of a job, which is abandoned if the client disconnects, even before the first."""

    def __init__(self, job: Job, lines: AsyncIterator[str]) -> None:
        headers = {"Cache-Control": "no-store"}
        super().__init__(lines, media_type="text/event-stream", headers=headers)
        self._job = job

    async def __call__(self, *connection: Any) -> None:
        """Send the events; called by ASGI with scope, receive and send."""
        try:
            await super().__call__(*connection)
        finally:
            self._job.is_abandoned = True
