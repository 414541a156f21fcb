"""The description of the HTTP API in the format of OpenAPI 3.1."""

from __future__ import annotations

from typing import Any

import caption_jax
from caption_jax.serving.caption_request import MAX_PREFIX_CHARACTERS, Offer
from caption_jax.serving.upload_limits import UploadLimits

_ERRORS = {
    "401": "The bearer token is missing or wrong.",
    "413": "The request has too many bytes or images.",
    "415": "The content type is not supported.",
    "422": "An option is invalid, the body is malformed, or no image can be read.",
    "429": "The queue is full; the header Retry-After has the seconds to wait.",
    "503": "The server is starting or stopping, or the request took too long.",
}
_ERROR = {
    "type": "object",
    "required": ["code", "message"],
    "properties": {"code": {"type": "string"}, "message": {"type": "string"}},
}
_CAPTION = {"caption": {"type": "string"}, "log_prob": {"type": ["number", "null"]}}
_RESULT = {
    "type": "object",
    "required": ["index", "name"],
    "properties": {
        "index": {"type": "integer"},
        "name": {"type": "string"},
        **_CAPTION,
        "alternatives": {"type": "array", "items": {"type": "object", "properties": _CAPTION}},
        "error": _ERROR,
    },
}


def describe_api(offer: Offer, limits: UploadLimits) -> dict[str, Any]:
    """Returns the description of the API of a server."""
    paths = {
        "/v1/captions": {"post": _describe_captions(_describe_options(offer), limits)},
        "/v1/model": {"get": _describe_get("Facts about the model, its options and limits.", "application/json")},
        "/healthz": {"get": _describe_get("The process runs.", "application/json")},
        "/readyz": {"get": _describe_get("All programs are compiled; otherwise 503.", "application/json")},
        "/metrics": {"get": _describe_get("Metrics in Prometheus' format.", "text/plain")},
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
    return {
        "method": {"type": "string", "enum": methods, "default": offer.default.method},
        "beams": {"type": "integer", "enum": [1, *sorted(offer.beams)]},
        "candidates": {"type": "integer", "minimum": 1, "maximum": max(offer.beams, default=1), "default": 1},
        "prefix": {"type": "string", "maxLength": MAX_PREFIX_CHARACTERS, "default": offer.prefix},
        "max_length": {"type": "integer", "minimum": 3, "maximum": offer.max_length},
    }


def _describe_captions(options: dict[str, Any], limits: UploadLimits) -> dict[str, Any]:
    images = {"type": "array", "minItems": 1, "maxItems": limits.images}
    binary = {"type": "string", "contentMediaType": "application/octet-stream"}
    form = {"images": {**images, "items": binary}, **options}
    base64 = {"type": "string", "contentEncoding": "base64"}
    body = {"images": {**images, "items": base64}, "options": {"type": "object", "properties": options}}
    answer = {"id": {"type": "string"}, "captions": {"type": "array", "items": _RESULT}, "error": _ERROR}
    responses = {"200": _describe_response("The captions, or errors, of the images in order.", answer)}
    responses |= {status: _describe_response(text, {"error": _ERROR}) for status, text in _ERRORS.items()}
    return {
        "summary": f"Captions images. The body has at most {limits.body_bytes:,} bytes.",
        "parameters": [{"name": name, "in": "query", "schema": schema} for name, schema in options.items()],
        "requestBody": {
            "required": True,
            "content": {
                "multipart/form-data": {"schema": {"type": "object", "properties": form}},
                "application/json": {"schema": {"type": "object", "required": ["images"], "properties": body}},
                "image/*": {"schema": binary},
            },
        },
        "responses": responses,
    }


def _describe_response(description: str, properties: dict[str, Any]) -> dict[str, Any]:
    schema = {"type": "object", "properties": properties}
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _describe_get(summary: str, media_type: str) -> dict[str, Any]:
    return {"summary": summary, "responses": {"200": {"description": summary, "content": {media_type: {}}}}}
