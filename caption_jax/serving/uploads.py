"""Images and options of a request: multipart forms, raw bytes, and JSON with base64. URLs are never fetched."""

from __future__ import annotations

import base64
import binascii
import dataclasses
import json
from typing import Any

from caption_jax.serving.caption_request import CaptionOptions
from caption_jax.serving.http_errors import HttpError
from caption_jax.serving.refusals import OptionError
from caption_jax.serving.upload_limits import UploadLimits
from input_pipeline.extras import optional_packages

with optional_packages("serving"):
    from starlette.datastructures import UploadFile
    from starlette.exceptions import HTTPException
    from starlette.requests import Request
    from starlette.types import Message, Receive

_FORM, _JSON = "multipart/form-data", "application/json"
_RAW = ("image/", "application/octet-stream")
_MAX_FIELD_BYTES = 10_000
_MAX_FIELDS = 20


@dataclasses.dataclass(frozen=True)
class Upload:
    """The content of a request: encoded images, their names, "" if unknown, and options."""

    images: tuple[bytes, ...]
    names: tuple[str, ...]
    options: CaptionOptions


async def read_upload(request: Request, limits: UploadLimits) -> Upload:
    """Reads the images and options of a request, up to the limits.

    Raises:
        HttpError: the request exceeds a limit, or is malformed.
    """
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length) > limits.body_bytes:
        raise _too_large(limits)
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    limited = Request(request.scope, _limit(request.receive, limits))
    options: dict[str, Any] = {}
    _add_options(options, request.query_params.multi_items())
    if kind == _FORM:
        images = await _read_form(limited, limits, options)
    elif kind == _JSON:
        images = _read_json(await limited.body(), options)
    elif kind.startswith(_RAW):
        images = [("", await limited.body())]
    else:
        raise HttpError(415, f"content-type {kind[:100]!r}: send {_FORM}, {_JSON}, or an image as image/*")
    if not images:
        raise HttpError(422, "the request contains no image")
    if len(images) > limits.images:
        raise HttpError(413, f"the request has {len(images)} images; at most {limits.images} are accepted")
    names, contents = zip(*images, strict=True)
    return Upload(contents, names, CaptionOptions.from_mapping(options))


async def _read_form(request: Request, limits: UploadLimits, options: dict[str, Any]) -> list[tuple[str, bytes]]:
    """Returns the names and contents of the files of a form, and adds its other fields to the options."""
    settings = {"max_files": limits.images, "max_fields": _MAX_FIELDS, "max_part_size": _MAX_FIELD_BYTES}
    try:
        async with request.form(**settings) as form:
            items = form.multi_items()
            _add_options(options, [(name, value) for name, value in items if isinstance(value, str)])
            files = [value for _, value in items if isinstance(value, UploadFile)]
            return [(file.filename or "", await file.read()) for file in files]
    except HTTPException as error:  # of Starlette's parser
        status = 413 if "Too many" in error.detail else 422
        raise HttpError(status, f"the form cannot be read: {error.detail}") from error


def _read_json(body: bytes, options: dict[str, Any]) -> list[tuple[str, bytes]]:
    """Returns the images of `{"images": [BASE64, ...], "options": {...}}`, and adds the options."""
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        raise HttpError(422, "the body is not valid JSON") from None
    if not isinstance(content, dict) or not isinstance(content.get("images"), list):
        raise HttpError(422, 'the body must be an object such as {"images": ["BASE64"], "options": {}}')
    if unknown := content.keys() - {"images", "options"}:
        raise HttpError(422, f"unknown key {min(unknown)[:50]!r}; the keys are images and options")
    if not isinstance(content.get("options", {}), dict):
        raise HttpError(422, "options must be an object")
    _add_options(options, list(content.get("options", {}).items()))
    return [("", _decode_base64(text, index)) for index, text in enumerate(content["images"])]


def _decode_base64(text: Any, index: int) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError, TypeError):
        raise HttpError(422, f"images[{index}] is not a string in base64; URLs are not fetched") from None


def _add_options(options: dict[str, Any], items: list[tuple[str, Any]]) -> None:
    for name, value in items:
        if name in options:
            raise OptionError(f"the option {name[:50]!r} is set twice")
        options[name] = value


def _limit(receive: Receive, limits: UploadLimits) -> Receive:
    """Returns a function that receives the body, up to the limit, whatever its Content-Length says."""
    received = 0

    async def receive_limited() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > limits.body_bytes:
            raise _too_large(limits)
        return message

    return receive_limited


def _too_large(limits: UploadLimits) -> HttpError:
    return HttpError(413, f"the request is larger than {limits.body_bytes:,} bytes")
