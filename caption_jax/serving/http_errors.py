"""Responses to requests that fail: JSON with one line that names the cause and the remedy."""

from __future__ import annotations

import logging

from caption_jax.serving.refusals import (
    BatchError,
    DeadlineError,
    NotReadyError,
    OptionError,
    QueueFullError,
    RefusedError,
)
from input_pipeline.extras import optional_packages

with optional_packages("serving"):
    from starlette.exceptions import HTTPException
    from starlette.requests import ClientDisconnect, Request
    from starlette.responses import JSONResponse, Response

log = logging.getLogger(__name__)

_STATUSES = {QueueFullError: 429, NotReadyError: 503, DeadlineError: 503, OptionError: 422, BatchError: 500}
_CODES = {
    400: "bad_request",
    401: "unauthorized",
    404: "not_found",
    405: "method_not_allowed",
    413: "too_large",
    415: "unsupported_media_type",
    422: "invalid",
    429: "queue_full",
    503: "unavailable",
}


class HttpError(Exception):
    """A request fails with a status and a message in one line."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


def make_error(status: int, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """Returns `{"error": {"code": ..., "message": ...}}`."""
    error = {"code": _CODES.get(status, "internal"), "message": " ".join(message.split())}
    return JSONResponse({"error": error}, status, headers)


async def handle_error(request: Request, error: Exception) -> Response:
    """Returns the response to a request that raised an error of this module or of `refusals`."""
    if isinstance(error, HttpError):
        return make_error(error.status, str(error))
    if isinstance(error, RefusedError):
        headers = {"Retry-After": str(error.retry_after)} if error.retry_after is not None else None
        return make_error(_STATUSES[type(error)], str(error), headers)
    if isinstance(error, HTTPException):  # of Starlette's router
        return make_error(error.status_code, error.detail, dict(error.headers or {}))
    if isinstance(error, ClientDisconnect):
        return make_error(400, "the client closed the connection")
    log.error("a request failed", exc_info=error)
    return make_error(500, "internal error; the log of the server has the details")
