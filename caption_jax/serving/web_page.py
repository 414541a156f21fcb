"""The page of the server at `/`, and its style, script and icon, which are files of the folder `page`.

They contain nothing about the model, so they need no token. The page loads nothing from other hosts, and its
Content-Security-Policy forbids it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from input_pipeline.extras import optional_packages

with optional_packages("serving"):
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

_FOLDER = Path(__file__).with_name("page")
_FILES = {
    "/": ("index.html", "text/html"),
    "/page/style.css": ("style.css", "text/css"),
    "/page/photographs.css": ("photographs.css", "text/css"),
    "/page/script.js": ("script.js", "text/javascript"),
    "/page/icon.svg": ("icon.svg", "image/svg+xml"),
}
PAGE_PATHS = tuple(_FILES)
_POLICY = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "img-src": "'self' blob:",
    "connect-src": "'self'",
    "base-uri": "'none'",
    "form-action": "'none'",
    "frame-ancestors": "'none'",
}
_HEADERS = {
    "Content-Security-Policy": "; ".join(f"{name} {value}" for name, value in _POLICY.items()),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",  # browsers keep a copy, and ask whether it has changed
}


def make_page_routes() -> list[Route]:
    """Returns the routes of the page and its files, which are read once."""
    return [Route(path, _make_handler(_FOLDER / name, kind)) for path, (name, kind) in _FILES.items()]


def _make_handler(file: Path, media_type: str) -> Callable[[Request], Coroutine[Any, Any, Response]]:
    content = file.read_bytes()
    headers = {**_HEADERS, "ETag": f'"{hashlib.sha256(content).hexdigest()[:32]}"'}

    async def show_file(request: Request) -> Response:
        tags = [tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")]
        if headers["ETag"] in tags:
            return Response(status_code=304, headers=headers)
        return Response(content, headers=headers, media_type=media_type)

    return show_file
