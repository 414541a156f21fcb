"""The description of the paths for embeddings and searches, in the format of OpenAPI 3.1."""

from __future__ import annotations

from typing import Any

from caption_jax.serving.description_parts import (
    ERROR,
    describe_batch_errors,
    describe_get,
    describe_images_body,
    describe_post,
    describe_response,
)
from caption_jax.serving.embedding_request import MAX_RESULTS, MAX_TEXT_CHARACTERS, Embedder
from caption_jax.serving.search_request import DEFAULT_RESULTS
from caption_jax.serving.upload_limits import UploadLimits

_TEXT = {"type": "string", "minLength": 1, "maxLength": MAX_TEXT_CHARACTERS}
_LIMIT = {"type": "integer", "minimum": 1, "maximum": MAX_RESULTS, "default": DEFAULT_RESULTS}
_MATCH = {
    "type": "object",
    "required": ["index", "name", "score"],
    "properties": {
        "index": {"type": "integer", "description": "The row of the image in the index."},
        "name": {"type": "string"},
        "score": {"type": "number", "description": "Cosine similarity."},
        "caption": {"type": "string", "description": "If the index has captions."},
        "image": {"type": "string", "description": "Path of a thumbnail, if images are served."},
    },
}


def describe_search_paths(embedder: Embedder | None, limits: UploadLimits) -> dict[str, Any]:
    """Returns the paths that a server offers."""
    if embedder is None:
        return {}
    paths = {"/v1/embeddings": {"post": _describe_embeddings(embedder.width, limits)}}
    if embedder.index is not None:
        paths |= {"/v1/search": {"post": _describe_search(limits)}}
        paths |= {"/v1/images/{row}": {"get": _describe_thumbnail()}}
    return paths


def _describe_embeddings(width: int, limits: UploadLimits) -> dict[str, Any]:
    numbers = {"type": "array", "items": {"type": "number"}, "minItems": width, "maxItems": width}
    properties = {"index": {"type": "integer"}, "name": {"type": "string"}, "embedding": numbers, "error": ERROR}
    result = {"type": "object", "required": ["index"], "properties": properties}
    answer = {"id": {"type": "string"}, "embeddings": {"type": "array", "items": result}}
    body = describe_images_body(limits, {}, {})
    texts = {"type": "array", "minItems": 1, "maxItems": limits.images, "items": _TEXT}
    body["application/json"] = {
        "oneOf": [body["application/json"], _describe_alternative({"texts": texts}, ["texts"])],
    }
    return describe_post("Embeds images or texts as unit vectors.", answer, body, {})


def _describe_search(limits: UploadLimits) -> dict[str, Any]:
    answer = {"id": {"type": "string"}, "results": {"type": "array", "items": _MATCH}}
    options = {"limit": _LIMIT}
    body = describe_images_body(UploadLimits(limits.body_bytes, 1), options, options)
    query = _describe_alternative({"query": _TEXT, **options}, ["query"])
    for kind in ("multipart/form-data", "application/json"):
        body[kind] = {"oneOf": [body[kind], query]}
    summary = "Finds the images of the index nearest to a text or to one image."
    description = describe_post(summary, answer, body, {"query": _TEXT, **options})
    description["requestBody"]["required"] = False  # the query may have the text
    return description


def _describe_thumbnail() -> dict[str, Any]:
    missing = describe_response("The image is not served, or cannot be read.", {"error": ERROR}, ["error"])
    path = describe_get(
        "A thumbnail of an image of the index.",
        "image/jpeg",
        status_304={"description": "The client has the thumbnail with this ETag."},
        status_404=missing,
        **describe_batch_errors(),
    )
    row = {"name": "row", "in": "path", "required": True, "schema": {"type": "integer", "minimum": 0}}
    etag = {"name": "If-None-Match", "in": "header", "schema": {"type": "string"}}
    return {**path, "parameters": [row, etag]}


def _describe_alternative(properties: dict[str, Any], required: list[str]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
