"""The HTTP API for embeddings, searches and the images of an index."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from caption_jax.serving.caption_service import CaptionService
from caption_jax.serving.disconnection import cancel_on_disconnect
from caption_jax.serving.embedding_request import Embedded, Embedder, Index, Match, ThumbnailError
from caption_jax.serving.http_errors import HttpError
from caption_jax.serving.search_request import read_embedding_upload, read_search_upload
from caption_jax.serving.server_metrics import ServerMetrics
from caption_jax.serving.upload_limits import UploadLimits
from input_pipeline.errors import ImageError
from input_pipeline.extras import optional_packages

with optional_packages("serving"):
    from starlette.requests import Request
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route

SEARCH_PATHS = ("/v1/embeddings", "/v1/search", "/v1/images/{row}")
_DECIMALS = 7  # of float32 values up to 1
_CACHE_CONTROL = "private, max-age=3600"
_MAX_ROW_DIGITS = 12


class SearchApi:
    """The handlers of the routes.

    Args:
        service: the service.
        limits: limits on requests.
        metrics: counters of images.
    """

    def __init__(self, service: CaptionService, limits: UploadLimits, metrics: ServerMetrics):
        self._service, self._limits, self._metrics = service, limits, metrics
        self.routes = [
            Route("/v1/embeddings", self.embed, methods=["POST"]),
            Route("/v1/search", self.search, methods=["POST"]),
            Route("/v1/images/{row}", self.show_image),
        ]

    async def embed(self, request: Request) -> Response:
        """Embeds images or texts."""
        self._require_embedder()
        with self._service.admit() as admission:  # before the body is read, so that a full queue costs no memory
            async with self._service.time_limit():
                upload = await read_embedding_upload(request, self._limits)
                admission.resize(len(upload.items))
                work = self._service.embed(upload.kind, upload.items)
                results = await cancel_on_disconnect(work, request.receive)
        if upload.kind == "images":
            self._count_images(request, results)
        answers = [_describe_embedding(index, result) for index, result in enumerate(results)]
        for answer, name in zip(answers, upload.names, strict=False):  # texts have no names
            answer["name"] = name
        content = {"id": request.scope["request_id"], "embeddings": answers}
        is_failed = all(isinstance(result, ImageError) for result in results)
        if is_failed:
            content["error"] = {"code": "invalid", "message": f"no image can be read: {results[0].reason}"}
        return JSONResponse(content, 422 if is_failed else 200)

    async def search(self, request: Request) -> Response:
        """Searches the index for the images nearest to a text or an image."""
        index = self._require_index()
        with self._service.admit():
            async with self._service.time_limit():
                upload = await read_search_upload(request, self._limits)
                work = self._service.embed(upload.kind, [upload.query], search=True)
                results = await cancel_on_disconnect(work, request.receive)
                if upload.kind == "images":
                    self._count_images(request, results)
                (result,) = results
                if isinstance(result, ImageError):
                    raise HttpError(422, f"the image cannot be read: {result.reason}")
                matches = result.matches[: upload.limit]
                answers = await self._service.run_in_decoder(_describe_matches, index, matches)
        return JSONResponse({"id": request.scope["request_id"], "results": answers})

    async def show_image(self, request: Request) -> Response:
        """Returns the thumbnail of an image of the index."""
        index, row = self._require_index(), request.path_params["row"]
        if not (row.isascii() and row.isdigit() and len(row) <= _MAX_ROW_DIGITS):
            raise HttpError(404, "the path ends with the row of an image in the index, such as 0")
        known_tag = request.headers.get("if-none-match", "").removeprefix("W/").strip('"')
        with self._service.admit():
            async with self._service.time_limit():
                work = self._service.run_in_decoder(index.make_thumbnail, int(row), known_tag)
                try:
                    thumbnail = await cancel_on_disconnect(work, request.receive)
                except ThumbnailError as error:
                    raise HttpError(404, str(error)) from error
        headers = {"ETag": f'"{thumbnail.tag}"', "Cache-Control": _CACHE_CONTROL, "X-Content-Type-Options": "nosniff"}
        if thumbnail.content is None:
            return Response(status_code=304, headers=headers)
        return Response(thumbnail.content, media_type="image/jpeg", headers=headers)

    def _require_embedder(self) -> Embedder:
        if self._service.embedder is None:
            raise HttpError(
                404,
                "the model of this server has no joint embedding of images and texts: it needs one trained with "
                "--config.objective.contrastive_weight above 0",
            )
        return self._service.embedder

    def _require_index(self) -> Index:
        index = self._require_embedder().index
        if index is None:
            raise HttpError(404, "this server has no index: it needs to be started with --index")
        return index

    def _count_images(self, request: Request, results: Sequence[Any]) -> None:
        errors = sum(isinstance(result, ImageError) for result in results)
        request.scope["images"] = len(results)
        self._metrics.images_done(len(results) - errors, errors, "embedded")


def describe_offer(embedder: Embedder | None) -> dict[str, Any]:
    """Returns what a server offers besides captions, for `/v1/model`; None for what it does not."""
    index = None if embedder is None else embedder.index
    return {
        "embeddings": None if embedder is None else {"dimension": embedder.width},
        "search": None if index is None else dict(index.describe()),
    }


def _describe_embedding(index: int, result: Embedded | ImageError) -> dict[str, Any]:
    if isinstance(result, ImageError):
        return {"index": index, "error": {"code": "unreadable_image", "message": result.reason}}
    return {"index": index, "embedding": np.round(result.vector.astype(np.float64), _DECIMALS).tolist()}


def _describe_matches(index: Index, matches: Sequence[Match]) -> list[dict[str, Any]]:
    """Returns the results of a search, in JSON. Reads the entries of the index."""
    answers = []
    for match in matches:
        image = index.get(match.row)
        answer = {"index": match.row, "name": _clean(image.name), "score": round(match.score, _DECIMALS)}
        if image.caption is not None:
            answer["caption"] = _clean(image.caption)
        if image.is_served:
            answer["image"] = f"/v1/images/{match.row}"
        answers.append(answer)
    return answers


def _clean(text: str) -> str:
    """Returns a text without halves of characters, which names of files may contain but an answer cannot."""
    return text.encode("utf-8", "replace").decode()
