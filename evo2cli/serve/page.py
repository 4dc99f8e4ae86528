"""The page at `/`: files of the package `evo2cli.pages`, which use the paths of this server."""

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import APIRouter
from fastapi.responses import Response

from evo2cli.pages import read_asset

# The files of the page by path; a path never becomes the name of a file.
FILES = {
    "/": "serve.html",
    "/page/style.css": "style.css",
    "/page/dom.js": "dom.js",
    "/page/figures.js": "figures.js",
    "/page/serve.js": "serve.js",
}
_TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript"}
HEADERS = {
    # Scripts, styles and data come from this server only; images are made by the page.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; img-src data: blob:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def routes() -> APIRouter:
    """The router of the page and its files."""
    router = APIRouter(include_in_schema=False)
    for path, name in FILES.items():
        router.get(path)(_handler(read_asset(name), _TYPES[name.rpartition(".")[2]]))
    return router


def _handler(content: str, media_type: str) -> Callable[[], Coroutine[Any, Any, Response]]:
    async def respond() -> Response:
        return Response(content, media_type=media_type, headers=HEADERS)

    return respond
