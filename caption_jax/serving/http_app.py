"""The HTTP API as an ASGI application. docs/serving.md describes it."""

from __future__ import annotations

import contextlib
import math
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any

from caption_jax.serving.api_description import describe_api
from caption_jax.serving.caption_service import READY, CaptionService, Model, ServiceSettings
from caption_jax.serving.disconnection import cancel_on_disconnect
from caption_jax.serving.embedding_request import Embedder
from caption_jax.serving.http_errors import HttpError, handle_error
from caption_jax.serving.refusals import RefusedError
from caption_jax.serving.request_middleware import RequestMiddleware, log_to_stderr
from caption_jax.serving.search_api import SEARCH_PATHS, SearchApi, describe_offer
from caption_jax.serving.server_metrics import ServerMetrics
from caption_jax.serving.upload_limits import UploadLimits
from caption_jax.serving.uploads import read_upload
from caption_jax.serving.web_page import PAGE_PATHS, make_page_routes
from input_pipeline.errors import ImageError
from input_pipeline.extras import optional_packages

with optional_packages("serving"):
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.requests import ClientDisconnect, Request
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route

if TYPE_CHECKING:
    from caption_jax.inference.captioner import Caption
    from caption_jax.inference.image_attention import WordAttention

_HANDLED = (HttpError, RefusedError, HTTPException, ClientDisconnect, Exception)
PATHS = ("/v1/captions", "/v1/model", "/healthz", "/readyz", "/metrics", "/openapi.json")


class Api:
    """The handlers of the routes.

    Args:
        service: the service.
        limits: limits on requests.
        metrics: the metrics, which also observe the service.
    """

    def __init__(self, service: CaptionService, limits: UploadLimits, metrics: ServerMetrics):
        self.service, self._limits, self._metrics = service, limits, metrics
        metrics.watch("queue_images", "Images that wait for a batch.", lambda: service.queue_length)
        metrics.watch("accepted_images", "Images that are accepted and not done.", lambda: service.admitted)
        metrics.watch("ready", "1 if all programs are compiled.", lambda: float(service.state == READY))

    @contextlib.asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        """Starts the service, and stops it after the last request."""
        self.service.start()
        yield
        await self.service.stop()

    async def caption(self, request: Request) -> Response:
        """Captions images."""
        with self.service.admit() as admission:  # before the body is read, so that a full queue costs no memory
            async with self.service.time_limit():
                upload = await read_upload(request, self._limits)
                admission.resize(len(upload.images))
                request.scope["images"] = len(upload.images)
                captioning = self.service.caption(upload.images, upload.options)
                results = await cancel_on_disconnect(captioning, request.receive)
        errors = sum(isinstance(result, ImageError) for result in results)
        self._metrics.images_done(len(results) - errors, errors)
        captions = [
            describe_result(index, name, result)
            for index, (name, result) in enumerate(zip(upload.names, results, strict=True))
        ]
        content = {"id": request.scope["request_id"], "captions": captions}
        if errors == len(results):
            content["error"] = {"code": "invalid", "message": f"no image can be read: {results[0].reason}"}
        return JSONResponse(content, 422 if errors == len(results) else 200)

    async def describe_model(self, request: Request) -> Response:
        """Returns facts about the model, and what requests may ask for."""
        service, offer = self.service, self.service.model.offer
        limits = {
            "request_bytes": self._limits.body_bytes,
            "images": self._limits.images,
            "queue": service.settings.max_queue,
            "timeout_seconds": service.settings.timeout,
        }
        options = {
            "method": offer.default.method,
            "beams": list(offer.beams),
            "max_length": offer.max_length,
            "attention": offer.attention,
            "context": offer.max_texts,
        }
        content = {**service.model.describe(), "state": service.state, "options": options, "limits": limits}
        return JSONResponse(
            {**content, "batch_sizes": sorted(service.settings.batch_sizes), **describe_offer(service.embedder)}
        )

    async def check_health(self, request: Request) -> Response:
        """Answers while the process runs."""
        return JSONResponse({"status": "ok"})

    async def check_readiness(self, request: Request) -> Response:
        """Answers with 200 if requests are accepted, otherwise with 503."""
        is_ready = self.service.state == READY
        return JSONResponse({"status": self.service.state}, 200 if is_ready else 503)

    async def show_metrics(self, request: Request) -> Response:
        """Returns the metrics."""
        return Response(self._metrics.render(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def show_description(self, request: Request) -> Response:
        """Returns the description of the API."""
        return JSONResponse(describe_api(self.service.model.offer, self._limits, self.service.embedder))


def make_app(
    model: Model,
    settings: ServiceSettings,
    limits: UploadLimits,
    token: str = "",
    write: Callable[[dict], None] = log_to_stderr,
    embedder: Embedder | None = None,
) -> Starlette:
    """Makes the application. Its `state.service` is the service.

    Args:
        model: the model.
        settings: settings of the service.
        limits: limits on requests.
        token: bearer token of all requests but those for the page and the health of the server; "" for none.
        write: writes an entry of the access log.
        embedder: the joint embedding of the model, with an index or without; None if it has none.
    """
    metrics = ServerMetrics((*PATHS, *SEARCH_PATHS, *PAGE_PATHS))
    api = Api(CaptionService(model, settings, metrics, embedder), limits, metrics)
    routes = [
        Route("/v1/captions", api.caption, methods=["POST"]),
        Route("/v1/model", api.describe_model),
        Route("/healthz", api.check_health),
        Route("/readyz", api.check_readiness),
        Route("/metrics", api.show_metrics),
        Route("/openapi.json", api.show_description),
        *SearchApi(api.service, limits, metrics).routes,
        *make_page_routes(),
    ]
    app = Starlette(
        routes=routes, lifespan=api.lifespan, exception_handlers={error: handle_error for error in _HANDLED}
    )
    app.add_middleware(RequestMiddleware, metrics=metrics, token=token, write=write)
    app.state.service = api.service
    return app


def describe_result(index: int, name: str, result: list[Caption] | ImageError) -> dict[str, Any]:
    """Returns the answer for one image, in JSON."""
    answer: dict[str, Any] = {"index": index, "name": name}
    if isinstance(result, ImageError):
        return {**answer, "error": {"code": "unreadable_image", "message": result.reason}}
    captions = [{"caption": caption.text, "log_prob": _finite(caption.log_prob)} for caption in result]
    best = captions[0] if captions else {"caption": "", "log_prob": None}  # the options allow no caption
    answer |= {**best, "alternatives": captions[1:]}
    attention = getattr(result[0], "attention", None) if result else None  # only if the request asks for it
    return answer if attention is None else {**answer, "attention": describe_attention(attention)}


def describe_attention(attention: WordAttention) -> dict[str, Any]:
    """Returns the attention for the words of a caption, in JSON."""
    return {"words": list(attention.words), "weights": attention.weights.astype(float).round(4).tolist()}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
