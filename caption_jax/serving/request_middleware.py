"""What happens to every request: its id, its access log, its metrics and its bearer token."""

from __future__ import annotations

import datetime
import hmac
import json
import re
import sys
import time
import uuid
from collections.abc import Callable

from caption_jax.serving.http_errors import make_error
from caption_jax.serving.server_metrics import ServerMetrics
from caption_jax.serving.web_page import PAGE_PATHS
from input_pipeline.extras import optional_packages

with optional_packages("serving"):
    from starlette.datastructures import Headers, MutableHeaders
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
OPEN_PATHS = ("/healthz", "/readyz", *PAGE_PATHS)  # for load balancers and browsers, which have no token


def log_to_stderr(entry: dict[str, object]) -> None:
    """Writes an entry of the access log as one line of JSON."""
    print(json.dumps(entry), file=sys.stderr, flush=True)


class RequestMiddleware:
    """ASGI middleware; see the module docstring.

    Args:
        app: the application.
        metrics: counters of requests.
        token: the bearer token that requests must have; "" for none.
        write: writes an entry of the access log.
    """

    def __init__(
        self, app: ASGIApp, metrics: ServerMetrics, token: str = "", write: Callable[[dict], None] = log_to_stderr
    ):
        self._app, self._metrics, self._token, self._write = app, metrics, token.encode(), write

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers, start, status = Headers(scope=scope), time.monotonic(), 500
        given_id = headers.get("x-request-id", "")
        scope["request_id"] = given_id if _ID.fullmatch(given_id) else uuid.uuid4().hex

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-ID"] = scope["request_id"]
            await send(message)

        try:
            app = self._app if self._is_authorised(scope["path"], headers) else _refuse_token
            await app(scope, receive, send_with_id)
        finally:
            self._record(scope, status, time.monotonic() - start)

    def _is_authorised(self, path: str, headers: Headers) -> bool:
        if not self._token or path in OPEN_PATHS:
            return True
        scheme, _, token = headers.get("authorization", "").partition(" ")
        return hmac.compare_digest(token.strip().encode(), self._token) and scheme.lower() == "bearer"

    def _record(self, scope: Scope, status: int, seconds: float) -> None:
        self._metrics.request_done(scope["method"], scope["path"], status, seconds)
        client = scope.get("client") or ("",)
        self._write(
            {
                "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"),
                "id": scope["request_id"],
                "client": client[0],
                "method": scope["method"],
                "path": scope["path"],
                "status": status,
                "seconds": round(seconds, 4),
                "images": scope.get("images", 0),
            }
        )


async def _refuse_token(scope: Scope, receive: Receive, send: Send) -> None:
    response = make_error(401, "send the header Authorization: Bearer TOKEN", {"WWW-Authenticate": "Bearer"})
    await response(scope, receive, send)
