"""Who may ask, and how much: keys, host names and sizes, before anything else reads a request."""

import hmac
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fastapi import HTTPException
from fastapi.responses import Response

from evo2cli import console
from evo2cli.errors import UserError
from evo2cli.files import reading
from evo2cli.serve.answers import refused
from evo2cli.serve.page import FILES
from evo2cli.serve.refusal import Refusal

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

HEALTH = ("/v1/health/live", "/v1/health/ready")
OPEN_PATHS = (*HEALTH, *FILES)  # answered without a key: they hold nothing but what we wrote
MAX_KEYS = 1000


def read_keys(path: Path | None) -> tuple[bytes, ...]:
    """The keys of a file, one a line; none without a file.

    Raises:
        UserError: The file cannot be read, or has no key, or one that no client can send.
    """
    if path is None:
        return ()
    with reading(path):
        lines = path.read_bytes().splitlines()
    keys = tuple(line.strip() for line in lines if line.strip())
    if not 0 < len(keys) <= MAX_KEYS:
        raise UserError(f"--api-key-file {path}: has {len(keys)} keys; write 1 to {MAX_KEYS}")
    if not all(key.isascii() and not key.split()[1:] for key in keys):
        raise UserError(f"--api-key-file {path}: a key is a word of ASCII characters, one a line")
    return keys


def is_loopback(host: str) -> bool:
    """Whether an address is reached from this machine only."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Guard:
    """Refuses requests without a key, from web pages of other sites, or with too large a body.

    Args:
        app: The application behind it.
        keys: Keys of which a request needs one; none if every request is answered.
        host: Address the server listens at. At a loopback address only its names are answered, so
            that no web page reaches the server by a name of its own (DNS rebinding).
        max_body: The most bytes of a request.

    Attributes:
        answered: Number of answers by path (as the application names it) and status.
        seconds: Seconds they took together, by path.
    """

    def __init__(self, app: App, keys: Sequence[bytes], host: str, max_body: int) -> None:
        self.answered: Counter[tuple[str, int]] = Counter()
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._app, self._keys, self._max_body = app, keys, max_body
        self._hosts = {"localhost", "127.0.0.1", "::1", host} if is_loopback(host) else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, as ASGI calls it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.monotonic()
        status = 499  # the client hung up before an answer

        async def watch(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            refusal = self._refusal(scope)
            if refusal is None:
                await self._app(scope, self._bounded(receive), watch)
            else:
                answer: Response = refused(refusal)
                await answer(scope, receive, watch)
        finally:
            # The path as the application names it: no text of a client gets into log and metrics.
            path = getattr(scope.get("route"), "path", "other")
            seconds = time.monotonic() - started
            self.answered[path, status] += 1
            self.seconds[path] += seconds
            if path not in HEALTH:
                console.say(f"{scope['method']} {path} {status} {1000 * seconds:.0f} ms")

    def _refusal(self, scope: Scope) -> Refusal | None:
        headers = dict(scope["headers"])
        if self._hosts is not None:
            name = headers.get(b"host", b"").decode("latin-1")
            try:
                host = urlsplit(f"//{name}").hostname
            except ValueError:
                host = None
            if host not in self._hosts:
                return Refusal(403, "this server answers to localhost only; see --host")
        if self._keys and scope["path"] not in OPEN_PATHS:
            scheme, _, key = headers.get(b"authorization", b"").partition(b" ")
            # All are compared, and each in constant time.
            fits = [hmac.compare_digest(known, key.strip()) for known in self._keys]
            if scheme.lower() != b"bearer" or not any(fits):
                return Refusal(401, "send a valid key as 'Authorization: Bearer KEY'")
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length[:20]) > self._max_body:
            return self._too_large()
        return None

    def _too_large(self) -> Refusal:
        return Refusal(413, f"a request may have {self._max_body:,} bytes; send less at a time")

    def _bounded(self, receive: Receive) -> Receive:
        """As `receive`, but a body that is too large is refused while it comes."""
        num_bytes = 0

        async def bounded() -> Message:
            nonlocal num_bytes
            message = await receive()
            num_bytes += len(message.get("body", b""))
            if num_bytes > self._max_body:
                # Of all errors while a body is read, FastAPI passes on this one only.
                refusal = self._too_large()
                raise HTTPException(refusal.status, refusal.message)
            return message

        return bounded
