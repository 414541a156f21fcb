"""The content of requests for embeddings and for searches."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from caption_jax.serving.embedding_request import MAX_RESULTS, MAX_TEXT_CHARACTERS, Kind
from caption_jax.serving.http_errors import HttpError
from caption_jax.serving.refusals import OptionError
from caption_jax.serving.upload_limits import UploadLimits
from caption_jax.serving.uploads import add_fields, decode_images, parse_object, read_parts
from input_pipeline.extras import optional_packages

with optional_packages("serving"):
    from starlette.requests import Request

DEFAULT_RESULTS = 10
_SEARCH_KEYS = ("query", "limit", "images")


@dataclasses.dataclass(frozen=True)
class EmbeddingUpload:
    """Images or texts to embed.

    Attributes:
        kind: "images" or "texts".
        items: encoded images, or texts.
        names: names of the images, "" if unknown.
    """

    kind: Kind
    items: Sequence[bytes] | Sequence[str]
    names: Sequence[str]


@dataclasses.dataclass(frozen=True)
class SearchUpload:
    """The query of a search, a text or an encoded image, and the maximum number of results."""

    kind: Kind
    query: str | bytes
    limit: int


async def read_embedding_upload(request: Request, limits: UploadLimits) -> EmbeddingUpload:
    """Reads the images or texts of a request.

    Raises:
        HttpError: the request exceeds a limit, or is malformed.
        OptionError: a text cannot be embedded, or there are options.
    """
    parts = await read_parts(request, limits, _read_embedding_json)
    texts = parts.fields.pop("texts", None)
    _refuse_unknown(parts.fields, ())
    if texts is not None and not isinstance(texts, list):
        raise HttpError(422, 'texts must be a list, in a body of JSON such as {"texts": ["a dog"]}')
    if texts is None:
        if not parts.images:
            raise HttpError(422, "the request contains no image")
        names, contents = zip(*parts.images, strict=True)
        return EmbeddingUpload("images", contents, names)
    if parts.images or not texts:
        raise HttpError(422, "send at least one text, or images" if not texts else "send either images or texts")
    if len(texts) > limits.images:
        raise HttpError(413, f"the request has {len(texts)} texts; at most {limits.images} are accepted")
    return EmbeddingUpload("texts", [check_text(text, f"texts[{row}]") for row, text in enumerate(texts)], ())


async def read_search_upload(request: Request, limits: UploadLimits) -> SearchUpload:
    """Reads the query of a search.

    Raises:
        HttpError: the request exceeds a limit, or is malformed.
        OptionError: an option is invalid.
    """
    parts = await read_parts(request, limits, _read_search_json, allow_no_body=True)
    query, limit = parts.fields.pop("query", None), _parse_limit(parts.fields.pop("limit", DEFAULT_RESULTS))
    _refuse_unknown(parts.fields, ("query", "limit"))
    if query is None and not parts.images:
        raise HttpError(422, "the request contains no query: send a text as query, or one image")
    if query is not None and parts.images:
        raise HttpError(422, "send either a text or an image as query")
    if query is not None:
        return SearchUpload("texts", check_text(query, "query"), limit)
    if len(parts.images) > 1:
        raise HttpError(422, f"the request has {len(parts.images)} images; a search takes one")
    return SearchUpload("images", parts.images[0][1], limit)


def check_text(text: Any, name: str) -> str:
    """Returns a text that can be embedded.

    Raises:
        OptionError: the value is not a text, or one that is empty, too long or damaged.
    """
    if not isinstance(text, str):
        raise OptionError(f"{name}: the value must be a text")
    if not text.strip():
        raise OptionError(f"{name}: the text is empty")
    if len(text) > MAX_TEXT_CHARACTERS:
        raise OptionError(f"{name}: has {len(text)} characters, more than {MAX_TEXT_CHARACTERS}")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise OptionError(f"{name}: contains half of a character")
    return text


def _read_embedding_json(body: bytes, fields: dict[str, Any]) -> list[tuple[str, bytes]]:
    content = parse_object(body, ("images", "texts"), '{"texts": ["a dog"]} or {"images": ["BASE64"]}')
    if "texts" not in content:
        return decode_images(content)
    add_fields(fields, [("texts", content["texts"])])
    if not isinstance(content["texts"], list):
        raise HttpError(422, "texts must be a list")
    return decode_images(content) if "images" in content else []


def _read_search_json(body: bytes, fields: dict[str, Any]) -> list[tuple[str, bytes]]:
    content = parse_object(body, _SEARCH_KEYS, '{"query": "a dog", "limit": 10} or {"images": ["BASE64"]}')
    add_fields(fields, [(name, value) for name, value in content.items() if name != "images"])
    return decode_images(content) if "images" in content else []


def _parse_limit(value: Any) -> int:
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 10:
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MAX_RESULTS:
        raise OptionError(f"limit: the value must be a whole number from 1 to {MAX_RESULTS}")
    return value


def _refuse_unknown(fields: Mapping[str, Any], known: Sequence[str]) -> None:
    for name in fields:
        options = f"the options are {', '.join(known)}" if known else "this request takes none"
        raise OptionError(f"unknown option {name[:50]!r}; {options}")
