"""The page at `/`: files of the package `evo2cli.pages`, which ask the paths of this server."""

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import APIRouter
from fastapi.responses import Response

from evo2cli.pages import read_asset

# Where the page finds its files; no part of a path names a file.
FILES = {
    "/": "serve.html",
    "/page/style.css": "style.css",
    "/page/dom.js": "dom.js",
    "/page/figures.js": "figures.js",
    "/page/serve.js": "serve.js",
}
_TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript"}
HEADERS = {
    # Scripts, styles and answers come from this server alone; images are drawn by the page.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; img-src data: blob:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def routes() -> APIRouter:
    """The paths of the page and its files."""
    router = APIRouter(include_in_schema=False)
    for path, name in FILES.items():
        router.get(path)(_answer(read_asset(name), _TYPES[name.rpartition(".")[2]]))
    return router


def _answer(content: str, kind: str) -> Callable[[], Coroutine[Any, Any, Response]]:
    async def answer() -> Response:
        return Response(content, media_type=kind, headers=HEADERS)

    return answer
