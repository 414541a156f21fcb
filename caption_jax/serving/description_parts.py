"""Parts that the descriptions of several paths share, in the format of OpenAPI 3.1."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from caption_jax.serving.upload_limits import UploadLimits

ERROR = {
    "type": "object",
    "required": ["code", "message"],
    "properties": {"code": {"type": "string"}, "message": {"type": "string"}},
}
BASE64 = {"type": "string", "contentEncoding": "base64"}
# Statuses of all paths, and those of paths that wait for a batch.
_COMMON_ERRORS = {
    "400": "The request is malformed.",
    "401": "The bearer token is missing or wrong.",
    "405": "The method is not one of this path.",
    "500": "The server failed; its log has the details.",
}
_BATCH_ERRORS = {
    "429": "The queue is full; the header Retry-After has the seconds to wait.",
    "503": "The server is starting or stopping, or the request took too long.",
}
_UPLOAD_ERRORS = {
    "413": "The request has too many bytes or images.",
    "415": "The content type is not supported.",
    "422": "An option is invalid, the body is malformed, or no image can be read.",
}


def describe_get(summary: str, media_type: str, **responses: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the description of a path that is read, with further responses by status, as in `status_503=...`."""
    content = {media_type: {}} if media_type != "application/json" else {media_type: {"schema": {"type": "object"}}}
    success = {"description": summary, "content": content}
    others = {name.removeprefix("status_"): response for name, response in responses.items()}
    return {"summary": summary, "responses": {"200": success, **others, **_describe_errors(_COMMON_ERRORS)}}


def describe_post(
    summary: str, answer: Mapping[str, Any], body: Mapping[str, Any], parameters: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns the description of a path that takes uploads.

    Args:
        summary: one sentence.
        answer: properties of the answer.
        body: schemas of the body by content type.
        parameters: schemas of the parameters of the query by name.
    """
    content = {kind: {"schema": schema} for kind, schema in body.items()}
    errors = _describe_errors(_COMMON_ERRORS | _UPLOAD_ERRORS | _BATCH_ERRORS)
    return {
        "summary": summary,
        "parameters": [{"name": name, "in": "query", "schema": schema} for name, schema in parameters.items()],
        "requestBody": {"required": True, "content": content},
        "responses": {"200": describe_response("The results in order.", answer, list(answer)), **errors},
    }


def describe_images_body(
    limits: UploadLimits, fields: Mapping[str, Any], json_keys: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """Returns the schemas of the three forms in which images are sent.

    Args:
        limits: limits on the request.
        fields: other fields of the form.
        json_keys: other keys of the body in JSON.
    """
    binary = {"type": "string", "contentMediaType": "application/octet-stream"}
    images = {"type": "array", "minItems": 1, "maxItems": limits.images}
    form = {"images": {**images, "items": {"type": "string", "format": "binary"}}, **fields}
    body = {"images": {**images, "items": BASE64}, **json_keys}
    return {
        "multipart/form-data": _describe_object(form, ["images"]),
        "application/json": _describe_object(body, ["images"]),
        "image/jpeg": binary,
        "application/octet-stream": binary,
    }


def describe_batch_errors() -> dict[str, Any]:
    """Returns the descriptions of the errors of a full queue and of a time limit, by status."""
    return {f"status_{status}": response for status, response in _describe_errors(_BATCH_ERRORS).items()}


def describe_response(
    description: str, properties: Mapping[str, Any], required: list[str], media_type: str = "application/json"
) -> dict[str, Any]:
    """Returns the description of a response that is an object."""
    schema = {"type": "object", "required": required, "properties": properties}
    return {"description": description, "content": {media_type: {"schema": schema}}}


def _describe_errors(errors: Mapping[str, str]) -> dict[str, Any]:
    return {status: describe_response(text, {"error": ERROR}, ["error"]) for status, text in errors.items()}


def _describe_object(properties: Mapping[str, Any], required: list[str]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
