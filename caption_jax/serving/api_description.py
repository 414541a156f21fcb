"""The description of the HTTP API in the format of OpenAPI 3.1."""

from __future__ import annotations

from typing import Any

import caption_jax
from caption_jax.serving.caption_request import MAX_CONTEXT_CHARACTERS, MAX_PREFIX_CHARACTERS, Offer
from caption_jax.serving.description_parts import (
    ERROR,
    describe_get,
    describe_images_body,
    describe_post,
    describe_response,
)
from caption_jax.serving.embedding_request import Embedder
from caption_jax.serving.search_description import describe_search_paths
from caption_jax.serving.upload_limits import UploadLimits

_CAPTION = {"caption": {"type": "string"}, "log_prob": {"type": ["number", "null"]}}
_ATTENTION = {
    "description": "Attention over the grid of the image [words, rows, columns], if the option is set.",
    "type": "object",
    "properties": {
        "words": {"type": "array", "items": {"type": "string"}},
        "weights": {
            "type": "array",
            "items": {"type": "array", "items": {"type": "array", "items": {"type": "number"}}},
        },
    },
}
_RESULT = {
    "type": "object",
    "required": ["index", "name"],
    "properties": {
        "index": {"type": "integer"},
        "name": {"type": "string"},
        **_CAPTION,
        "alternatives": {"type": "array", "items": {"type": "object", "properties": _CAPTION}},
        "attention": _ATTENTION,
        "error": ERROR,
    },
}


def describe_api(offer: Offer, limits: UploadLimits, embedder: Embedder | None = None) -> dict[str, Any]:
    """Returns the description of the API of a server."""
    status = {"status": {"type": "string"}}
    not_ready = describe_response("Programs are compiled, or the server is stopping.", status, ["status"])
    paths = {
        "/v1/captions": {"post": _describe_captions(_describe_options(offer), limits)},
        "/v1/model": {"get": describe_get("Facts about the model, its options and limits.", "application/json")},
        "/healthz": {"get": describe_get("The process runs.", "application/json")},
        "/readyz": {"get": describe_get("All programs are compiled.", "application/json", status_503=not_ready)},
        "/metrics": {"get": describe_get("Metrics in Prometheus' format.", "text/plain")},
        **describe_search_paths(embedder, limits),
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "caption-jax", "version": caption_jax.__version__},
        "paths": paths,
        "components": {"securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}},
        "security": [{}, {"token": []}],
    }


def _describe_options(offer: Offer) -> dict[str, Any]:
    methods = ["greedy", "beam"] if offer.beams else ["greedy"]
    text = {"type": "string", "maxLength": MAX_CONTEXT_CHARACTERS}
    context = {"context": {"type": "array", "items": text, "maxItems": offer.max_texts}} if offer.max_texts else {}
    return {
        "method": {"type": "string", "enum": methods, "default": offer.default.method},
        "beams": {"type": "integer", "enum": [1, *sorted(offer.beams)]},
        "candidates": {"type": "integer", "minimum": 1, "maximum": max(offer.beams, default=1), "default": 1},
        "prefix": {"type": "string", "maxLength": MAX_PREFIX_CHARACTERS, "default": offer.prefix},
        **context,
        "max_length": {"type": "integer", "minimum": 3, "maximum": offer.max_length},
        "attention": {"type": "boolean", "default": False},
    }


def _describe_captions(options: dict[str, Any], limits: UploadLimits) -> dict[str, Any]:
    answer = {"id": {"type": "string"}, "captions": {"type": "array", "items": _RESULT}}
    json_keys = {"options": {"type": "object", "properties": options, "additionalProperties": False}}
    body = describe_images_body(limits, options, json_keys)
    summary = f"Captions images. The body has at most {limits.body_bytes:,} bytes."
    return describe_post(summary, answer, body, options)
