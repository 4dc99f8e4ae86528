"""Checks of keys, host names and sizes, before anything else reads a request."""

import hmac
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fastapi import HTTPException

from evo2cli import console
from evo2cli.errors import UserError
from evo2cli.files import reading
from evo2cli.serve.answers import CLIENT_CLOSED, refusal_response
from evo2cli.serve.page import FILES
from evo2cli.serve.refusal import Refusal

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

HEALTH = ("/v1/health/live", "/v1/health/ready")
OPEN_PATHS = (*HEALTH, *FILES)  # need no key: they hold no data
MAX_KEYS = 1000


def read_keys(path: Path | None) -> tuple[bytes, ...]:
    """The keys of a file, one per line; empty without a file.

    Raises:
        UserError: The file cannot be read, has no key, or has one that no client can send.
    """
    if path is None:
        return ()
    with reading(path):
        lines = path.read_bytes().splitlines()
    keys = tuple(line.strip() for line in lines if line.strip())
    if not 0 < len(keys) <= MAX_KEYS:
        raise UserError(f"--api-key-file {path}: has {len(keys)} keys; write 1 to {MAX_KEYS}")
    if not all(key.isascii() and not key.split()[1:] for key in keys):
        raise UserError(f"--api-key-file {path}: a key is a word of ASCII characters, one per line")
    return keys


def is_loopback(host: str) -> bool:
    """Whether an address can be reached only from this machine."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Guard:
    """ASGI middleware: refuses requests without a key, for other host names, or too large.

    Args:
        app: The application.
        keys: Valid keys; empty to accept requests without a key.
        host: Address that the server listens on. At a loopback address, requests must be for one of
            its names, against DNS rebinding by web pages.
        max_body: Maximum size of a request in bytes.

    Attributes:
        responses: Number of responses by route and status.
        seconds: Total time of responses in seconds, by route.
    """

    def __init__(self, app: App, keys: Sequence[bytes], host: str, max_body: int) -> None:
        self.responses: Counter[tuple[str, int]] = Counter()
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._app, self._keys, self._max_body = app, keys, max_body
        self._hosts = {"localhost", "127.0.0.1", "::1", host} if is_loopback(host) else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request; called by ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.monotonic()
        status = CLIENT_CLOSED  # if there is no response

        async def watch(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            refusal = self._refusal(scope)
            if refusal is None:
                await self._app(scope, self._limited(receive), watch)
            else:
                response = refusal_response(refusal)
                await response(scope, receive, watch)
        finally:
            # The route, not the path, so that no text of a client gets into log and metrics.
            path = getattr(scope.get("route"), "path", "other")
            seconds = time.monotonic() - started
            self.responses[path, status] += 1
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
                return Refusal(403, "this server accepts requests for localhost only (--host)")
        if self._keys and scope["path"] not in OPEN_PATHS:
            scheme, _, key = headers.get(b"authorization", b"").partition(b" ")
            # Compared with all keys, each in constant time.
            matches = [hmac.compare_digest(known, key.strip()) for known in self._keys]
            if scheme.lower() != b"bearer" or not any(matches):
                return Refusal(401, "send a valid key as 'Authorization: Bearer KEY'")
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length[:20]) > self._max_body:
            return self._too_large()
        return None

    def _too_large(self) -> Refusal:
        return Refusal(413, f"a request may have {self._max_body:,} bytes; send less at a time")

    def _limited(self, receive: Receive) -> Receive:
        """As `receive`, but refuse a body as soon as it is too large."""
        num_bytes = 0

        async def limited() -> Message:
            nonlocal num_bytes
            message = await receive()
            num_bytes += len(message.get("body", b""))
            if num_bytes > self._max_body:
                # The only error that FastAPI passes on while it reads a body.
                refusal = self._too_large()
                raise HTTPException(refusal.status, refusal.message)
            return message

        return limited
