"""Images and options of a request: multipart forms, raw bytes, and JSON with base64. URLs are never fetched."""

from __future__ import annotations

import base64
import binascii
import dataclasses
import json
from collections.abc import Callable, Sequence
from typing import Any

from caption_jax.serving.caption_request import REPEATABLE, CaptionOptions
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


# Returns the names and contents of the images in the JSON of a body, and adds its other values to the fields.
JsonReader = Callable[[bytes, dict[str, Any]], list[tuple[str, bytes]]]


@dataclasses.dataclass(frozen=True)
class Parts:
    """The parts of a request: named images, "" if a name is unknown, and the values of all other fields."""

    images: list[tuple[str, bytes]]
    fields: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Upload:
    """The content of a request: encoded images, their names, "" if unknown, and options."""

    images: tuple[bytes, ...]
    names: tuple[str, ...]
    options: CaptionOptions


async def read_upload(request: Request, limits: UploadLimits) -> Upload:
    """Reads the images and options of a request for captions, up to the limits.

    Raises:
        HttpError: the request exceeds a limit, or is malformed.
    """
    parts = await read_parts(request, limits, _read_json)
    if not parts.images:
        raise HttpError(422, "the request contains no image")
    names, contents = zip(*parts.images, strict=True)
    return Upload(contents, names, CaptionOptions.from_mapping(parts.fields))


async def read_parts(
    request: Request, limits: UploadLimits, read_json: JsonReader, *, allow_no_body: bool = False
) -> Parts:
    """Reads a request that is a form, JSON or an image, up to the limits.

    Args:
        request: the request.
        limits: limits on its size and its number of images.
        read_json: reads a body in JSON.
        allow_no_body: whether the query may contain all fields.

    Raises:
        HttpError: the request exceeds a limit, or is malformed.
        OptionError: a field is set twice.
    """
    length = request.headers.get("content-length", "")
    if length.isascii() and length.isdigit() and int(length[:20]) > limits.body_bytes:
        raise _too_large(limits)
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    limited = Request(request.scope, _limit(request.receive, limits))
    fields: dict[str, Any] = {}
    add_fields(fields, request.query_params.multi_items())
    if kind == _FORM:
        images = await _read_form(limited, limits, fields)
    elif kind == _JSON:
        images = read_json(await limited.body(), fields)
    elif kind.startswith(_RAW):
        images = [("", await limited.body())]
    elif allow_no_body and not kind and not await limited.body():
        images = []
    else:
        raise HttpError(415, f"content-type {kind[:100]!r}: send {_FORM}, {_JSON}, or an image as image/*")
    if len(images) > limits.images:
        raise HttpError(413, f"the request has {len(images)} images; at most {limits.images} are accepted")
    return Parts(images, fields)


async def _read_form(request: Request, limits: UploadLimits, fields: dict[str, Any]) -> list[tuple[str, bytes]]:
    """Returns the names and contents of the files of a form, and adds its other fields."""
    settings = {"max_files": limits.images, "max_fields": _MAX_FIELDS, "max_part_size": _MAX_FIELD_BYTES}
    try:
        async with request.form(**settings) as form:
            items = form.multi_items()
            add_fields(fields, [(name, value) for name, value in items if isinstance(value, str)])
            files = [value for _, value in items if isinstance(value, UploadFile)]
            return [(_clean(file.filename or ""), await file.read()) for file in files]
    except UnicodeError:  # the charset of the form
        raise HttpError(422, "the form cannot be read: its text is not in its charset; use UTF-8") from None
    except HTTPException as error:  # of Starlette's parser
        status = 413 if "Too many" in error.detail else 422
        raise HttpError(status, f"the form cannot be read: {error.detail}") from error


def _read_json(body: bytes, fields: dict[str, Any]) -> list[tuple[str, bytes]]:
    """Returns the images of `{"images": [BASE64, ...], "options": {...}}`, and adds the options to the fields."""
    content = parse_object(body, ("images", "options"), '{"images": ["BASE64"], "options": {}}')
    images = decode_images(content)
    if not isinstance(content.get("options", {}), dict):
        raise HttpError(422, "options must be an object")
    add_fields(fields, list(content.get("options", {}).items()))
    return images


def parse_object(body: bytes, keys: Sequence[str], example: str) -> dict[str, Any]:
    """Returns the object in a body of JSON, whose first key is required.

    Args:
        body: the body.
        keys: the known keys.
        example: an example of the body, for messages.

    Raises:
        HttpError: the body is not such an object.
    """
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        raise HttpError(422, "the body is not valid JSON") from None
    if not isinstance(content, dict):
        raise HttpError(422, f"the body must be an object such as {example}")
    if unknown := content.keys() - set(keys):
        raise HttpError(422, f"unknown key {min(unknown)[:50]!r}; the keys are {' and '.join(keys)}")
    return content


def decode_images(content: dict[str, Any]) -> list[tuple[str, bytes]]:
    """Returns the images of the list `images` of an object, without names. Raises HttpError if it is malformed."""
    if not isinstance(content.get("images"), list):
        raise HttpError(422, 'the body must be an object such as {"images": ["BASE64"]}')
    return [("", _decode_base64(text, index)) for index, text in enumerate(content["images"])]


def _decode_base64(text: Any, index: int) -> bytes:
    """Decodes base64, also as a browser writes it, in a URL that starts with "data:"."""
    if isinstance(text, str) and text.startswith("data:"):
        text = text.partition(";base64,")[2] or "?"
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError, TypeError):
        raise HttpError(422, f"images[{index}] is not a string in base64; URLs are not fetched") from None


def _clean(name: str) -> str:
    """Returns a name without halves of characters, which some charsets can express but an answer cannot."""
    return name.encode("utf-8", "replace").decode()


def add_fields(fields: dict[str, Any], items: Sequence[tuple[str, Any]]) -> None:
    """Adds values to the fields, and repeated ones as a list. Raises OptionError if only one value is allowed."""
    for name, value in items:
        if name in REPEATABLE and isinstance(value, str):
            value = [*fields.pop(name, []), value]
        if name in fields:
            raise OptionError(f"the option {name[:50]!r} is set twice")
        fields[name] = value


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
